"""How many workers of a pool the cluster has a place for, learned from pods that found none past their deadline.

Invariant: pure. A surplus that finds no place is taken back once, and asked for again later, each time after a longer
wait: a cluster that is full stays quiet, and one that got more GPUs is used.
"""

from __future__ import annotations

from dataclasses import dataclass

LONGEST_WAIT_SECONDS = 3600.0
FORGIVING_DEADLINES = 2
"""After so many deadlines without a pod that finds no place the next wait is a short one again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """Places for `count` workers, as far as known."""

    count: int
    until_seconds: float
    """More are asked for again from then on."""
    refusals: int
    """How often in a row a surplus found no place."""
    why: str
    """What the cluster said."""

    def holds(self, now_seconds: float) -> bool:
        """Whether no more are to be asked for now."""
        return now_seconds < self.until_seconds


def learn(
    room: Room | None, *, placed: int, unplaced: int, why: str, now_seconds: float, deadline_seconds: float
) -> Room | None:
    """What is known after a pass in which `unplaced` pods, beside `placed`, had found no place past the deadline."""
    if unplaced:
        if room is not None and room.holds(now_seconds):
            return Room(count=placed, until_seconds=room.until_seconds, refusals=room.refusals, why=why)
        refusals = 1 if room is None else room.refusals + 1
        wait = deadline_seconds * 2.0 ** (refusals - 1)
        until = now_seconds + min(wait, max(LONGEST_WAIT_SECONDS, deadline_seconds))
        return Room(count=placed, until_seconds=until, refusals=refusals, why=why)
    if room is not None and now_seconds < room.until_seconds + FORGIVING_DEADLINES * deadline_seconds:
        return room
    return None
