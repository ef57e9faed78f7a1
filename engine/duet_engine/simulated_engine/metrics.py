"""`/metrics`: SGLang's series under their names and labels, and Duet's own.

Invariant: made from plain counters when somebody scrapes, and imported only then, because a start-up must be quick.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from duet_engine.authentication import DenialReason
from duet_engine.protocol import Role, StepKind

if TYPE_CHECKING:
    from duet_engine.distribution import Distribution
    from duet_engine.simulated_engine.engine import Engine

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
ENGINE_TYPES = {Role.PREFILL: "prefill", Role.DECODE: "decode", Role.UNIFIED: "unified"}


class EngineCollector(Collector):
    """Reads one engine."""

    def __init__(self, engine: Engine, denied_calls: Mapping[DenialReason, int]) -> None:
        self._engine = engine
        self._denied_calls = denied_calls
        self._labels = {
            "model_name": engine.settings.served_name,
            "engine_type": ENGINE_TYPES[engine.settings.role],
            "tp_rank": "0",
            "pp_rank": "0",
            "moe_ep_rank": "0",
        }
        self._request_labels = {name: self._labels[name] for name in ("model_name", "engine_type")}

    def collect(self) -> Iterator[Metric]:
        yield from self._scheduler_gauges()
        yield from self._request_metrics()
        yield from self._duet_metrics()

    def _scheduler_gauges(self) -> Iterator[Metric]:
        engine, scheduler = self._engine, self._engine.scheduler
        work, kv = scheduler.work(), scheduler.kv
        for name, value, text in (
            ("num_running_reqs", work.running, "Running requests"),
            ("num_queue_reqs", work.queued + work.deflected, "Requests in the waiting queue"),
            ("num_used_tokens", kv.used_tokens, "Used KV tokens"),
            ("token_usage", kv.used_tokens / kv.capacity_tokens, "Share of KV tokens in use"),
            ("full_token_usage", kv.used_tokens / kv.capacity_tokens, "Share of KV tokens in use"),
            ("kv_used_tokens", kv.used_tokens, "Used KV tokens"),
            ("kv_available_tokens", kv.capacity_tokens - kv.used_tokens, "Free KV tokens"),
            ("kv_evictable_tokens", 0, "Cached KV tokens that nobody uses"),
            ("decode_sum_seq_lens", scheduler.context_tokens, "Sum of the context lengths of the decode batch"),
            ("gen_throughput", engine.generation_tokens_per_second(), "Output tokens per second"),
            ("cache_hit_rate", 0.0, "Prefix cache hit rate"),
            ("utilization", work.running / engine.profile.max_running_requests, "Share of the batch in use"),
            ("max_total_num_tokens", kv.capacity_tokens, "KV capacity in tokens"),
            ("max_running_requests", engine.profile.max_running_requests, "Largest decode batch"),
            ("page_size", 1, "KV page size"),
            ("context_len", engine.settings.context_length, "Context length"),
            ("num_prefill_bootstrap_queue_reqs", work.prefill_bootstrap, "Prefill requests without a claim"),
            ("num_prefill_inflight_queue_reqs", work.prefill_inflight, "Prefill requests whose KV is leaving"),
            ("num_decode_prealloc_queue_reqs", work.decode_prealloc, "Decode requests that wait for KV"),
            ("num_decode_transfer_queue_reqs", work.decode_transfer, "Decode requests whose KV is coming"),
        ):
            yield self._gauge(f"sglang:{name}", text, value)

    def _request_metrics(self) -> Iterator[Metric]:
        measured, totals = self._engine.measurements, self._engine.scheduler.totals
        yield from self._times_by_streaming()
        for name, distribution, text in (
            ("inter_token_latency_seconds", measured.itl_seconds, "Gap between output tokens"),
            ("queue_time_seconds", measured.queue_seconds, "Time from arrival to the first step"),
            ("prompt_tokens_histogram", measured.prompt_tokens, "Prompt tokens of a request"),
            ("uncached_prompt_tokens_histogram", measured.prompt_tokens, "Prompt tokens of a request not in a cache"),
            ("generation_tokens_histogram", measured.generation_tokens, "Output tokens of a request"),
        ):
            yield self._histogram(f"sglang:{name}", text, [({}, distribution)])
        for name, value, text in (
            ("prompt_tokens", measured.prompt_tokens.sum, "Prompt tokens of finished requests"),
            ("generation_tokens", totals.output_tokens, "Output tokens"),
            ("num_aborted_requests", measured.aborted_requests, "Aborted requests"),
            ("num_bootstrap_failed_reqs", measured.failed_bootstraps, "Requests whose room nobody claimed"),
            ("num_transfer_failed_reqs", measured.failed_transfers, "Requests whose KV didn't come"),
            ("num_retracted_requests", totals.retracted_requests, "Retractions"),
        ):
            yield self._counter(f"sglang:{name}", text, value)
        realtime = CounterMetricFamily(
            "sglang:realtime_tokens", "Tokens computed, by kind", labels=[*self._request_labels, "mode"]
        )
        for mode, value in (("prefill_compute", totals.prefill_tokens), ("decode", totals.output_tokens)):
            realtime.add_metric([*self._request_labels.values(), mode], value)
        yield realtime

    def _duet_metrics(self) -> Iterator[Metric]:
        engine, totals = self._engine, self._engine.scheduler.totals
        yield from self._by_label(
            "duet_engine_steps", "Forward passes", "kind", [(kind, totals.steps[kind]) for kind in StepKind]
        )
        yield from self._by_label(
            "duet_engine_step_seconds",
            "Time in forward passes",
            "kind",
            [(kind, totals.step_seconds[kind]) for kind in StepKind],
        )
        yield from self._by_label(
            "duet_engine_refusals",
            "Requests of which nothing was done, by reason",
            "reason",
            [(reason, count) for reason, count in engine.measurements.refusals.items()],
        )
        yield from self._by_label(
            "duet_engine_denied_calls",
            "Calls without a good token, by reason",
            "reason",
            [(reason, self._denied_calls.get(reason, 0)) for reason in DenialReason],
        )
        for name, value, text in (
            ("deflected_tokens", totals.deflected_tokens, "Prompt tokens prefilled on this decode worker"),
            ("deflected_requests", totals.deflected_requests, "Prompts taken for prefill on this decode worker"),
            ("busy_seconds", totals.busy_seconds, "Time in which a step ran"),
        ):
            yield self._counter(f"duet_engine_{name}", text, value)
        state = engine.state()
        for name, value, text in (
            ("headroom_tokens_per_second", state.headroom_tokens_per_second, "Deflected tokens that still fit"),
            ("ready", state.ready, "1 while the worker takes new work"),
            ("draining", state.draining, "1 while a drain is in force"),
            ("knobs_generation", state.knobs_generation, "Generation of the live settings"),
        ):
            yield self._gauge(f"duet_engine_{name}", text, value)

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, text, labels=list(self._labels))
        family.add_metric(list(self._labels.values()), value)
        return family

    def _counter(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(name, text, labels=list(self._request_labels))
        family.add_metric(list(self._request_labels.values()), value)
        return family

    def _by_label(self, name: str, text: str, label: str, values: Iterable[tuple[str, float]]) -> Iterator[Metric]:
        family = CounterMetricFamily(name, text, labels=[*self._request_labels, label])
        for key, value in values:
            family.add_metric([*self._request_labels.values(), str(key)], value)
        yield family

    def _times_by_streaming(self) -> Iterator[Metric]:
        measured = self._engine.measurements
        kinds = [({"is_streaming": "True"}, measured.streamed), ({"is_streaming": "False"}, measured.whole)]
        for name, attribute, text in (
            ("time_to_first_token_seconds", "ttft_seconds", "Time to first token"),
            ("request_time_per_output_token_seconds", "tpot_seconds", "Mean gap of a request"),
            ("e2e_request_latency_seconds", "e2e_seconds", "Whole latency of a request"),
        ):
            yield self._histogram(f"sglang:{name}", text, [(more, getattr(times, attribute)) for more, times in kinds])
        yield from self._by_label(
            "sglang:num_requests",
            "Finished requests",
            "is_streaming",
            [(more["is_streaming"], times.finished_requests) for more, times in kinds],
        )

    def _histogram(self, name: str, text: str, distributions: list[tuple[dict[str, str], Distribution]]) -> Metric:
        """One histogram; each distribution comes with the labels that it has beside the common ones."""
        more_names = list(distributions[0][0])
        family = HistogramMetricFamily(name, text, labels=[*self._request_labels, *more_names])
        for more, distribution in distributions:
            labels = [*self._request_labels.values(), *more.values()]
            family.add_metric(labels, distribution.buckets(), sum_value=distribution.sum)
        return family


def render(engine: Engine, denied_calls: Mapping[DenialReason, int]) -> bytes:
    """The text of one scrape."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(EngineCollector(engine, denied_calls))
    return generate_latest(registry)
