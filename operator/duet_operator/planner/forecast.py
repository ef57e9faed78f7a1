"""The load at the end of a cold start, from the last windows.

Invariant: a forecast is never under what the last window asked for while the load rises, and never more than half above
the highest recent window: a replica that is asked for now serves only a cold start later, and a wrong guess costs GPUs.
Falling load is followed with the delay of a few windows; lowering the counts is slower still (`guards`).
"""

from __future__ import annotations

from itertools import pairwise
from math import sqrt
from statistics import fmean, median
from typing import TYPE_CHECKING

from duet_operator.planner.lengths import Lengths
from duet_operator.planner.load import Load

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from duet_operator.planner.types import Demand, DemandSample

MOST_LEVEL_WINDOWS = 8
"""The level is a mean over about a cold start, but not over more windows than this: load that falls is to be seen."""
TREND_WINDOWS = 24
"""Enough for a trend; the work grows with its square."""
SAME_WINDOW_SHARE = 0.95
"""Windows whose ends are at least this share of their length apart count as separate: passes aren't punctual."""
FEWEST_FOR_NOISE = 5
PRIOR_NOISE_SHARE = 0.1
NOISE_QUANTILE = 1.28
"""Standard deviations (P90) of the difference between the mean of these windows and that of as many to come. What is
quicker than that is a queue's matter: capacities have room for the swings inside a window already."""
STEP_NOISE = 2.0
"""A last window this many standard deviations above those before is a step, not noise."""
GREATEST_GROWTH = 1.5
LONGEST_TOKENS = 2.0**24
"""No model's context is longer; what seems so is the quotient of two tiny rates."""
UNKNOWN_INPUT_TOKENS, UNKNOWN_OUTPUT_TOKENS = 1024.0, 256.0
"""Until somebody asked for something; only figures shown to people depend on them."""


def forecast(samples: Sequence[DemandSample], *, horizon_seconds: float, window_seconds: float) -> Load:
    """The load to be ready for in `horizon_seconds`; no samples, no load."""
    windows = spaced(samples, window_seconds)
    times = [sample.time_seconds for sample in windows]

    def expected(values: list[float]) -> float:
        return expect(times, values, horizon_seconds=horizon_seconds)

    return Load(
        requests=expected([sample.requests_per_second for sample in windows]),
        input_tokens=expected([sample.uncached_input_tokens_per_second for sample in windows]),
        output_tokens=expected([sample.output_tokens_per_second for sample in windows]),
    )


def spaced(samples: Sequence[DemandSample], window_seconds: float) -> list[DemandSample]:
    """The newest sample and those before it that don't share a window with a later one: overlapping windows would make
    noise look like a trend."""
    chosen: list[DemandSample] = []
    for sample in reversed(samples):
        gap_seconds = chosen[-1].time_seconds - sample.time_seconds if chosen else float("inf")
        if gap_seconds > 0 and gap_seconds >= SAME_WINDOW_SHARE * window_seconds:
            chosen.append(sample)
        if len(chosen) == TREND_WINDOWS:
            break
    chosen.reverse()
    return chosen


def expect(times: Sequence[float], values: Sequence[float], *, horizon_seconds: float) -> float:
    """Recent level, plus a trend that stands out of the noise, plus room for the noise."""
    if not values:
        return 0.0
    windows = _level_windows(times, horizon_seconds)
    last, level, before = values[-1], fmean(values[-windows:]), fmean(values[-windows - 1 : -1] or values)
    noise = _noise(values, level)
    since_level_seconds = (times[-1] - times[-min(windows, len(times))]) / 2
    growth = _trend(times, values, noise) * (horizon_seconds + since_level_seconds)
    rising = growth > 0 or last - before > STEP_NOISE * noise
    uncertainty = NOISE_QUANTILE * noise * sqrt(min(2 / windows, 1.0))
    wanted = max(level + growth + uncertainty, last if rising else 0.0)
    return min(wanted, GREATEST_GROWTH * max(values))


def _level_windows(times: Sequence[float], horizon_seconds: float) -> int:
    """How many windows make the level: a quick start needs no long memory."""
    spacing = times[-1] - times[-2] if len(times) > 1 else horizon_seconds
    return min(max(round(horizon_seconds / spacing), 1), MOST_LEVEL_WINDOWS)


def _noise(values: Sequence[float], level: float) -> float:
    """Standard deviation of one window, from the median step between neighbours: a jump of the load isn't noise."""
    if len(values) < FEWEST_FOR_NOISE:
        return PRIOR_NOISE_SHARE * level
    steps = [abs(later - earlier) for earlier, later in pairwise(values)]
    return median(steps) / (0.6745 * 2**0.5)


def _trend(times: Sequence[float], values: Sequence[float], noise: float) -> float:
    """Growth per second that all windows show and their later half too: then it's neither noise nor a step."""
    slope = _slope(times, values)
    if slope * (times[-1] - times[0]) <= STEP_NOISE * noise:
        return 0.0
    half = len(values) // 2
    return min(slope, max(_slope(times[half:], values[half:]), 0.0))


def _slope(times: Sequence[float], values: Sequence[float]) -> float:
    """Median of the slopes of all pairs (Theil-Sen), which a few odd windows don't move."""
    if len(values) < FEWEST_FOR_NOISE:
        return 0.0
    return median(
        (values[later] - values[earlier]) / (times[later] - times[earlier])
        for later in range(1, len(values))
        for earlier in range(later)
    )


def mean_lengths(demand: Demand, samples: Sequence[DemandSample]) -> Lengths:
    """What a typical request looks like, over all the windows that a trend is taken from: one alone is too noisy."""
    windows = spaced(samples, demand.window_seconds)
    requests = sum(sample.requests_per_second for sample in windows)
    if requests <= 0:
        return Lengths(input_tokens=UNKNOWN_INPUT_TOKENS, cached_tokens=0.0, output_tokens=UNKNOWN_OUTPUT_TOKENS)

    def mean(values: Iterable[float]) -> float:
        return min(sum(values) / requests, LONGEST_TOKENS)

    cached = 0.0
    if demand.requests_per_second > 0:
        cached = min(demand.cached_tokens_per_second / demand.requests_per_second, LONGEST_TOKENS)
    return Lengths(
        input_tokens=max(mean(sample.uncached_input_tokens_per_second for sample in windows) + cached, 1.0),
        cached_tokens=cached,
        output_tokens=max(mean(sample.output_tokens_per_second for sample in windows), 1.0),
        p95_input_tokens=mean(sample.requests_per_second * sample.p95_input_tokens for sample in windows),
    )
