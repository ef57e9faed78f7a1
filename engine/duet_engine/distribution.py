"""Counts per bucket: what the gateway and the engines' stand-in tell Prometheus and each other.

Invariant: bounds are fixed and counts only grow, so that distributions subtract and add count by count.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate

from duet_engine.protocol import Histogram


class Distribution:
    """Counts per bucket of fixed bounds."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, count: int = 1) -> None:
        """`count` observations of one value."""
        self.counts[bisect_left(self.bounds, value)] += count
        self.sum += value * count

    def document(self) -> Histogram:
        return Histogram(bounds=self.bounds, counts=tuple(self.counts), sum=self.sum)

    def buckets(self) -> list[tuple[str, float]]:
        """As Prometheus wants them: upper bounds as text, each with the count of all up to it."""
        names = (*(str(float(bound)) for bound in self.bounds), "+Inf")
        return list(zip(names, accumulate(map(float, self.counts)), strict=True))
