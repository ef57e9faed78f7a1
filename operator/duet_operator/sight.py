"""What one pass sees of an object: its pools in the cache, and what its gateways answer.

Invariant: looking writes nothing; what is worth remembering of it goes into the object's memory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from duet_engine.protocol import Role
from duet_operator import observing
from duet_operator.cluster import DEPLOYMENT
from duet_operator.history import POOL_ROLES
from duet_operator.ownership import controlled_by
from duet_operator.planner.mode import initial_counts
from duet_operator.pool_sight import PoolSight
from duet_operator.resources import names
from duet_operator.resources.findings import Facts
from duet_operator.resources.labels import GATEWAY_ROLE
from duet_operator.signals.picture import ready

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from duet_operator.api.v1alpha1 import DuetDeployment
    from duet_operator.cluster import Kind
    from duet_operator.memory import Memory
    from duet_operator.metrics import Metrics
    from duet_operator.observing import Trouble
    from duet_operator.planner.mode import Mode
    from duet_operator.planner.types import Counts, Decision, Observation, PlanSpec
    from duet_operator.pods import Pod
    from duet_operator.rollouts import Rollout
    from duet_operator.room import Room
    from duet_operator.settings import Settings
    from duet_operator.signals.gateways import GatewayReader
    from duet_operator.signals.picture import Signals
    from duet_operator.world import Key, World

Manifest = dict[str, Any]

LONGEST_WORDS = 200
_OTHER_POOL = {Role.PREFILL: Role.DECODE, Role.DECODE: Role.PREFILL}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What one pass saw."""

    pools: Mapping[Role, PoolSight]
    gateway: PoolSight
    lost: Mapping[Role, Trouble]
    rooms: Mapping[Role, Room]
    """Pools that the cluster has no place for more of, for now."""
    signals: Signals
    observation: Observation

    @property
    def rolling(self) -> Mapping[str, PoolSight]:
        """All that rolls out pods, by its name for people."""
        return {**{role.value: pool for role, pool in self.pools.items()}, GATEWAY_ROLE: self.gateway}

    def partner_of(self, name: str) -> PoolSight | None:
        """The other pool, whose GPUs this one's pods may take; the gateway has none."""
        return None if name == GATEWAY_ROLE else self.pools[_OTHER_POOL[Role(name)]]

    @property
    def draining(self) -> Mapping[Role, int]:
        """Workers of each pool that the operator drains."""
        return {
            role: sum(pod.draining_since_seconds is not None for pod in pool.alive) for role, pool in self.pools.items()
        }


class Observer:
    """Looks at one object."""

    def __init__(
        self,
        key: Key,
        *,
        memory: Memory,
        world: World,
        settings: Settings,
        reader: GatewayReader,
        metrics: Metrics,
        now: Callable[[], datetime],
    ) -> None:
        self._key = key
        self._memory = memory
        self._world = world
        self._settings = settings
        self._reader = reader
        self._metrics = metrics
        self._now = now

    async def look(self, deployment: DuetDeployment, spec: PlanSpec) -> Sight:
        """Everything that this pass goes by."""
        now_seconds = self._now().timestamp()
        pools = self._pools(deployment, spec)
        deadline = float(deployment.spec.scaling.pending_deadline_seconds)
        lost = {
            role: observing.trouble(
                pool, now_seconds=now_seconds, deadline_seconds=deadline, other=pools[_OTHER_POOL[role]]
            )
            for role, pool in pools.items()
        }
        rooms = self._memory.learn_room(pools, lost, now_seconds=now_seconds, deadline_seconds=deadline)
        signals = await self._signals(spec, pools, now_seconds)
        self._memory.see_pools(pools)
        self._memory.learn(signals.profiles)
        observation = observing.observe(
            pools,
            signals,
            lost,
            rooms=rooms,
            cold_start_p90_seconds=self._memory.cold_start_p90_seconds,
            now_seconds=now_seconds,
        )
        return Sight(
            pools=pools,
            gateway=self._gateway(deployment),
            lost=lost,
            rooms=rooms,
            signals=signals,
            observation=observation,
        )

    def _gateway(self, deployment: DuetDeployment) -> PoolSight:
        name = names.gateway_name(self._key.name)
        pods = tuple(pod for pod in self._world.pods(self._key) if pod.role == GATEWAY_ROLE)
        return PoolSight(deployment=self.own(DEPLOYMENT, name, uid=deployment.metadata.uid), pods=pods)

    def _pools(self, deployment: DuetDeployment, spec: PlanSpec) -> dict[Role, PoolSight]:
        first = initial_counts(deployment.spec.scaling.mode, spec)
        pods = self._world.pods(self._key)
        return {
            role: PoolSight(
                deployment=self.own(DEPLOYMENT, names.pool_name(self._key.name, role), uid=deployment.metadata.uid),
                pods=tuple(pod for pod in pods if pod.role == role.value),
                first_replicas=first.of(role),
            )
            for role in POOL_ROLES
        }

    def template_changed(self, sight: Sight) -> bool:
        """Whether anything has another pod template than when this pass looked at it."""
        for before in filter(None, (seen.deployment for seen in sight.rolling.values())):
            now = self._world.child(self._key, DEPLOYMENT.name, before["metadata"]["name"])
            if now is not None and before["spec"]["template"] != now["spec"]["template"]:
                return True
        return False

    def child(self, kind: str, name: str) -> Manifest | None:
        """Whatever the cache holds of that name."""
        return self._world.child(self._key, kind, name)

    def own(self, kind: Kind, name: str, *, uid: str) -> Manifest | None:
        """A child of this object; one that is left of another object of its name, or on its way out, is none."""
        found = self._world.child(self._key, kind.name, name)
        if found is None or "deletionTimestamp" in found["metadata"] or not controlled_by(found, uid):
            return None
        return found

    async def _signals(self, spec: PlanSpec, pools: Mapping[Role, PoolSight], now_seconds: float) -> Signals:
        scrape = await self._reader.read(self.gateways())
        self._metrics.scraped(answered=len(scrape.documents), failed=len(scrape.failures))
        return self._memory.gateways.see(
            scrape,
            now_seconds=now_seconds,
            window_seconds=self._settings.demand_window_for(spec.interval_seconds),
            stale_after_seconds=self._settings.document_stale_seconds(spec.interval_seconds),
            goal=spec.attainment_goal,
            worker_pods=[pod for pool in pools.values() for pod in pool.pods],
            revision=pools[Role.DECODE].revision,
        )

    def gateways(self) -> tuple[Pod, ...]:
        """The gateway pods that must answer."""
        return ready([pod for pod in self._world.pods(self._key) if pod.role == GATEWAY_ROLE])


