"""What keeps several gateways from doing the same at the same moment: each has a threshold and an order of its own.

All gateways see the same states, a tenth of a second old. If they all took the one best worker, or all began to deflect
at the same backlog, what they chose would be overrun before any state says so, and they would all turn back together.

Invariant: workers that are predicted to be as good take turns. Without a name there are no preferences: only equal ones
do, and thresholds are as told.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar
from zlib import crc32

from duet_engine.policy.fleet import DecodeWorker, PrefillWorker

THRESHOLD_SPREAD = 0.1
"""A gateway begins to deflect at up to so much less, or more, than the share of the objective that it is told,"""
HYSTERESIS = 0.8
"""and once it does, it goes on until the danger is under this part of where it began."""
AS_GOOD = 0.05
"""Predictions that differ by less are taken for equal."""

AnyWorker = TypeVar("AnyWorker", PrefillWorker, DecodeWorker)
Turn = tuple[float, int, str]


class Preferences:
    """One gateway's."""

    __slots__ = ("_last_taken", "_name", "_phases", "_taken", "margin", "threshold")

    def __init__(self, name: str = "") -> None:
        self._name = name
        self._phases: dict[str, float] = {}
        """Below 1: the order in which it takes workers that it has never taken."""
        self._last_taken: dict[str, int] = {}
        self._taken = 0
        self.margin = 1.0 + (AS_GOOD if name else 0.0)
        """By how much more a prediction may be and still count as equal to the best."""
        self.threshold = 1.0 + THRESHOLD_SPREAD * (2.0 * self._draw("") - 1.0) if name else 1.0
        """Factor on the share of the objective at which the prefill path is in danger."""

    def turn(self, key: str, dispatches: int) -> Turn:
        """Of workers that are as good the one with the least is next: the one that was taken longest ago."""
        phase = self._phases.get(key)
        if phase is None:
            phase = self._phases[key] = self._draw(key)
        return self._last_taken.get(key, 0) + phase, dispatches, key

    def take(self, key: str) -> None:
        """It gets a prompt."""
        self._taken += 1
        self._last_taken[key] = self._taken

    def best(self, ranked: Sequence[tuple[float, AnyWorker]]) -> tuple[float, AnyWorker]:
        """The next in turn of those with the least rank, and as good ones."""
        least = min([rank for rank, _ in ranked]) * self.margin
        as_good = [each for each in ranked if each[0] <= least]
        return as_good[0] if len(as_good) == 1 else min(as_good, key=self._turn_of)

    def _turn_of(self, ranked: tuple[float, AnyWorker]) -> Turn:
        return self.turn(ranked[1].key, ranked[1].dispatches)

    def keep(self, keys: frozenset[str]) -> None:
        """Forget workers that aren't there any more."""
        self._phases = {key: phase for key, phase in self._phases.items() if key in keys}
        self._last_taken = {key: taken for key, taken in self._last_taken.items() if key in keys}

    def _draw(self, key: str) -> float:
        return crc32(f"{self._name}/{key}".encode()) / 2**32 if self._name else 0.0
