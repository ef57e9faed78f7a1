"""Prometheus metrics of the operator itself.

Invariant: labels come from closed lists (verbs, kinds, reasons, results), never from object names, so that the number
of series stays the same however many objects there are.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from collections.abc import Callable

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """Counters and gauges with a registry of their own, so that several operators fit in one process."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last_pass: float | None = None
        self.registry = CollectorRegistry()
        self._writes = Counter(
            "duet_operator_writes", "Writes sent to the API server", ["verb", "kind"], registry=self.registry
        )
        self._passes = Counter("duet_operator_passes", "Passes of the control loop", ["result"], registry=self.registry)
        self._pass_seconds = Histogram(
            "duet_operator_pass_seconds", "Duration of one pass", buckets=_SECONDS, registry=self.registry
        )
        self._decisions = Counter(
            "duet_operator_decisions", "Decisions by the reason that bound them", ["reason"], registry=self.registry
        )
        self._scale_actions = Counter(
            "duet_operator_scale_actions", "Changes of replica counts", ["pool", "direction"], registry=self.registry
        )
        self._drains = Counter(
            "duet_operator_drains", "Drains of workers by how they ended", ["result"], registry=self.registry
        )
        self._scrapes = Counter(
            "duet_operator_gateway_scrapes", "Documents asked of gateways", ["result"], registry=self.registry
        )
        self._key_reads = Counter(
            "duet_operator_token_key_reads",
            "Keys of the cluster's tokens asked for",
            ["result"],
            registry=self.registry,
        )
        self._objects = Gauge("duet_operator_cached_objects", "Objects in the cache", ["kind"], registry=self.registry)
        age = Gauge("duet_operator_last_pass_age_seconds", "Time since a pass last ended", registry=self.registry)
        age.set_function(lambda: self.last_pass_age_seconds or 0.0)

    @property
    def last_pass_age_seconds(self) -> float | None:
        """Time since a pass last ended, None before the first."""
        return None if self._last_pass is None else self._clock() - self._last_pass

    def write(self, verb: str, kind: str) -> None:
        """A write was sent."""
        self._writes.labels(verb, kind).inc()

    def writes(self) -> dict[tuple[str, str], int]:
        """Writes sent so far by verb and kind."""
        return {
            (sample.labels["verb"], sample.labels["kind"]): int(sample.value)
            for family in self._writes.collect()
            for sample in family.samples
            if sample.name.endswith("_total")
        }

    def passed(self, *, seconds: float, failed: bool) -> None:
        """A pass ended."""
        self._last_pass = self._clock()
        self._passes.labels("failed" if failed else "done").inc()
        self._pass_seconds.observe(seconds)

    def decided(self, reason: str) -> None:
        """A pass decided something."""
        self._decisions.labels(reason).inc()

    def scaled(self, pool: str, *, before: int, after: int) -> None:
        """A replica count was changed."""
        self._scale_actions.labels(pool, "up" if after > before else "down").inc()

    def drain_ended(self, result: str) -> None:
        """A drain ended: removed, cancelled, timed_out or gone."""
        self._drains.labels(result).inc()

    def scraped(self, *, answered: int, failed: int) -> None:
        """Gateways were asked for their documents."""
        self._scrapes.labels("answered").inc(answered)
        self._scrapes.labels("failed").inc(failed)

    def keys_read(self, *, failed: bool) -> None:
        """The keys of the cluster's tokens were asked for."""
        self._key_reads.labels("failed" if failed else "read").inc()

    def cached(self, counts: dict[str, int]) -> None:
        """How many objects the cache holds."""
        for kind, count in counts.items():
            self._objects.labels(kind).set(count)

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)
