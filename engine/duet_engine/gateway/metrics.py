"""Prometheus series, made at each scrape from the same report that the demand document is part of.

Invariant: nothing is counted twice; a request costs no work here; a pod's series don't depend on which of its processes
was asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from duet_engine.gateway.objective_edge import with_edge
from duet_engine.gateway.report import ClassSeries, ProcessReport
from duet_engine.protocol import ClassDemand, Histogram

PREFIX = "duet_gateway_"


@dataclass(frozen=True, slots=True, eq=False)
class GatewayCollector(Collector):
    """Everything of one pod."""

    report: ProcessReport

    def collect(self) -> Iterable[Metric]:
        yield from self._requests()
        yield from self._classes()
        yield from self._workers()
        yield from self._process()

    def _requests(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            PREFIX + "requests", "Requests by endpoint, route and how they ended.", labels=("path", "route", "outcome")
        )
        decisions = CounterMetricFamily(
            PREFIX + "decisions", "Requests by where they were computed and why there.", labels=("route", "reason")
        )
        ends: Counter[tuple[str, str, str]] = Counter()
        routes: Counter[tuple[str, str]] = Counter()
        for each in self.report.requests:
            ends[each.path, each.route, each.outcome] += each.count
            routes[each.route, each.reason] += each.count
        for key, count in ends.items():
            requests.add_metric(key, count)
        for route, count in routes.items():
            decisions.add_metric(route, count)
        yield decisions
        yield requests
        retries = CounterMetricFamily(PREFIX + "retries", "Attempts after the first, by reason.", labels=("reason",))
        for reason, count in self.report.retries.items():
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
        for counted in self.report.demand.classes:
            for objective, count in (
                ("both", counted.met_both_total),
                ("ttft", counted.met_ttft_total),
                ("itl", counted.met_itl_total),
            ):
                met.add_metric((counted.name, objective), count)
            for cause, count in counted.missed_total.items():
                missed.add_metric((counted.name, cause), count)
            for kind, count in (
                ("input", counted.input_tokens_total),
                ("cached", counted.cached_tokens_total),
                ("output", counted.output_tokens_total),
                ("deflected", counted.deflected_tokens_total),
            ):
                tokens.add_metric((counted.name, kind), count)
        yield from (met, missed, tokens)
        yield from self._histograms()

    def _histograms(self) -> Iterator[Metric]:
        series = {each.name: each for each in self.report.classes}
        for name, text in _HISTOGRAMS.items():
            family = HistogramMetricFamily(PREFIX + name, text, labels=("class",))
            for counted in self.report.demand.classes:
                histogram, bound, within = _histogram(counted, series[counted.name], name)
                family.add_metric((counted.name,), buckets=with_edge(histogram, bound, within), sum_value=histogram.sum)
            yield family

    def _workers(self) -> Iterator[Metric]:
        labels = ("worker", "role")
        inflight = GaugeMetricFamily(PREFIX + "worker_inflight", "Requests at a worker.", labels=labels)
        usable = GaugeMetricFamily(PREFIX + "worker_reachable", "Whether its state stream is live.", labels=labels)
        ejections = CounterMetricFamily(PREFIX + "ejections", "Times that a worker was ejected.", labels=labels)
        errors = CounterMetricFamily(PREFIX + "worker_errors", "Requests that a worker failed.", labels=labels)
        refusals = CounterMetricFamily(PREFIX + "worker_refusals", "Requests that a worker refused.", labels=labels)
        counts = {each.uid: each for each in self.report.workers}
        for worker in self.report.demand.workers:
            key = (worker.worker, worker.role)
            inflight.add_metric(key, worker.inflight)
            usable.add_metric(key, worker.reachable)
            ejections.add_metric(key, counts[worker.uid].ejections_total)
            errors.add_metric(key, worker.errors_total)
            refusals.add_metric(key, counts[worker.uid].refusals_total)
        yield from (inflight, usable, ejections, errors, refusals)

    def _process(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            PREFIX + "waiting_requests", "Requests held at the gateway.", value=self.report.demand.waiting_requests
        )
        yield GaugeMetricFamily(
            PREFIX + "waiting_tokens", "Prompt tokens held at the gateway.", value=self.report.demand.waiting_tokens
        )
        yield GaugeMetricFamily(
            PREFIX + "loop_lag_p99_seconds",
            "Lateness of the event loop over 10 s.",
            value=self.report.demand.loop_lag_p99_seconds,
        )
        yield from self._accept_waits()
        counting = GaugeMetricFamily(
            PREFIX + "bytes_per_token", "Learned size of a token; how prompts are counted.", labels=("counting",)
        )
        counting.add_metric((self.report.counting,), self.report.bytes_per_token)
        yield counting

    def _accept_waits(self) -> Iterator[Metric]:
        histogram = self.report.accept_wait_seconds
        if histogram is not None:
            family = HistogramMetricFamily(
                PREFIX + "accept_wait_seconds", "Time that connections lay in the accept queue; 0 for under 20 ms."
            )
            family.add_metric((), buckets=with_edge(histogram, 0.0, 0), sum_value=histogram.sum)
            yield family


_HISTOGRAMS = {
    "ttft_seconds": "Arrival to first token of streamed requests.",
    "itl_seconds": "Gaps between output tokens.",
    "tpot_seconds": "Mean gap of each request.",
    "e2e_seconds": "Arrival to the last byte of answers that completed.",
    "ttft_over_predicted": "Observed over predicted time from dispatch to first token.",
}


def _histogram(counted: ClassDemand, series: ClassSeries, name: str) -> tuple[Histogram, float, int]:
    """With its objective, if it has one, and how many were within it."""
    return {
        "ttft_seconds": (counted.ttft_seconds, series.ttft_objective_seconds, series.ttft_within_total),
        "itl_seconds": (counted.itl_seconds, series.itl_objective_seconds, series.itl_within_total),
        "tpot_seconds": (counted.tpot_seconds, 0.0, 0),
        "e2e_seconds": (series.e2e_seconds, 0.0, 0),
        "ttft_over_predicted": (series.ttft_over_predicted, 0.0, 0),
    }[name]
