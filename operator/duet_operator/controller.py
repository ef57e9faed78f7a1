"""One DuetDeployment: observe, plan, act, report.

Invariant: a pass depends on the cache, the gateways' answers and this object's memory alone; run again with nothing new
it writes nothing. A child that can't be brought about is told in the status and keeps nothing else from being done.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from duet_engine.protocol import Role
from duet_operator import observing, scaling
from duet_operator.api.v1alpha1 import InvalidObjectError
from duet_operator.cluster import CONFIG_MAP, DEPLOYMENT, ClusterError
from duet_operator.engine_knobs import KnobPusher, knobs_of
from duet_operator.gate_plan import GatePlanner
from duet_operator.latest import Latest
from duet_operator.memory import Memory
from duet_operator.planner.mode import apply_mode
from duet_operator.planner.spec import for_classes, while_awake
from duet_operator.plans import PlanPusher, routing_plan
from duet_operator.reading import Reading
from duet_operator.relocation import relocate
from duet_operator.resources import names
from duet_operator.resources.config_maps import history_config_map
from duet_operator.resources.pools import RELOCATION_ANNOTATION, relocating
from duet_operator.resources.strategic_merge import InvalidTemplateError
from duet_operator.rollouts import rollout
from duet_operator.scaling import Order, Outcome, PoolScaler
from duet_operator.sight import Observer, facts
from duet_operator.upkeep import Upkeep

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from duet_operator.acting import Children
    from duet_operator.api.v1alpha1 import DuetDeployment
    from duet_operator.drain_executor import Scaled
    from duet_operator.metrics import Metrics
    from duet_operator.nodes import Nodes
    from duet_operator.planner.types import Counts, Decision, Planner, PlanSpec
    from duet_operator.pool_sight import PoolSight
    from duet_operator.relocation import Relocation
    from duet_operator.reporting import Reporter
    from duet_operator.resources.findings import Facts
    from duet_operator.resources.rendering import Rendering
    from duet_operator.settings import Settings
    from duet_operator.sight import Sight
    from duet_operator.signals.gateways import GatewayReader
    from duet_operator.trust import IssuerWatch
    from duet_operator.world import Key, World

Manifest = dict[str, Any]

UNREADABLE_INTERVAL_SECONDS = 30.0
"""Between passes of an object that can't be read; a change of it wakes at once."""

FOREIGN_SCALE = "ForeignScale"
"""Reason of the Event that tells of a count that somebody else changed."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What every controller works with."""

    world: World
    nodes: Nodes
    settings: Settings
    reader: GatewayReader
    plans: PlanPusher
    knobs: KnobPusher
    children: Children
    scaler: PoolScaler
    reporter: Reporter
    metrics: Metrics
    issuers: IssuerWatch
    planner: Planner
    now: Callable[[], datetime]


