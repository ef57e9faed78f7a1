"""A histogram's bucket that ends exactly at an objective, which a fixed set of buckets hardly ever has.

Invariant: its count lies between those of its neighbours, also after the objective has changed; from then on it is
exact for what is observed, and what was observed before is taken for evenly spread within its bucket.
"""

from __future__ import annotations

from bisect import bisect_left

from duet_engine.distribution import Distribution
from duet_engine.protocol import Histogram


class ObjectiveEdge:
    """Counts what was within one objective."""

    __slots__ = ("bound", "count")

    def __init__(self) -> None:
        self.bound = 0.0
        self.count = 0

    def move(self, bound: float, observed: Distribution) -> None:
        """The objective is this now."""
        if bound != self.bound:
            self.bound, self.count = bound, _within(bound, observed)


def with_edge(histogram: Histogram, bound: float, count: int) -> list[tuple[str, float]]:
    """Buckets as Prometheus wants them, upper bounds as text with the counts up to them, and the objective's among."""
    place = bisect_left(histogram.bounds, bound)
    known = place < len(histogram.bounds) and histogram.bounds[place] == bound
    buckets, up_to = [], 0
    for index, (limit, counted) in enumerate(zip((*histogram.bounds, float("inf")), histogram.counts, strict=True)):
        if index == place and bound > 0 and not known:
            buckets.append((str(float(bound)), float(min(max(count, up_to), up_to + counted))))
        up_to += counted
        buckets.append(("+Inf" if limit == float("inf") else str(float(limit)), float(up_to)))
    return buckets


def _within(bound: float, observed: Distribution) -> int:
    place = bisect_left(observed.bounds, bound)
    below = sum(observed.counts[:place])
    if place == len(observed.bounds):
        return below + observed.counts[place]
    start = observed.bounds[place - 1] if place else 0.0
    share = (bound - start) / (observed.bounds[place] - start)
    return below + round(share * observed.counts[place])
