"""How pools replace their workers: by how many at once, whether at all, and which pool goes next.

Invariant: pure. A pool that serves never goes without a worker by its own roll-out, and what it adds meanwhile stays
inside the budget. Both pools come through a new revision in proportion, as only workers of one revision work together.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

from duet_engine.protocol import Role
from duet_operator.planner.types import Counts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from duet_operator.planner.types import Observation, PlanSpec, PoolState

POOLS = (Role.DECODE, Role.PREFILL)
"""Decode first: where there is room for one more worker, it can serve alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """By how many workers a pool may be over and under its count while it rolls."""

    max_surge: int
    max_unavailable: int
    fits: bool = True
    """False: it would need a GPU beyond the budget, so its roll-out has to wait."""


def strategies(observation: Observation, counts: Counts, spec: PlanSpec) -> Mapping[Role, Strategy]:
    """For each pool; `counts` are the larger of what there is and what is wanted."""
    gpus = Counts(spec.prefill.gpus_per_replica, spec.decode.gpus_per_replica)
    room = inf
    if spec.max_gpus is not None:
        held = sum((counts.of(role) + _leaving(observation.pool(role))) * gpus.of(role) for role in POOLS)
        room = spec.max_gpus - held
    unavailable = {role: _unavailable(observation, counts, spec, role) for role in POOLS}
    surge = dict.fromkeys(POOLS, 0)
    # First what no pool can do without, then what the user would like.
    for wish in ({role: int(unavailable[role] == 0) for role in surge}, dict.fromkeys(surge, spec.max_surge)):
        for role in surge:
            more = max(min(wish[role] - surge[role], room // gpus.of(role)), 0)
            surge[role] += int(more)
            room -= more * gpus.of(role)
    return {
        role: Strategy(
            max_surge=surge[role] or int(unavailable[role] == 0),
            max_unavailable=unavailable[role],
            fits=surge[role] > 0 or unavailable[role] > 0,
        )
        for role in surge
    }


def _leaving(pool: PoolState) -> int:
    """Pods on their way out whose GPUs nobody has taken over yet."""
    standing = pool.ready + pool.starting + pool.draining + pool.pending_too_long + pool.terminating
    return min(pool.terminating, max(standing - pool.replicas, 0))


def _unavailable(observation: Observation, counts: Counts, spec: PlanSpec, role: Role) -> int:
    """Workers that may be missing: never the last one that serves, and any where nothing is served anyway."""
    prefill, decode = observation.prefill, observation.decode
    serves = decode.ready > 0 and (prefill.ready > 0 or observation.deflection_active)
    if not serves or observation.pool(role).ready == 0:
        return max(spec.max_unavailable, 1)
    return min(spec.max_unavailable, max(counts.of(role) - 1, 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a pool is with a new revision. Pods that leave count for nothing."""

    replicas: int
    max_surge: int
    old: int
    """Pods of another revision."""
    new: int
    new_ready: int


def waits(own: Progress, other: Progress) -> bool:
    """Whether a pool must stand still until the other one has caught up.

    Of n workers the first old one may leave at once, the last one when the other pool's last one may, the others evenly
    between. A pool stands still only with all its pods there: a Deployment that is paused halfway brings old ones back.
    """
    if own.old == 0 or own.new == 0 or own.old + own.new < own.replicas + own.max_surge:
        return False
    return other.replicas > 0 and _place(own.replicas - own.old, own.replicas) > _reached(other)


def _place(gone: int, replicas: int) -> float:
    """When the next old worker may leave: 0 at the beginning, 1 at the end."""
    return max(gone, 0) / (replicas - 1) if replicas > 1 else 1.0


def _reached(other: Progress) -> float:
    return inf if other.new_ready >= other.replicas else other.new_ready / max(other.replicas - 1, 1)
