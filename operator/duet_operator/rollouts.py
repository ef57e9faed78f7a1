"""What becomes of new pod templates in one pass: applied, held, or paused until the other pool has caught up.

Invariant: pure, and decided anew in each pass from what is there, so that another operator goes on where one ended.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from duet_engine.protocol import Role
from duet_operator.planner.rolling import POOLS, Progress, strategies, waits
from duet_operator.planner.types import Counts
from duet_operator.resources.pools import rolling

if TYPE_CHECKING:
    from collections.abc import Mapping

    from duet_operator.planner.rolling import Strategy
    from duet_operator.planner.types import Observation, PlanSpec
    from duet_operator.pool_sight import PoolSight
    from duet_operator.resources.rendering import PoolManifest

Manifest = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """The pools' Deployments to apply, and what to say about it."""

    manifests: Mapping[Role, Manifest]
    begins: bool
    """A pod template changes with them, so that no count may be lowered in this pass."""
    held: str | None
    """Why new pod templates aren't applied, and what to do."""


def rollout(
    pools: Mapping[Role, PoolManifest],
    sights: Mapping[Role, PoolSight],
    *,
    observation: Observation,
    targets: Counts,
    spec: PlanSpec,
) -> Rollout:
    """What to apply of both pools."""
    # What the Deployments ask for: successors for workers on nodes that are about to go are no part of the observation.
    asked = Counts(sights[Role.PREFILL].replicas, sights[Role.DECODE].replicas)
    counts = targets.at_least(asked)
    ways = strategies(observation, counts, spec)
    held = _held(pools, ways)
    manifests = {}
    for role, pool in pools.items():
        chosen = pool.kept if role in held and pool.kept is not None else pool.wanted
        paused = not held and waits(_progress(role, pools, sights, ways), _progress(_other(role), pools, sights, ways))
        way = ways[role]
        manifests[role] = rolling(chosen, max_surge=way.max_surge, max_unavailable=way.max_unavailable, paused=paused)
    return Rollout(
        manifests=manifests,
        begins=any(pool.rolls and role not in held for role, pool in pools.items()),
        held=_why(held, ways, counts, spec) if held else None,
    )


def _held(pools: Mapping[Role, PoolManifest], ways: Mapping[Role, Strategy]) -> frozenset[Role]:
    """Pools whose new template waits. With a new revision none goes without the other: they couldn't work together."""
    rolls = {role for role, pool in pools.items() if pool.rolls}
    starved = {role for role in rolls if not ways[role].fits}
    return frozenset(rolls if starved and any(pools[role].new_revision for role in starved) else starved)


def _other(role: Role) -> Role:
    return Role.DECODE if role is Role.PREFILL else Role.PREFILL


def _progress(
    role: Role,
    pools: Mapping[Role, PoolManifest],
    sights: Mapping[Role, PoolSight],
    ways: Mapping[Role, Strategy],
) -> Progress:
    new = [pod for pod in sights[role].alive if pod.revision == pools[role].revision]
    return Progress(
        replicas=sights[role].replicas,
        max_surge=ways[role].max_surge,
        old=len(sights[role].alive) - len(new),
        new=len(new),
        new_ready=sum(pod.ready for pod in new),
    )


def _why(held: frozenset[Role], ways: Mapping[Role, Strategy], counts: Counts, spec: PlanSpec) -> str:
    """One sentence with the fix."""
    gpus = {role: spec.pool(role).gpus_per_replica for role in POOLS}
    needed = sum((counts.of(role) + int(ways[role].max_unavailable == 0)) * gpus[role] for role in POOLS)
    starved = " and ".join(sorted(role.value for role in held if not ways[role].fits))
    return (
        f"the new pod template waits, as {starved} would be without a worker meanwhile and scaling.maxGPUs"
        f" {spec.max_gpus} has no room for a successor beside the last one: raise it to {needed} for the rollout"
    )
