"""The load that bursts bring, where following the load comes too late for them.

A worker that is asked for when a burst is seen serves a cold start later; where bursts are that short, only capacity
that is kept between them meets their objectives. Whether a load is like that is told by back-test: which of the
remembered windows would have found too few workers if the load had only been followed? What is kept is the least that
would have left no more of the requests short than the attainment goal allows.

Invariant: no load that can be followed (steady, noisy, or moving slowly against a cold start) keeps anything; nothing
more is kept than some remembered window asked for, nor longer than a burst's return may be expected from what was seen.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from duet_operator.planner.load import Load

if TYPE_CHECKING:
    from collections.abc import Sequence

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
    windows: Sequence[DemandSample],
    *,
    now_seconds: float,
    window_seconds: float,
    lead_seconds: float,
    kept_seconds: float,
    miss_share: float,
) -> Bursts:
    """The load to keep room for. `windows` are that long and don't overlap; workers come `lead_seconds` after they are
    asked for, and stay for `kept_seconds` after they were last needed."""
    prompts = _surprises(
        windows, [each.uncached_input_tokens_per_second for each in windows], lead_seconds, kept_seconds
    )
    requests = _surprises(windows, [each.requests_per_second for each in windows], lead_seconds, kept_seconds)
    total = sum(each.requests_per_second for each in windows)
    surprising = [
        (one or other) and window.requests_per_second * window_seconds >= FEWEST_REQUESTS
        for window, one, other in zip(windows, prompts, requests, strict=True)
    ]
    short = [window for window, surprises in zip(windows, surprising, strict=True) if surprises]
    share = sum(each.requests_per_second for each in short) / total if total else 0.0
    if share <= miss_share:
        return Bursts()
    allowed = miss_share * total
    level_requests = _level(short, [each.requests_per_second for each in short], allowed)
    gaps = _gaps(windows, surprising, shortest_seconds=lead_seconds + window_seconds)
    memory_seconds = max(FIRST_RETURN_STARTS * lead_seconds, RETURN_GAPS * max(gaps, default=0.0))
    # A small burst is no sign that a large one returns.
    alike = [each.time_seconds for each in short if FOLLOWED_RATIO * each.requests_per_second >= level_requests]
    if now_seconds - alike[-1] > memory_seconds:
        return Bursts()
    seen = len(gaps) + 1
    level = Load(
        requests=level_requests,
        input_tokens=_level(short, [each.uncached_input_tokens_per_second for each in short], allowed),
        output_tokens=_level(short, [each.output_tokens_per_second for each in short], allowed),
    )
    room = UNSEEN_HEIGHT / (seen + 1) if seen > 1 else 0.0
    return Bursts(load=level.scaled(1 + room), seen=seen, share=share)


def _surprises(
    windows: Sequence[DemandSample], values: Sequence[float], lead_seconds: float, kept_seconds: float
) -> list[bool]:
    """Which windows ask for more than was asked for between a lead before them and the time since which workers stay.

    What nothing was known of a lead before isn't judged: a first load is no burst.
    """
    times = [each.time_seconds for each in windows]
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


def _gaps(windows: Sequence[DemandSample], surprising: Sequence[bool], *, shortest_seconds: float) -> list[float]:
    """From burst to burst: a new one comes after a lull, and not closer to the last than a lead and a window."""
    gaps: list[float] = []
    last: DemandSample | None = None
    lull = False
    for window, surprises in zip(windows, surprising, strict=True):
        if surprises:
            if last and lull and (gap := window.time_seconds - last.time_seconds) > shortest_seconds:
                gaps.append(gap)
            last, lull = window, False
        elif last:
            lull = lull or FOLLOWED_RATIO * window.requests_per_second < last.requests_per_second
    return gaps


def _level(windows: Sequence[DemandSample], values: Sequence[float], allowed: float) -> float:
    """The least rate above which windows hold no more requests than allowed."""
    left = allowed
    for value, requests in sorted(
        zip(values, (each.requests_per_second for each in windows), strict=True), reverse=True
    ):
        left -= requests
        if left < 0:
            return value
    return 0.0
