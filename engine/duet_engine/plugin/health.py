"""Whether an engine may get requests, and whether it still moves. Pure: what the processes said comes in.

Invariant: a worker is ready only when every process that it must have has said who it is and has all its hooks in
force; SGLang itself would serve on without a plugin that failed. Liveness looks at this worker's own steps alone: a
peer that is gone never makes it restart.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from duet_engine.plugin.facts import SchedulerFacts
from duet_engine.protocol import ProcessInfo

STUCK_SECONDS = 30.0


def inactive_reason(present: Iterable[ProcessInfo], expected: Collection[tuple[str, int]]) -> str | None:
    """Why Duet isn't active in this engine; None where it is in every process."""
    by_place = {(process.name, process.rank): process for process in present}
    missing = [f"{name} {rank}" for name, rank in sorted(expected) if (name, rank) not in by_place]
    if missing:
        return f"no word from {', '.join(missing)}: SGLang runs there without Duet's plugin"
    for place, process in sorted(by_place.items()):
        for hook in process.hooks:
            if not hook.active:
                return f"{place[0]} {place[1]}: {hook.target}: {hook.reason}"
    return None


def stuck_reason(schedulers: Collection[SchedulerFacts], *, now: float) -> str | None:
    """Why this worker looks stuck; None while its steps get done or there is nothing to do."""
    for rank, facts in enumerate(schedulers):
        if facts.paused:
            continue
        step_seconds = now - facts.step_started_at
        if facts.step_started_at and step_seconds > STUCK_SECONDS:
            return f"rank {rank}: a step has been under way for {step_seconds:.0f} s"
        waiting_since = max(facts.runnable_since, facts.last_step_ended_at)
        if facts.runnable_since and now - waiting_since > STUCK_SECONDS:
            return f"rank {rank}: there is work and no step has ended for {now - waiting_since:.0f} s"
    return None
