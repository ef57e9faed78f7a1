"""What the operator remembers of one object between passes.

Invariant: all of it may be lost: pools then keep their counts until enough has been seen again. What makes that shorter
is kept in the object's history ConfigMap.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from duet_engine.protocol import Role
from duet_operator import history
from duet_operator.planner.memory import with_need
from duet_operator.planner.types import PlannerMemory
from duet_operator.resources.config_maps import read_memory_document
from duet_operator.room import Room, learn
from duet_operator.signals.cold_start import ColdStarts
from duet_operator.signals.picture import Gateways
from duet_operator.world import not_newer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from duet_engine.protocol import WorkerProfile
    from duet_operator.observing import Trouble
    from duet_operator.planner.mode import Mode
    from duet_operator.planner.types import Counts
    from duet_operator.pool_sight import PoolSight

logger = logging.getLogger(__name__)


class Memory:
    """One object's memory."""

    def __init__(self, *, attainment_window_seconds: float) -> None:
        self.gateways = Gateways(attainment_window_seconds=attainment_window_seconds)
        self.planner = PlannerMemory()
        self.profiles: Mapping[Role, WorkerProfile] = {}
        self._cold_starts = {role: ColdStarts() for role in history.POOL_ROLES}
        self.rooms: dict[Role, Room] = {}
        self._held_by: Mode | None = None
        """The mode that held the counts in the last pass, None where that was Auto."""
        self._counts: dict[Role, tuple[int, str]] = {}
        """Counts that pools were last seen with or set to, and their Deployments' resourceVersions then."""
        self._recalled = False
        self._saved: dict[str, Any] = history.to_document(history.History())

    def recall(self, config_map: Mapping[str, Any] | None, *, name: str) -> None:
        """Take up what an operator before this one saved; only the first call does anything."""
        if self._recalled:
            return
        self._recalled = True
        if config_map is None:
            return
        past, problems = history.from_document(read_memory_document(config_map))
        for problem in problems:
            logger.warning("%s: %s", name, problem)
        self.planner, self.profiles, self.rooms = past.planner, past.profiles, dict(past.rooms)
        self._held_by = past.held_by
        for role, seconds in past.cold_start_seconds.items():
            self._cold_starts[role] = ColdStarts(seconds)
        self._saved = self.document()

    def see_pools(self, pools: Mapping[Role, PoolSight]) -> None:
        """Measure the cold starts of pods that have become ready."""
        self._cold_starts = {role: self._cold_starts[role].observe(sight.pods) for role, sight in pools.items()}

    def learn_room(
        self,
        pools: Mapping[Role, PoolSight],
        lost: Mapping[Role, Trouble],
        *,
        now_seconds: float,
        deadline_seconds: float,
    ) -> dict[Role, Room]:
        """Which pools the cluster has no place for more of, for now."""
        for role, trouble in lost.items():
            known = learn(
                self.rooms.pop(role, None),
                # Not of the count: a pod beyond it, surging or not deleted yet, is among the unplaced ones too.
                placed=max(pools[role].replicas, len(pools[role].alive)) - trouble.unplaced,
                unplaced=trouble.unplaced,
                why=f"{trouble.reason}: {trouble.example}",
                now_seconds=now_seconds,
                deadline_seconds=deadline_seconds,
            )
            if known is not None:
                self.rooms[role] = known
        return {role: room for role, room in self.rooms.items() if room.holds(now_seconds)}

    def see_count(self, role: Role, replicas: int | None, *, version: str = "") -> int | None:
        """The count that a pool had when it was last seen or set, where somebody else has changed it since.

        `version` is its Deployment's: one that is no newer than what is known says nothing of anybody else.
        """
        known = self._counts.get(role)
        if replicas is None:
            self._counts.pop(role, None)
            return None
        if known is not None and not_newer(version, known[1]):
            return None
        self._counts[role] = (replicas, version)
        return None if known is None or known[0] == replicas else known[0]

    def forget_count(self, role: Role) -> None:
        """A change of it has no answer: whatever it is now may be our own doing."""
        self._counts.pop(role, None)

    def learn(self, profiles: Mapping[Role, WorkerProfile]) -> None:
        """What workers told of themselves; a pool without any worker keeps what its last one told."""
        self.profiles = {**self.profiles, **profiles}

    def see_mode(self, mode: Mode, present: Counts, *, now_seconds: float, window_seconds: float) -> None:
        """What another mode left counts as needed when Auto takes over, so that its first passes don't undo it."""
        if mode == "Auto" and self._held_by is not None:
            self.planner = with_need(self.planner, present, now_seconds=now_seconds, window_seconds=window_seconds)
        self._held_by = None if mode == "Auto" else mode

    @property
    def cold_start_p90_seconds(self) -> float | None:
        """Of the slower pool, None before the first cold start."""
        measured = [starts.p90_seconds for starts in self._cold_starts.values() if starts.p90_seconds is not None]
        return max(measured, default=None)

    def document(self) -> dict[str, Any]:
        """What is worth keeping."""
        cold_starts = {role: starts.seconds for role, starts in self._cold_starts.items() if starts.seconds}
        return history.to_document(
            history.History(
                planner=self.planner,
                cold_start_seconds=cold_starts,
                profiles=self.profiles,
                rooms=self.rooms,
                held_by=self._held_by,
            )
        )

    def unsaved(self) -> dict[str, Any] | None:
        """The document, if it isn't the one that was saved last."""
        document = self.document()
        return None if document == self._saved else document

    def saved(self, document: dict[str, Any]) -> None:
        """This document is safe."""
        self._saved = document
