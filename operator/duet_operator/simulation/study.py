"""What a file asks to be simulated, resolved: workers, objectives, bounds, workload.

Invariant: pure values. A scenario for the simulator follows from a study and a variant (who routes, who plans) alone,
so variants of one study differ in nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from duet_engine.perf.interface import weakest
from duet_engine.protocol import Role
from duet_engine.simulator.scenario import (
    ColdStart,
    EngineLimits,
    LocalPrefill,
    Pool,
    Scenario,
    StepNoise,
    WorkerDeath,
)
from duet_engine.simulator.scenario import Network as SimulatedNetwork
from duet_operator.planner.types import Counts, Performance, PlanSpec
from duet_operator.simulation.replicas import Slowed

if TYPE_CHECKING:
    from collections.abc import Callable

    from duet_engine.gateway.live_settings import LiveSettings
    from duet_engine.perf.interface import Basis
    from duet_engine.policy.deflect import DeflectionRule
    from duet_engine.simulator.scenario import DispatchPolicy, Planner
    from duet_engine.simulator.workload_document import Workload
    from duet_operator.simulation.documents import SimulationDocument
    from duet_operator.simulation.replicas import Replica

DEFAULT_WARM_UP_SECONDS = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """Who routes and who plans. None: Duet's dispatch, and counts that stay."""

    name: str
    dispatch: Callable[[Study], Callable[[], DispatchPolicy]] | None = None
    rule: Callable[[DeflectionRule], DeflectionRule] | None = None
    """What the scenario's deflection rule becomes."""
    local_prefill: bool = True
    """Whether decode workers beside a prefill pool take prompts."""
    printed_gate: bool = False
    """Gate-and-Route's gate as in the paper, always on, whether the file has classes or not."""
    planner: Callable[[Study], Planner] | None = None
    start: Callable[[Study], Counts] | None = None
    """Where a fixed size is chosen by the variant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """Everything of a file but who routes and plans."""

    name: str
    document: SimulationDocument
    workload: Workload
    spec: PlanSpec
    prefill: Replica | None
    decode: Replica
    """Unified workers where there is no separate pool."""
    unified: bool
    start: Counts
    cold_start: ColdStart
    settings: LiveSettings
    """What the gateway reads of the same spec: deflection, and objectives of classes."""
    default_routing: str
    default_planner: str
    seed: int

    @property
    def performance(self) -> Performance:
        """What planners know of the workers."""
        return Performance(
            prefill=self.prefill.performance(Role.PREFILL) if self.prefill else None,
            decode=self.decode.performance(Role.DECODE),
        )

    @property
    def rule(self) -> DeflectionRule:
        """The live gateway's."""
        return self.settings.deflection

    @property
    def bases(self) -> dict[str, Basis]:
        """What the step times rest on, by what they are for."""
        whole = Role.UNIFIED if self.unified else Role.DECODE
        found = {str(whole): self.decode.basis(whole)}
        if self.prefill is not None:
            found[str(Role.PREFILL)] = self.prefill.basis(Role.PREFILL)
        if self.unified or self.spec.deflection_enabled:
            found["chunks beside decode"] = self.decode.mixed_basis
        return found

    @property
    def basis(self) -> Basis:
        """The weakest of them."""
        return weakest(*self.bases.values())

    def scenario(self, variant: Variant) -> Scenario:
        """The study under this variant."""
        start = variant.start(self) if variant.start else self.start
        rule = variant.rule(self.rule) if variant.rule else self.rule
        planner = variant.planner
        moving = planner is not None
        document = self.document
        return Scenario(
            prefill=self._pool(self.prefill, Role.PREFILL, start.prefill, None) if self.prefill else None,
            decode=self._pool(self.decode, self._decode_role, start.decode, self._local_prefill(variant)),
            objective=self.spec.objective,
            class_objectives={name: each.objective for name, each in self.settings.classes.items()},
            rule=rule,
            dispatch=variant.dispatch(self) if variant.dispatch else None,
            gate_weights=self._gate_weights(variant),
            printed_gate=variant.printed_gate,
            planner=None if planner is None else lambda: planner(self),
            planner_interval_seconds=self.spec.interval_seconds,
            planner_data_age_seconds=document.metrics_age_seconds,
            network=SimulatedNetwork(workers_per_link=document.workers_per_link),
            noise=StepNoise(**document.noise.model_dump()),
            deaths=self._deaths(),
            seed=self.seed,
            warm_up_seconds=self.warm_up_seconds(moving=moving),
        )

    def _gate_weights(self, variant: Variant) -> dict[str, int] | None:
        """As the live gateway has a gate: with classes, or where the printed one is asked for."""
        if variant.dispatch is not None or not (variant.printed_gate or self.settings.classes):
            return None
        return {name: each.weight for name, each in self.settings.classes.items()}

    def warm_up_seconds(self, *, moving: bool) -> float:
        """How long requests aren't judged."""
        minutes = self.document.warm_up_minutes
        if minutes is not None:
            return 60.0 * minutes
        seconds = self.workload.seconds
        return DEFAULT_WARM_UP_SECONDS if moving and (seconds is None or seconds > 3 * DEFAULT_WARM_UP_SECONDS) else 0.0

    def with_start(self, counts: Counts) -> Study:
        """The same with other counts at the start."""
        return replace(self, start=counts)

    @property
    def _decode_role(self) -> Role:
        return Role.UNIFIED if self.unified else Role.DECODE

    def _local_prefill(self, variant: Variant) -> LocalPrefill | None:
        needed = self.unified or self.prefill is None
        takes = variant.local_prefill and self.spec.deflection_enabled
        return self.document.local_prefill if needed or takes else None

    def _pool(self, workers: Replica, role: Role, replicas: int, local_prefill: LocalPrefill | None) -> Pool:
        error = self.document.model_error_percent / 100
        return Pool(
            role=role,
            steps=Slowed(workers.roofline, 1 + error) if error else workers.roofline,
            believed_steps=workers.roofline if error else None,
            kv_capacity_tokens=workers.kv_capacity_tokens,
            replicas=replicas,
            limits=EngineLimits(
                chunked_prefill_tokens=workers.chunked_prefill_tokens, prefix_cache=self.document.prefix_cache
            ),
            local_prefill=local_prefill,
            cold_start=self.cold_start,
            gpus_per_replica=workers.hardware.ranks,
        )

    def _deaths(self) -> tuple[WorkerDeath, ...]:
        return tuple(
            WorkerDeath(at_seconds=60 * death.minute, role=Role(death.pool), index=death.index)
            for death in self.document.deaths
        )
