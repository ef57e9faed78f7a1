"""The load that bursts bring, where following the load comes too late for them.

A worker that is asked for when a burst is seen serves a cold start later; where bursts are that short, only capacity
that is kept between them meets their objectives. Whether a load is like that is told by back-test: which of the
remembered windows would have found too few workers if the load had only been followed? What is kept is the least that
would have left no more of the requests short than the attainment goal allows.

Invariant: no load that can be followed (steady, noisy, or moving slowly against a cold start) keeps anything; nothing
more is kept than some remembered window asked for (and room above it while few were seen), nor longer than a burst's
return may be expected from what was seen; and a further sample of calm never raises it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from duet_operator.planner.load import Load

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from duet_operator.planner.types import DemandSample

FOLLOWED_RATIO = 1.5
"""How far a window may be above those that were followed and still be carried by the room that sizing leaves."""
FEWEST_REQUESTS = 10
"""In a window that tells a burst: single requests far apart all come out of nothing."""
FIRST_RETURN_STARTS = 2.0
"""Cold starts for which a burst that came once is remembered: to keep a worker idle for a few is the lesser evil."""
RETURN_GAPS = 2.0
"""How many times the longest gap so far the next one may be."""
UNSEEN_HEIGHT = 0.5
"""Room above the highest burst once they return: of n alike the next one is the highest with probability 1/(n+1)."""
NOTHING = Load(requests=0.0, input_tokens=0.0, output_tokens=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bursts:
    """What is kept for bursts, and from how many of them."""

    load: Load = NOTHING
    seen: int = 0
    share: float = 0.0
    """Of the requests: in windows that following would have left short."""


def expected_bursts(
    samples: Sequence[DemandSample],
    *,
    now_seconds: float,
    window_seconds: float,
    lead_seconds: float,
    kept_seconds: float,
    miss_share: float,
) -> Bursts:
    """The load to keep room for. Each of the `samples` tells of so long a window before it; workers come `lead_seconds`
    after they are asked for, and stay for `kept_seconds` after they were last needed."""
    requests = _requests(samples, window_seconds)
    surprising = _surprising(samples, window_seconds, lead_seconds=lead_seconds, kept_seconds=kept_seconds)
    short = [index for index, surprises in enumerate(surprising) if surprises]
    total, came_short = sum(requests), sum(requests[index] for index in short)
    if came_short <= miss_share * total:
        return Bursts()

    def level(rate: Callable[[DemandSample], float]) -> float:
        """The least rate above which the short windows hold no more requests than the goal may miss."""
        left = miss_share * total
        for value, held in sorted(((rate(samples[index]), requests[index]) for index in short), reverse=True):
            left -= held
            if left < 0:
                return value
        return 0.0

    highest = Load(
        requests=level(lambda sample: sample.requests_per_second),
        input_tokens=level(lambda sample: sample.uncached_input_tokens_per_second),
        output_tokens=level(lambda sample: sample.output_tokens_per_second),
    )
    gaps = _gaps(samples, surprising, shortest_seconds=lead_seconds + window_seconds)
    memory_seconds = max(FIRST_RETURN_STARTS * lead_seconds, RETURN_GAPS * max(gaps, default=0.0))
    # A small burst is no sign that a large one returns.
    alike = [index for index in short if FOLLOWED_RATIO * samples[index].requests_per_second >= highest.requests]
    if now_seconds - samples[alike[-1]].time_seconds > memory_seconds:
        return Bursts()
    seen = len(gaps) + 1
    room = UNSEEN_HEIGHT / (seen + 1) if seen > 1 else 0.0
    return Bursts(load=highest.scaled(1 + room), seen=seen, share=came_short / total)


def _requests(samples: Sequence[DemandSample], window_seconds: float) -> list[float]:
    """How many requests each sample tells of that the one before it didn't: passes come oftener than windows end."""
    since = [later.time_seconds - earlier.time_seconds for earlier, later in pairwise(samples)]
    return [
        sample.requests_per_second * min(seconds, window_seconds)
        for sample, seconds in zip(samples, (window_seconds, *since), strict=False)
    ]


def _surprising(
    samples: Sequence[DemandSample], window_seconds: float, *, lead_seconds: float, kept_seconds: float
) -> list[bool]:
    """Which samples would have found too few workers if the load had only been followed."""
    prompts, requests = (
        _surprises(samples, values, lead_seconds, kept_seconds)
        for values in (
            [sample.uncached_input_tokens_per_second for sample in samples],
            [sample.requests_per_second for sample in samples],
        )
    )
    return [
        (one or other) and sample.requests_per_second * window_seconds >= FEWEST_REQUESTS
        for sample, one, other in zip(samples, prompts, requests, strict=True)
    ]


def _surprises(
    samples: Sequence[DemandSample], values: Sequence[float], lead_seconds: float, kept_seconds: float
) -> list[bool]:
    """Which of them ask for more than was asked for between a lead before them and the time since which workers stay.

    What nothing was known of a lead before isn't judged: a first load is no burst.
    """
    times = [each.time_seconds for each in samples]
    highest: deque[int] = deque()
    found, known = [], 0
    for index, time in enumerate(times):
        until = bisect_right(times, time - lead_seconds)
        for earlier in range(known, until):
            while highest and values[highest[-1]] <= values[earlier]:
                highest.pop()
            highest.append(earlier)
        known = until
        while highest and times[highest[0]] < time - lead_seconds - kept_seconds:
            highest.popleft()
        followed = values[highest[0]] if highest else 0.0
        found.append(known > 0 and values[index] > FOLLOWED_RATIO * followed)
    return found


def _gaps(samples: Sequence[DemandSample], surprising: Sequence[bool], *, shortest_seconds: float) -> list[float]:
    """From burst to burst: a new one comes after a lull, and not closer to the last than a lead and a window."""
    gaps: list[float] = []
    last: DemandSample | None = None
    lull = False
    for sample, surprises in zip(samples, surprising, strict=True):
        if surprises:
            if last and lull and (gap := sample.time_seconds - last.time_seconds) > shortest_seconds:
                gaps.append(gap)
            last, lull = sample, False
        elif last:
            lull = lull or FOLLOWED_RATIO * sample.requests_per_second < last.requests_per_second
    return gaps
