"""What the planner remembers between passes and over restarts.

Invariant: a memory is bounded in number and age whatever is fed to it, its document stays far under 200 KB, and reading
a document never fails: what can't be read is forgotten, and said.
"""

from __future__ import annotations

from dataclasses import replace
from math import isfinite
from typing import TYPE_CHECKING, Any

from duet_operator.planner.types import Counts, DemandSample, Need, PlannerMemory

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from duet_operator.planner.types import Demand

VERSION = 1
LONGEST_SECONDS = 3600.0
MOST_SAMPLES = 720
MOST_NEEDS = 240
FOUND_STARTS = 5.0
"""Cold starts for which the counts that an empty memory finds count as needed."""
LOWEST_CORRECTION, HIGHEST_CORRECTION = 0.8, 2.0


def begun(memory: PlannerMemory, present: Counts, *, now_seconds: float) -> PlannerMemory:
    """The memory itself; an empty one begins with the counts that it finds."""
    if memory.samples or memory.needs or memory.found is not None:
        return memory
    return replace(memory, found=Need(now_seconds, present.prefill, present.decode))


def found_counts(memory: PlannerMemory, *, now_seconds: float, lead_seconds: float) -> Counts:
    """The counts that the memory began with, for as long as too little was seen to tell a lull from a low load."""
    found = memory.found
    if found is None or now_seconds - found.time_seconds > FOUND_STARTS * lead_seconds:
        return Counts(0, 0)
    return Counts(found.prefill, found.decode)


def with_demand(memory: PlannerMemory, demand: Demand, *, now_seconds: float) -> PlannerMemory:
    """The memory with this window's demand; a second look at the same moment replaces the first."""
    sample = DemandSample(
        time_seconds=now_seconds,
        requests_per_second=demand.requests_per_second,
        uncached_input_tokens_per_second=max(demand.input_tokens_per_second - demand.cached_tokens_per_second, 0.0),
        # answers of a growing load aren't all out yet, and saturated workers hide what is asked of them
        output_tokens_per_second=max(
            demand.output_tokens_per_second, demand.requests_per_second * demand.mean_output_tokens
        ),
        p95_input_tokens=demand.p95_input_tokens,
    )
    recent = [
        earlier for earlier in memory.samples if now_seconds - LONGEST_SECONDS <= earlier.time_seconds < now_seconds
    ]
    return replace(memory, samples=(*recent, sample)[-MOST_SAMPLES:])


def with_need(memory: PlannerMemory, need: Counts, *, now_seconds: float, window_seconds: float) -> PlannerMemory:
    """The memory with this pass's need. Needs that a later one covers are dropped: they can't be the largest again."""
    latest = Need(now_seconds, need.prefill, need.decode)
    kept = [
        earlier
        for earlier in recent_needs(memory, now_seconds=now_seconds, window_seconds=window_seconds)
        if earlier.prefill > latest.prefill or earlier.decode > latest.decode
    ]
    return replace(memory, needs=_merged((*kept, latest)))


def recent_needs(memory: PlannerMemory, *, now_seconds: float, window_seconds: float) -> tuple[Need, ...]:
    """The needs that still count."""
    return tuple(need for need in memory.needs if now_seconds - window_seconds < need.time_seconds <= now_seconds)


def largest_need(needs: Iterable[Need]) -> Counts:
    """The largest count of each pool."""
    largest = Counts(0, 0)
    for need in needs:
        largest = largest.at_least(Counts(need.prefill, need.decode))
    return largest


def _merged(needs: tuple[Need, ...]) -> tuple[Need, ...]:
    """At most `MOST_NEEDS`: the oldest are joined into one that is as large as each and as young as the youngest."""
    surplus = len(needs) - MOST_NEEDS
    if surplus <= 0:
        return needs
    oldest, rest = needs[: surplus + 1], needs[surplus + 1 :]
    largest = largest_need(oldest)
    return (Need(oldest[-1].time_seconds, largest.prefill, largest.decode), *rest)


# --- as a document ---


def to_document(memory: PlannerMemory) -> dict[str, Any]:
    """The memory as plain JSON values; rows are [seconds, requests/s, uncached input tok/s, output tok/s, P95
    prompt tokens]."""
    return {
        "version": VERSION,
        "correction": round(memory.correction, 4),
        "samples": [
            [
                round(sample.time_seconds, 1),
                round(sample.requests_per_second, 3),
                round(sample.uncached_input_tokens_per_second, 1),
                round(sample.output_tokens_per_second, 1),
                round(sample.p95_input_tokens),
            ]
            for sample in memory.samples
        ],
        "needs": [_row(need) for need in memory.needs],
        "found": [_row(memory.found)] if memory.found else [],
    }


def _row(need: Need) -> list[float]:
    return [round(need.time_seconds, 1), need.prefill, need.decode]


def from_document(document: object) -> tuple[PlannerMemory, str | None]:
    """The memory in a document, and what of it had to be forgotten (None: nothing).

    Unknown keys are ignored and missing ones are empty, so that an older and a newer operator read each other's.
    """
    if not isinstance(document, dict):
        return PlannerMemory(), f"planner memory: expected an object, found {type(document).__name__}; starting afresh"
    problems: list[str] = []
    samples = _rows(document, "samples", width=5, problems=problems)
    needs = _rows(document, "needs", width=3, problems=problems)
    found = _rows(document, "found", width=3, problems=problems)
    correction = document.get("correction", 1.0)
    if not _is_number(correction):
        problems.append("correction isn't a number")
        correction = 1.0
    memory = PlannerMemory(
        samples=tuple(DemandSample(*row) for row in samples)[-MOST_SAMPLES:],
        needs=_merged(_needs(needs)),
        found=next(iter(_needs(found)), None),
        correction=min(max(correction, LOWEST_CORRECTION), HIGHEST_CORRECTION),
    )
    return memory, f"planner memory: {'; '.join(problems)}; forgetting that part" if problems else None


def _needs(rows: Sequence[Sequence[float]]) -> tuple[Need, ...]:
    return tuple(Need(time, int(prefill), int(decode)) for time, prefill, decode in rows)


def _rows(document: dict[str, Any], key: str, *, width: int, problems: list[str]) -> Sequence[Sequence[float]]:
    """Rows of at least `width` numbers in order of time, cut to it; a list with any other is forgotten as a whole."""
    rows = document.get(key, [])
    sound = isinstance(rows, list) and all(
        isinstance(row, list) and len(row) >= width and all(_is_number(value) and value >= 0 for value in row[:width])
        for row in rows
    )
    if not sound:
        problems.append(f"{key} aren't rows of {width} numbers")
        return []
    return sorted((row[:width] for row in rows), key=lambda row: row[0])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