def facts(
    deployment: DuetDeployment,
    sight: Sight,
    *,
    decision: Decision,
    targets: Counts,
    problems: Sequence[str],
    applied: bool,
    newer_templates: bool,
    rollout: Rollout,
    held: Mapping[Role, str],
) -> Facts:
    """What the report needs of the pass."""
    signals, mode = sight.signals, deployment.spec.scaling.mode
    return Facts(
        deployment=deployment,
        observation=replace(sight.observation, attainment=signals.attainment_told),
        decision=decision,
        targets=targets,
        gateways_ready=signals.gateways,
        silent_gateways=signals.silent,
        late_gateways=signals.late,
        pending={role.value: told for role in sight.pools if (told := _pending(sight, role, mode))},
        successors={role.value: pool.successors for role, pool in sight.pools.items() if pool.successors},
        held={role.value: told for role, told in held.items()},
        rollout_stuck=_stuck(deployment, sight),
        rollout_held=rollout.held,
        rollout_told=_rolling(sight),
        newer_templates=newer_templates,
        refused="; ".join(problems) or None,
        burn_rate_5m=signals.burn_rate_5m,
        burn_rate_1h=signals.burn_rate_1h,
        applied=applied,
        gateway_rolling=sight.gateway.rollout_in_progress,
        first_look=signals.first_look,
        attainment_unsettled=signals.attainment_unsettled,
    )


def _stuck(deployment: DuetDeployment, sight: Sight) -> str | None:
    """Which rollouts don't get on, why, and what to do."""
    now_seconds = sight.observation.now_seconds
    deadline = float(deployment.spec.scaling.pending_deadline_seconds)
    found = {
        name: observing.stuck(seen, now_seconds=now_seconds, deadline_seconds=deadline, other=sight.partner_of(name))
        for name, seen in sight.rolling.items()
    }
    told = [f"{name}: {why}" for name, why in found.items() if why]
    return "; ".join(told) + "; mend the spec or set it back, and the old pods serve on until then" if told else None


def _rolling(sight: Sight) -> str:
    """How far each is, and what the first of the new pods waits for."""
    told = [f"; {name}: {_progress(seen)}" for name, seen in sight.rolling.items() if seen.rollout_in_progress]
    return "".join(told)


def _progress(seen: PoolSight) -> str:
    new = seen.updated
    counts = f"{len(new)} new, {sum(pod.ready for pod in new)} of them ready, {len(seen.alive) - len(new)} old left"
    troubled = next((pod for pod in new if pod.trouble), None)
    if troubled is None:
        return counts
    words = f": {troubled.words[:LONGEST_WORDS]}" if troubled.words else ""
    return f"{counts}, {troubled.name}: {troubled.trouble}{words}"


def _pending(sight: Sight, role: Role, mode: Mode) -> str:
    """Which workers of a pool are no capacity and why, in words; empty if there are none."""
    lost, room = sight.lost[role], sight.rooms.get(role)
    if lost.pods:
        return f"{lost.pods} {'pod' if lost.pods == 1 else 'pods'}: {lost.reason} ({lost.example})"
    if room is None or mode == "Manual":
        return ""
    again = f"{datetime.fromtimestamp(room.until_seconds, UTC):%H:%M} UTC"
    then = f"more are asked for again after {again}" if mode == "Auto" else f"more are recommended again after {again}"
    return f"no place for more than {room.count} ({room.why}); {then}"
