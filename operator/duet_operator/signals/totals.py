"""Counters of gateways: added over classes and instances, subtracted over time, read as percentiles.

Invariant: pure. Counters of one instance only grow, so every difference is at least zero; where one isn't, the
instance started anew and its present counters are the difference.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import reduce
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from duet_engine.protocol import Histogram, MissCause

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from duet_engine.protocol import ClassDemand, GatewayDemand

CAPACITY_MISSES = (MissCause.QUEUE, MissCause.ENGINE, MissCause.GATE)
"""Misses that more workers would have prevented."""

EMPTY_HISTOGRAM = Histogram(bounds=(), counts=(0,))


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Counters of one gateway instance, or a difference or a sum of them."""

    arrivals: int = 0
    judged: int = 0
    """Requests whose outcome is known: completed, failed or rejected."""
    completed: int = 0
    rejected: int = 0
    refused: int = 0
    """Of the arrivals: wrong in themselves, which is known later than that they came."""
    refused_input_tokens: int = 0
    met_both: int = 0
    capacity_misses: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    deflected_requests: int = 0
    deflected_tokens: int = 0
    ttft_seconds: Histogram = field(default=EMPTY_HISTOGRAM)
    itl_seconds: Histogram = field(default=EMPTY_HISTOGRAM)
    input_lengths: Histogram = field(default=EMPTY_HISTOGRAM)
    output_lengths: Histogram = field(default=EMPTY_HISTOGRAM)

    def __add__(self, other: Totals) -> Totals:
        return self._combine(other, lambda mine, theirs: mine + theirs)

    def __sub__(self, other: Totals) -> Totals:
        return self._combine(other, lambda mine, theirs: mine - theirs)

    def since(self, earlier: Totals) -> Totals:
        """What was counted after `earlier`, by the same instance or its restarted successor."""
        difference = self - earlier
        if difference.shrunk:
            return self
        thinned = earlier.arrivals > 0 and not earlier.ttft_seconds.bounds
        return difference.without_histograms() if thinned else difference

    @property
    def shrunk(self) -> bool:
        """Some counter is negative: the minuend wasn't the same instance's later count."""
        return any(value < 0 for name in _COUNTERS if isinstance(value := getattr(self, name), int))

    def without_histograms(self) -> Totals:
        """Only the counters, for memories that reach far back."""
        if not any(getattr(self, name).bounds for name in _HISTOGRAMS):
            return self
        return Totals(**{name: getattr(self, name) for name in _COUNTERS})

    def _combine(self, other: Totals, operation: Callable[[int, int], int]) -> Totals:
        values: dict[str, Any] = {name: operation(getattr(self, name), getattr(other, name)) for name in _COUNTERS}
        for name in _HISTOGRAMS:
            values[name] = _combined(getattr(self, name), getattr(other, name), operation)
        return Totals(**values)


_HISTOGRAMS = ("ttft_seconds", "itl_seconds", "input_lengths", "output_lengths")
_COUNTERS = tuple(each.name for each in fields(Totals) if each.name not in _HISTOGRAMS)


def _combined(one: Histogram, other: Histogram, operation: Callable[[int, int], int]) -> Histogram:
    """Count by count. An empty one takes the other's bounds; unequal bounds can't be combined: the first stays."""
    if not one.bounds:
        one = Histogram(bounds=other.bounds, counts=(0,) * len(other.counts))
    if not other.bounds or one.bounds != other.bounds or len(one.counts) != len(other.counts):
        return one
    counts = tuple(operation(mine, theirs) for mine, theirs in zip(one.counts, other.counts, strict=True))
    sign = operation(0, 1)
    return Histogram(bounds=one.bounds, counts=counts, sum=one.sum + sign * other.sum)


def totals(document: GatewayDemand) -> Totals:
    """All classes of one gateway together."""
    return total(_class_totals(each) for each in document.classes)


def total(parts: Iterable[Totals]) -> Totals:
    """The sum."""
    parts = iter(parts)
    # Mostly there is one: an object has few classes and gateways.
    return reduce(Totals.__add__, parts, next(parts, Totals()))


def _class_totals(each: ClassDemand) -> Totals:
    return Totals(
        arrivals=each.arrivals_total,
        refused=each.refused_total,
        refused_input_tokens=each.refused_input_tokens_total,
        judged=each.completed_total + each.failed_total + each.rejected_total + each.given_up_total,
        completed=each.completed_total,
        rejected=each.rejected_total,
        met_both=each.met_both_total,
        capacity_misses=sum(each.missed_total.get(cause, 0) for cause in CAPACITY_MISSES),
        input_tokens=each.input_tokens_total,
        cached_tokens=each.cached_tokens_total,
        output_tokens=each.output_tokens_total,
        deflected_requests=each.deflected_requests_total,
        deflected_tokens=each.deflected_tokens_total,
        ttft_seconds=each.ttft_seconds,
        itl_seconds=each.itl_seconds,
        input_lengths=each.input_tokens,
        output_lengths=each.output_tokens,
    )


def quantile(histogram: Histogram, share: float) -> float | None:
    """The value that `share` of the observations don't exceed, straight between a bucket's ends; None without any.

    What overflowed the last bucket is known only to exceed its bound, which is what comes back.
    """
    count = sum(histogram.counts)
    if count <= 0 or not histogram.bounds:
        return None
    rank = share * count
    for index, reached in enumerate(accumulate(histogram.counts)):
        if reached >= rank and histogram.counts[index] > 0:
            if index >= len(histogram.bounds):
                break
            low = histogram.bounds[index - 1] if index else 0.0
            inside = (rank - (reached - histogram.counts[index])) / histogram.counts[index]
            return low + (histogram.bounds[index] - low) * max(inside, 0.0)
    return histogram.bounds[-1]


def mean(histogram: Histogram) -> float | None:
    """Mean of the observations, None without any."""
    count = sum(histogram.counts)
    return histogram.sum / count if count > 0 else None
