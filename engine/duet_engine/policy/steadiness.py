"""What keeps several gateways from doing the same at the same moment: each has its own slight preferences.

All gateways see the same states, a tenth of a second old. If they all took the one best worker, or all began to deflect
at the same backlog, what they chose would be overrun before any state says so, and they would all turn back together.

Invariant: a preference is the same whenever it is asked for, its mean over gateways is none, and without a name there
is none at all.
"""

from __future__ import annotations

from zlib import crc32

THRESHOLD_SPREAD = 0.1
"""A gateway begins to deflect at up to so much less, or more, than the share of the objective that it is told,"""
HYSTERESIS = 0.8
"""and once it does, it goes on until the danger is under this part of where it began."""
WORKER_SPREAD = 0.05
"""Predictions that differ by less are a matter of taste."""


class Preferences:
    """One gateway's: factors around 1 on what it compares."""

    __slots__ = ("_by_worker", "_name", "threshold")

    def __init__(self, name: str = "") -> None:
        self._name = name
        self._by_worker: dict[str, float] = {}
        self.threshold = self._factor("", THRESHOLD_SPREAD)
        """On the share of the objective at which the prefill path is in danger."""

    def worker(self, key: str) -> float:
        """On what is predicted of a worker: below 1 is preferred."""
        factor = self._by_worker.get(key)
        if factor is None:
            factor = self._by_worker[key] = self._factor(key, WORKER_SPREAD)
        return factor

    def keep(self, keys: frozenset[str]) -> None:
        """Forget workers that aren't there any more."""
        self._by_worker = {key: factor for key, factor in self._by_worker.items() if key in keys}

    def _factor(self, key: str, spread: float) -> float:
        if not self._name:
            return 1.0
        return 1.0 + spread * (2.0 * crc32(f"{self._name}/{key}".encode()) / 0xFFFFFFFF - 1.0)
