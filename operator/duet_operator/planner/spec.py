"""What planning reads of a DuetDeployment, in base units.

Invariant: the only place of the planner that knows the API.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from duet_engine.protocol import Role
from duet_engine.slo import Objective
from duet_operator.planner.types import PlanSpec, PoolBounds

if TYPE_CHECKING:
    from collections.abc import Iterable

    from duet_operator.api.v1alpha1 import DuetSpec, RequestClass, SloSpec


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
        idle_seconds=float(scaling.idle_seconds),
        max_surge=spec.rollout.max_surge,
        max_unavailable=spec.rollout.max_unavailable,
        classes={each.name: _class_objective(each, spec.slo) for each in spec.slo.classes},
    )


def for_classes(spec: PlanSpec, in_use: Iterable[str]) -> PlanSpec:
    """A spec whose objective is the strictest that anybody in use was promised, for each of TTFT and ITL.

    Workers are shared by all classes: a decode batch has one pace, and a prompt waits for those before it whoever sent
    them. Where nobody asks, `slo` itself holds, for whoever comes first.
    """
    promised = [spec.classes.get(name, spec.objective) for name in in_use] or [spec.objective]
    strictest = replace(
        spec.objective,
        ttft_seconds=min(each.ttft_seconds for each in promised),
        itl_seconds=min(each.itl_seconds for each in promised),
    )
    return spec if strictest == spec.objective else replace(spec, objective=strictest)


def while_awake(spec: PlanSpec, *, quiet_seconds: float) -> PlanSpec:
    """A spec that keeps one decode worker until it has been quiet for long enough; the first request wakes it again."""
    if spec.decode.min_replicas > 0 or quiet_seconds >= spec.idle_seconds:
        return spec
    return replace(spec, decode=replace(spec.decode, min_replicas=1))


def objective(slo: SloSpec) -> Objective:
    """What each request was promised."""
    percent = slo.ttft_unloaded_percent
    return Objective(
        ttft_seconds=slo.ttft_milliseconds / 1000,
        itl_seconds=slo.itl_milliseconds / 1000,
        ttft_unloaded_ratio=None if percent is None else percent / 100,
    )


def _class_objective(each: RequestClass, slo: SloSpec) -> Objective:
    """What a class doesn't say is as for all."""
    own = {"ttft_milliseconds": each.ttft_milliseconds, "itl_milliseconds": each.itl_milliseconds}
    return objective(slo.model_copy(update={name: value for name, value in own.items() if value is not None}))


def _bounds(spec: DuetSpec, role: Role) -> PoolBounds:
    pool = spec.pool(role)
    return PoolBounds(
        min_replicas=pool.min_replicas,
        max_replicas=pool.max_replicas,
        gpus_per_replica=spec.tensor_parallel_size(role),
        price_per_hour_milli=pool.gpu.price_per_hour_milli,
        manual_replicas=pool.replicas,
    )
