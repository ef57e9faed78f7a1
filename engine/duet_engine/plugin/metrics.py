"""`duet_engine_*` in SGLang's own `/metrics`.

Invariant: everything is read from shared memory when somebody scrapes, so a step pays nothing for it; counters only
grow while the engine's instance lives. Needs prometheus_client, which must not be loaded before SGLang has chosen the
folder of its own counters, so nothing here is imported before the server starts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from duet_engine.authentication import DenialReason
from duet_engine.plugin.facts import BUSY_KINDS, SchedulerFacts
from duet_engine.plugin.server_side import ServerSide
from duet_engine.protocol import RefusalReason

PREFIX = "duet_engine_"


class DuetCollector:
    """All series of one worker; `rank` tells schedulers apart."""

    def __init__(self, side: ServerSide) -> None:
        self._side = side

    def describe(self) -> list[Metric]:
        """Nothing: the registry then needn't collect before the server has started."""
        return []

    def collect(self) -> Iterator[Metric]:
        side, schedulers = self._side, self._side.schedulers()
        yield from _steps(schedulers)
        for name, attribute, text in (
            ("busy_seconds", "busy_seconds_total", "Time in which a step ran"),
            ("predicted_seconds", "predicted_seconds_total", "What the model expected of the same steps"),
            ("hook_seconds", "hook_seconds_total", "CPU time that the plugin took in the scheduler's steps"),
            ("prefill_chunks", "chunks_total", "Chunks of prompts"),
            ("prefill_tokens", "prefill_tokens_total", "Prompt tokens computed"),
            ("output_tokens", "output_tokens_total", "Tokens made"),
            ("deflected_tokens", "deflected_tokens_total", "Prompt tokens prefilled on this decode worker"),
            ("deflected_requests", "deflected_requests_total", "Prompts taken for prefill on this decode worker"),
        ):
            yield _counter(
                name, text, ((("rank", rank), getattr(facts, attribute)) for rank, facts in _each(schedulers))
            )
        yield _counter(
            "refusals",
            "Requests of which nothing was done, by reason",
            ((("reason", reason.value), side.refusals[reason]) for reason in RefusalReason),
        )
        yield _counter(
            "denied_calls",
            "Calls without a good token, by reason",
            ((("reason", reason.value), side.guard.refusals.counts[reason]) for reason in DenialReason),
        )
        state = side.state()
        for name, value, text in (
            ("headroom_tokens_per_second", state.headroom_tokens_per_second, "Deflected tokens that still fit"),
            ("ready", float(state.ready), "1 while the worker takes new work"),
            ("draining", float(state.draining), "1 while a drain is in force"),
            ("plugin_active", float(side.inactive_reason() is None), "1 while all hooks are in force everywhere"),
            ("knobs_generation", state.knobs_generation, "Generation of the live settings"),
        ):
            yield GaugeMetricFamily(PREFIX + name, text, value=value)


def _steps(schedulers: list[SchedulerFacts]) -> Iterator[Metric]:
    for name, suffix, text in (
        ("steps", "steps_total", "Forward passes"),
        ("step_seconds", "seconds_total", "Time in forward passes"),
    ):
        family = CounterMetricFamily(PREFIX + name, text, labels=("rank", "kind"))
        for rank, facts in _each(schedulers):
            for kind in BUSY_KINDS:
                family.add_metric((rank, kind.value), getattr(facts, f"{kind.value}_{suffix}"))
        yield family


def _each(schedulers: list[SchedulerFacts]) -> Iterator[tuple[str, SchedulerFacts]]:
    for rank, facts in enumerate(schedulers):
        yield str(rank), facts


def _counter(name: str, text: str, values: Iterable[tuple[tuple[str, str], float]]) -> Metric:
    rows = list(values)
    label = rows[0][0][0] if rows else "rank"
    family = CounterMetricFamily(PREFIX + name, text, labels=(label,))
    for (_, key), value in rows:
        family.add_metric((key,), value)
    return family
