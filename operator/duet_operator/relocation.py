"""Moves workers off nodes that are about to go: the successor first, then the drain. The same for the last worker of a
pool that somebody asked by hand to drain.

Invariant: pure. A pool never has fewer workers that serve than it should because of a move: each successor is ready
before its predecessor drains. The count without the successors stands in an annotation of the pool's Deployment before
the count grows, so that no pass, and no other operator, takes them for workers that are wanted for good.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from duet_engine.protocol import Role
from duet_operator.planner.reasons import ActionReason

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

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
    obstacle: str = ""
    """Why no successor is asked for now, where there is none."""

    def why(self, pool: PoolSight) -> tuple[ActionReason, str] | None:
        """Why the pool's count changes now, in one word and in one sentence, where that's for the move."""
        if self.note is None or self.wanted != pool.base_replicas:
            return None
        asked = any(pod.drain_requested for pod in pool.alive)
        reason, workers = (
            (ActionReason.BY_HAND, "workers that are drained by hand")
            if asked
            else (ActionReason.NODE_LEAVING, "workers on nodes that are about to go")
        )
        if self.target > pool.replicas:
            return reason, f"successors for {workers}"
        return reason, f"{workers} have left, as their successors serve"

    def waits(self, held: Sequence[str]) -> str:
        """Which drains by hand wait, and what for."""
        told = f"{', '.join(held)} drains once another worker serves"
        return f"{told} ({self.obstacle})" if self.obstacle else told


def relocate(
    pools: Mapping[Role, PoolSight],
    targets: Counts,
    *,
    nodes: Collection[str],
    observation: Observation,
    spec: PlanSpec,
    obstacle: str,
) -> dict[Role, Relocation]:
    """Both pools' moves. With an `obstacle` all stays as it is, as in a roll-out or where nothing may be changed."""
    spare = _spare_gpus(targets, observation, spec)
    moves: dict[Role, Relocation] = {}
    for role in (Role.DECODE, Role.PREFILL):
        pool, target, gpus = pools[role], targets.of(role), spec.pool(role).gpus_per_replica
        if obstacle:
            moves[role] = _stay(pool, target, obstacle)
            continue
        there = _movers(pool, nodes, target=target)
        successors = len(there) if spare is None else min(len(there), max(spare, 0) // gpus)
        missing = "" if successors else f"scaling.maxGPUs {spec.max_gpus} has no room for one more"
        room = observation.pool(role).room
        if room is not None and room - target < successors:
            successors, missing = max(room - target, 0), "the cluster has no place for one more"
        if spare is not None:
            spare -= successors * gpus
        moves[role] = _move(pool, there, target=target, successors=successors, obstacle=missing)
    return moves


def _movers(pool: PoolSight, nodes: Collection[str], *, target: int) -> list[Pod]:
    """Workers that leave when others serve in their place."""
    there = [pod for pod in pool.alive if pod.node in nodes]
    elsewhere = [pod for pod in pool.alive if pod not in there]
    by_hand = [pod for pod in elsewhere if pod.drain_requested and pod.may_hold_requests]
    if target > 0 and not any(_serves(pod) for pod in elsewhere if not pod.drain_requested):
        # One is enough: once it serves, the others drain and are replaced.
        there += by_hand[:1]
    return there


def _serves(pod: Pod) -> bool:
    return pod.ready and pod.draining_since_seconds is None


def _stay(pool: PoolSight, target: int, obstacle: str) -> Relocation:
    """Nothing begins, and successors that are there already are kept."""
    if pool.base_replicas == pool.replicas or target >= pool.replicas:
        return Relocation(wanted=target, target=target, obstacle=obstacle)
    note = f"{max(target, pool.base_replicas)}/{pool.replicas}"
    return Relocation(wanted=target, target=pool.replicas, note=note, obstacle=obstacle)


def _move(pool: PoolSight, there: list[Pod], *, target: int, successors: int, obstacle: str) -> Relocation:
    serving = sum(_serves(pod) for pod in pool.alive if pod not in there)
    replaced = min(max(serving + len(there) - target, 0), len(there))
    leaving = sorted(there, key=_nearest_to_gone)[:replaced]
    most = max(target + successors, pool.replicas)
    return Relocation(
        wanted=target,
        target=max(target + successors - replaced, target),
        leaving=frozenset(pod.uid for pod in leaving),
        note=f"{target}/{most}" if most > target and (successors or pool.base_replicas < pool.replicas) else None,
        obstacle=obstacle,
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
