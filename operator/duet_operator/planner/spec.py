"""What planning reads of a DuetDeployment, in base units.

Invariant: the only place of the planner that knows the API.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from duet_engine.protocol import Role
from duet_engine.slo import Objective
from duet_operator.planner.types import PlanSpec, PoolBounds

if TYPE_CHECKING:
    from duet_operator.api.v1alpha1 import DuetSpec, SloSpec


def plan_spec(spec: DuetSpec) -> PlanSpec:
    """The planner's view of a spec."""
    scaling = spec.scaling
    return PlanSpec(
        objective=objective(spec.slo),
        attainment_goal=spec.slo.attainment_basis_points / 10_000,
        prefill=_bounds(spec, Role.PREFILL),
        decode=_bounds(spec, Role.DECODE),
        deflection_enabled=spec.deflects,
        interval_seconds=float(scaling.interval_seconds),
        stabilization_seconds=float(scaling.scale_down.stabilization_seconds),
        cold_start_guess_seconds=float(scaling.cold_start_seconds),
        max_gpus=scaling.max_gpus,
        spare_replicas=scaling.spare_replicas,
        max_surge=spec.rollout.max_surge,
        max_unavailable=spec.rollout.max_unavailable,
    )


def objective(slo: SloSpec) -> Objective:
    """What each request was promised."""
    percent = slo.ttft_unloaded_percent
    return Objective(
        ttft_seconds=slo.ttft_milliseconds / 1000,
        itl_seconds=slo.itl_milliseconds / 1000,
        ttft_unloaded_ratio=None if percent is None else percent / 100,
    )


def _bounds(spec: DuetSpec, role: Role) -> PoolBounds:
    pool = spec.pool(role)
    return PoolBounds(
        min_replicas=pool.min_replicas,
        max_replicas=pool.max_replicas,
        gpus_per_replica=spec.tensor_parallel_size(role),
        price_per_hour_milli=pool.gpu.price_per_hour_milli,
        manual_replicas=pool.replicas,
    )