class Controller:
    """The loop's view of one object."""

    def __init__(self, key: Key, services: Services) -> None:
        self.key = key
        self._services = services
        self._reading = Reading()
        self._performance = Latest(observing.performance)
        self._gate = GatePlanner()
        self._memory = Memory(attainment_window_seconds=services.settings.attainment_window_seconds)
        self._observer = Observer(
            key,
            memory=self._memory,
            world=services.world,
            settings=services.settings,
            reader=services.reader,
            metrics=services.metrics,
            now=services.now,
        )
        self._upkeep = Upkeep(
            key,
            children=services.children,
            issuers=services.issuers,
            settings=services.settings,
            observer=self._observer,
            reading=self._reading,
        )

    async def run_pass(self) -> float:
        """One pass; returns the seconds until the next one is due."""
        duet = self._services.world.duet(self.key)
        if duet is None or "deletionTimestamp" in duet["metadata"]:
            return UNREADABLE_INTERVAL_SECONDS
        try:
            deployment = self._reading.parse(duet)
            rendering = self._upkeep.render(deployment)
        except (InvalidObjectError, InvalidTemplateError) as error:
            await self._services.reporter.reject(duet, str(error))
            return UNREADABLE_INTERVAL_SECONDS
        self._recall(deployment)
        spec = self._reading.plan_spec(deployment.spec)
        sight = await self._observer.look(deployment, spec)
        spec = while_awake(for_classes(spec, sight.signals.classes_in_use), quiet_seconds=sight.signals.quiet_seconds)
        decision = self._decide(deployment, sight, spec)
        targets = apply_mode(deployment.spec.scaling.mode, decision, sight.observation, spec)
        rolled = rollout(rendering.pools, sight.pools, observation=sight.observation, targets=targets, spec=spec)
        moves = self._relocate(deployment, sight, targets, spec, rollout_begins=rolled.begins)
        pools = {role: relocating(manifest, moves[role].note) for role, manifest in rolled.manifests.items()}
        problems = await self._upkeep.keep(deployment, rendering.plain, pools, draining=sight.draining, first=targets)
        await self._tell_of_others(duet, sight, moves, mode=deployment.spec.scaling.mode)
        outcomes = await self._scale(deployment, sight, moves, rollout_begins=rolled.begins, problems=problems)
        await self._advise(duet, deployment, sight, decision)
        found = facts(
            deployment,
            sight,
            problems=problems,
            decision=decision,
            targets=targets,
            applied=self._observer.template_changed(sight),
            newer_templates=rendering.newer,
            rollout=rolled,
            held={role: moves[role].waits(outcome.held) for role, outcome in outcomes.items() if outcome.held},
        )
        scaled = {role: outcome.scaled for role, outcome in outcomes.items() if outcome.scaled is not None}
        await self._report(duet, found, rendering=rendering, scaled=scaled)
        self._services.metrics.decided(decision.reason)
        return float(deployment.spec.scaling.interval_seconds)

    def _decide(self, deployment: DuetDeployment, sight: Sight, spec: PlanSpec) -> Decision:
        """The planner's decision; what it's to remember is the object's memory from here on."""
        self._memory.see_mode(
            deployment.spec.scaling.mode,
            sight.observation.present,
            now_seconds=sight.observation.now_seconds,
            window_seconds=spec.stabilization_seconds,
        )
        performance = self._performance(self._memory.profiles)
        decision = self._services.planner(sight.observation, self._memory.planner, spec, performance)
        self._memory.planner = decision.memory
        return decision

    async def _report(
        self, duet: Manifest, found: Facts, *, rendering: Rendering, scaled: Mapping[Role, Scaled]
    ) -> None:
        """Tell it. Where that fails the passes go on as often as ever: drains live by their renewals."""
        try:
            await self._services.reporter.report(duet, found, rendering=rendering, scaled=scaled)
        except ClusterError as error:
            logger.warning("%s: its status can't be written: %s", self.key, error)

    async def save(self) -> None:
        """Keep the memory over a restart, if there is anything new in it."""
        duet, document = self._services.world.duet(self.key), self._memory.unsaved()
        if duet is None or document is None or "deletionTimestamp" in duet["metadata"]:
            return
        try:
            deployment = self._reading.parse(duet)
        except InvalidObjectError:
            return
        manifest = history_config_map(deployment, document)
        await self._services.children.ensure(manifest, key=self.key, uid=deployment.metadata.uid)
        self._memory.saved(document)

    def _recall(self, deployment: DuetDeployment) -> None:
        name = names.history_name(deployment.metadata.name)
        self._memory.recall(self._observer.own(CONFIG_MAP, name, uid=deployment.metadata.uid), name=str(self.key))

    # --- act ---

    def _relocate(
        self, deployment: DuetDeployment, sight: Sight, targets: Counts, spec: PlanSpec, *, rollout_begins: bool
    ) -> dict[Role, Relocation]:
        observation, mode = sight.observation, deployment.spec.scaling.mode
        obstacle = ""
        if mode == "Recommend":
            obstacle = "in scaling.mode Recommend none is asked for"
        elif observation.rollout_in_progress or rollout_begins:
            obstacle = "during a roll-out none is asked for"
        elif mode == "Auto" and (not observation.complete or observation.demand is None):
            # Where the planner holds the counts as a gateway is silent, nobody leaves either.
            obstacle = "while a gateway is silent none is asked for"
        nodes = self._services.nodes.leaving
        return relocate(sight.pools, targets, nodes=nodes, observation=observation, spec=spec, obstacle=obstacle)

    async def _scale(
        self,
        deployment: DuetDeployment,
        sight: Sight,
        moves: Mapping[Role, Relocation],
        *,
        rollout_begins: bool,
        problems: list[str],
    ) -> dict[Role, Outcome]:
        """Both pools a step nearer to their targets. Decode workers start to leave when prefill has handed over."""
        handing_over = False
        outcomes: dict[Role, Outcome] = {}
        for role in (Role.PREFILL, Role.DECODE):
            pool = sight.pools[role]
            if pool.deployment is None:
                continue
            order = self._order(deployment, sight, role, moves[role], rollout_begins=rollout_begins)
            try:
                outcome = await self._services.scaler.carry_out(order, start_allowed=not handing_over)
            except ClusterError as error:
                problems.append(str(error))
                # Nobody knows how far it got, and decode workers may be waited for.
                handing_over = True
                self._memory.forget_count(role)
                continue
            handing_over = outcome.handing_over
            outcomes[role] = outcome
            if outcome.scaled is not None:
                outcomes[role] = replace(outcome, scaled=replace(outcome.scaled, why=moves[role].why(pool)))
                self._memory.see_count(role, outcome.scaled.after, version=outcome.scaled.version)
        return outcomes

    def _order(
        self, deployment: DuetDeployment, sight: Sight, role: Role, move: Relocation, *, rollout_begins: bool
    ) -> Order:
        settings, pool, now_seconds = self._services.settings, sight.pools[role], sight.observation.now_seconds
        return Order(
            namespace=self.key.namespace,
            deployment=names.pool_name(self.key.name, role),
            sight=pool,
            target=self._reachable(move, pool, role),
            rollout_in_progress=sight.observation.rollout_in_progress or rollout_begins,
            states=sight.signals.states,
            rules=scaling.rules(deployment.spec, now_seconds=now_seconds, settle_seconds=settings.drain_settle_seconds),
            lease_seconds=settings.drain_lease_seconds(deployment.spec.scaling.interval_seconds),
            workers_on_node=Counter(each.node for seen in sight.pools.values() for each in seen.alive),
            nodes_leaving=self._services.nodes.leaving,
            replaced=move.leaving,
        )

    def _reachable(self, move: Relocation, pool: PoolSight, role: Role) -> int:
        """No successors before their note stands in the Deployment: without it they'd be wanted for good."""
        found = self._services.world.child(self.key, DEPLOYMENT.name, names.pool_name(self.key.name, role)) or {}
        noted = (found.get("metadata", {}).get("annotations") or {}).get(RELOCATION_ANNOTATION)
        if move.note in (None, noted):
            return move.target
        return min(move.target, max(move.wanted, pool.replicas))

    async def _tell_of_others(
        self, duet: Manifest, sight: Sight, moves: Mapping[Role, Relocation], *, mode: str
    ) -> None:
        """An Event where somebody else changed a count that is about to be changed again: the two would fight."""
        for role, pool in sight.pools.items():
            count = None if pool.deployment is None else pool.replicas
            before, target = self._memory.see_count(role, count, version=pool.version), moves[role].target
            if before is None or target == pool.replicas:
                continue
            note = (
                f"{role} {before}→{pool.replicas} by somebody else; scaling.mode is {mode}, so it becomes"
                f" {target}: end the other scaler, or set scaling.mode to Recommend"
            )
            await self._services.reporter.warn(duet, reason=FOREIGN_SCALE, subject=role.value, note=note)

    async def _advise(self, duet: Manifest, deployment: DuetDeployment, sight: Sight, decision: Decision) -> None:
        """Tell the gateways that answer what only the operator knows; without any, the engines what gateways would."""
        if not deployment.spec.gateway.enabled:
            decoding = [pod for pod in sight.pools[Role.DECODE].alive if pod.ready]
            await self._services.knobs.push(decoding, knobs_of(duet), now_seconds=sight.observation.now_seconds)
            return
        performance = self._performance(self._memory.profiles)
        classes = await self._gate.plan(deployment.spec, sight.observation, performance, sight.signals.class_demands)
        plan = routing_plan(
            decision,
            gateways=sight.signals.gateways,
            generation=deployment.metadata.generation,
            lease_seconds=self._services.settings.drain_lease_seconds(deployment.spec.scaling.interval_seconds),
            classes=classes,
        )
        answering = [pod for pod in self._observer.gateways() if pod.name not in sight.signals.silent]
        await self._services.plans.push(answering, plan, now_seconds=sight.observation.now_seconds)
