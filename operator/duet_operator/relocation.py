"""Moves workers off nodes that are about to go: the successor first, then the drain.

Invariant: pure. A pool never has fewer workers that serve than it should because of a move: each successor is ready
before its predecessor drains. The count without the successors stands in an annotation of the pool's Deployment before
the count grows, so that no pass, and no other operator, takes them for workers that are wanted for good.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from duet_engine.protocol import Role

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from duet_operator.planner.types import Counts, Observation, PlanSpec
    from duet_operator.pods import Pod
    from duet_operator.pool_sight import PoolSight


@dataclass(frozen=True, slots=True, kw_only=True)
class Relocation:
    """One pool's move in one pass."""

    target: int
    """What its count should be now."""
    leaving: frozenset[str] = frozenset()
    """Uids of the pods that drain now, as their successors are ready."""
    note: str | None = None
    """For the Deployment's annotation; None where no successor is there, nor wanted."""
    wanted: int
    """What its count is to be in the end."""

    def why(self, pool: PoolSight) -> str | None:
        """Why the pool's count changes now, where that's for the move."""
        if self.note is None or self.wanted != pool.base_replicas:
            return None
        return (
            "successors for workers on nodes that are about to go"
            if self.target > pool.replicas
            else ("workers left nodes that are about to go, as their successors serve")
        )


def relocate(
    pools: Mapping[Role, PoolSight],
    targets: Counts,
    *,
    nodes: Collection[str],
    observation: Observation,
    spec: PlanSpec,
    may_move: bool,
) -> dict[Role, Relocation]:
    """Both pools' moves. Not `may_move`: all stays as it is, as in a roll-out or where nothing may be changed."""
    spare = _spare_gpus(targets, observation, spec)
    moves: dict[Role, Relocation] = {}
    for role in (Role.DECODE, Role.PREFILL):
        pool, target, gpus = pools[role], targets.of(role), spec.pool(role).gpus_per_replica
        if not may_move:
            moves[role] = _stay(pool, target)
            continue
        there = [pod for pod in pool.alive if pod.node in nodes]
        successors = len(there) if spare is None else min(len(there), max(spare, 0) // gpus)
        room = observation.pool(role).room
        if room is not None:
            successors = min(successors, max(room - target, 0))
        if spare is not None:
            spare -= successors * gpus
        moves[role] = _move(pool, there, target=target, successors=successors)
    return moves


def _stay(pool: PoolSight, target: int) -> Relocation:
    """Nothing begins, and successors that are there already are kept."""
    if pool.base_replicas == pool.replicas or target >= pool.replicas:
        return Relocation(wanted=target, target=target)
    note = f"{max(target, pool.base_replicas)}/{pool.replicas}"
    return Relocation(wanted=target, target=pool.replicas, note=note)


def _move(pool: PoolSight, there: list[Pod], *, target: int, successors: int) -> Relocation:
    elsewhere = [pod for pod in pool.alive if pod not in there]
    serving = sum(pod.ready and pod.draining_since_seconds is None for pod in elsewhere)
    replaced = min(max(serving + len(there) - target, 0), len(there))
    leaving = sorted(there, key=_nearest_to_gone)[:replaced]
    most = max(target + successors, pool.replicas)
    return Relocation(
        wanted=target,
        target=max(target + successors - replaced, target),
        leaving=frozenset(pod.uid for pod in leaving),
        note=f"{target}/{most}" if most > target and (successors or pool.base_replicas < pool.replicas) else None,
    )


def _nearest_to_gone(pod: Pod) -> tuple[bool, bool, str]:
    return (pod.draining_since_seconds is None, pod.ready, pod.name)


def _spare_gpus(targets: Counts, observation: Observation, spec: PlanSpec) -> int | None:
    """GPUs of the budget that nobody has or is to get; None without a budget."""
    if spec.max_gpus is None:
        return None
    held = sum(
        spec.pool(role).gpus_per_replica
        * (max(targets.of(role), observation.pool(role).replicas) + observation.pool(role).terminating)
        for role in (Role.PREFILL, Role.DECODE)
    )
    return spec.max_gpus - held
