"""Prometheus series, made at each scrape from the counters that the demand document is made from.

Invariant: nothing is counted twice; a request costs no work here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from duet_engine.distribution import Distribution
from duet_engine.gateway.demand import ClassCounters, Demand
from duet_engine.gateway.loop_lag import LoopLag
from duet_engine.gateway.routing import Dispatcher
from duet_engine.gateway.tokens import TokenEstimator
from duet_engine.gateway.workers import Workers

PREFIX = "duet_gateway_"


@dataclass(frozen=True, slots=True)
class GatewayCollector(Collector):
    """Everything of one process."""

    demand: Demand
    dispatcher: Dispatcher
    workers: Workers
    lag: LoopLag
    tokens: TokenEstimator

    def collect(self) -> Iterable[Metric]:
        yield from self._requests()
        yield from self._classes()
        yield from self._workers()
        yield from self._process()

    def _requests(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            PREFIX + "requests", "Requests by endpoint, route and how they ended.", labels=("path", "route", "outcome")
        )
        for (path, route, end), count in self.demand.requests.items():
            requests.add_metric((path, route, end), count)
        yield requests
        retries = CounterMetricFamily(PREFIX + "retries", "Attempts after the first, by reason.", labels=("reason",))
        for reason, count in self.demand.retries.items():
            retries.add_metric((reason,), count)
        yield retries

    def _classes(self) -> Iterator[Metric]:
        met = CounterMetricFamily(
            PREFIX + "objectives_met", "Requests that met an objective.", labels=("class", "objective")
        )
        missed = CounterMetricFamily(
            PREFIX + "objectives_missed", "Requests that missed an objective, by cause.", labels=("class", "cause")
        )
        tokens = CounterMetricFamily(PREFIX + "tokens", "Tokens by kind.", labels=("class", "kind"))
        for counters in self.demand.classes():
            for objective, count in (
                ("both", counters.met_both),
                ("ttft", counters.met_ttft),
                ("itl", counters.met_itl),
            ):
                met.add_metric((counters.name, objective), count)
            for cause, count in counters.missed.items():
                missed.add_metric((counters.name, cause), count)
            for kind, count in (
                ("input", counters.input_tokens_total),
                ("cached", counters.cached_tokens_total),
                ("output", counters.output_tokens_total),
                ("deflected", counters.deflected_tokens),
            ):
                tokens.add_metric((counters.name, kind), count)
        yield from (met, missed, tokens)
        for name, text in _HISTOGRAMS.items():
            family = HistogramMetricFamily(PREFIX + name, text, labels=("class",))
            for counters in self.demand.classes():
                distribution = _distribution(counters, name)
                family.add_metric((counters.name,), buckets=distribution.buckets(), sum_value=distribution.sum)
            yield family

    def _workers(self) -> Iterator[Metric]:
        labels = ("worker", "role")
        inflight = GaugeMetricFamily(PREFIX + "worker_inflight", "Requests at a worker.", labels=labels)
        usable = GaugeMetricFamily(PREFIX + "worker_reachable", "Whether its state stream is live.", labels=labels)
        ejections = CounterMetricFamily(PREFIX + "ejections", "Times that a worker was ejected.", labels=labels)
        errors = CounterMetricFamily(PREFIX + "worker_errors", "Requests that a worker failed.", labels=labels)
        refusals = CounterMetricFamily(PREFIX + "worker_refusals", "Requests that a worker refused.", labels=labels)
        for worker in self.workers:
            key = (worker.name, worker.member.role)
            inflight.add_metric(key, worker.inflight)
            usable.add_metric(key, worker.connected)
            ejections.add_metric(key, worker.breaker.ejections_total)
            errors.add_metric(key, worker.errors_total)
            refusals.add_metric(key, worker.refusals_total)
        yield from (inflight, usable, ejections, errors, refusals)

    def _process(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            PREFIX + "waiting_requests", "Requests held at the gateway.", value=self.dispatcher.waiting_requests
        )
        yield GaugeMetricFamily(
            PREFIX + "waiting_tokens", "Prompt tokens held at the gateway.", value=self.dispatcher.waiting_tokens
        )
        yield GaugeMetricFamily(
            PREFIX + "loop_lag_p99_seconds", "Lateness of the event loop over 10 s.", value=self.lag.p99_seconds()
        )
        counting = GaugeMetricFamily(
            PREFIX + "bytes_per_token", "Learned size of a token; how prompts are counted.", labels=("counting",)
        )
        counting.add_metric((self.tokens.active,), self.tokens.bytes_per_token)
        yield counting


_HISTOGRAMS = {
    "ttft_seconds": "Arrival to first token of streamed requests.",
    "itl_seconds": "Gaps between output tokens.",
    "tpot_seconds": "Mean gap of each request.",
    "ttft_over_predicted": "Observed over predicted time from dispatch to first token.",
}


def _distribution(counters: ClassCounters, name: str) -> Distribution:
    return {
        "ttft_seconds": counters.ttft,
        "itl_seconds": counters.itl,
        "tpot_seconds": counters.tpot,
        "ttft_over_predicted": counters.ttft_over_predicted,
    }[name]
