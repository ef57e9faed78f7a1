"""Who gets what of an object's workers while they aren't enough: the part of the routing plan that the gate goes by.

Invariant: worked out from the workers that are ready now and what is asked for now, whatever is on its way. Without
classes, and while nobody waits or is turned away, there is nothing to plan, and it costs nothing. A linear programme of
tens of milliseconds runs beside the loop, so that no other object waits for it.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from duet_engine.policy.class_gate import class_plans, enough_for
from duet_engine.policy.demand_window import CLEARING_SECONDS
from duet_engine.policy.pools_plan import ClassLoad, PoolWorkers, pools_plan
from duet_engine.protocol import Knobs, Role

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from duet_engine.policy.pools_plan import PoolsPlan
    from duet_engine.protocol import ClassPlan
    from duet_operator.api.v1alpha1 import DuetSpec
    from duet_operator.planner.types import Demand, Observation, Performance

DEFAULT_BETA_PERCENT: int = Knobs.model_fields["beta_percent"].default
LEAST_WEIGHT = 1

logger = logging.getLogger(__name__)


class GatePlanner:
    """One object's: it remembers whether the gate is on, so that it doesn't flap."""

    def __init__(self) -> None:
        self._on = False

    async def plan(
        self, spec: DuetSpec, observation: Observation, performance: Performance, demands: Mapping[str, Demand]
    ) -> tuple[ClassPlan, ...]:
        """Shares by class; none while there is enough for all."""
        always = spec.routing.policy == "GateAndRoute"
        wanted = spec.routing.policy == "Auto" and bool(spec.slo.classes) and (self._on or _anybody_waits(observation))
        if not always and not wanted:
            self._on = False
            return ()
        try:
            solved = await asyncio.to_thread(self._solved, spec, observation, performance, demands, always=always)
            shares = class_plans(solved)
        except ArithmeticError as error:
            logger.warning("no plan for the gate: %s", error)
            shares = ()
        self._on = bool(shares)
        return shares

    def _solved(
        self,
        spec: DuetSpec,
        observation: Observation,
        performance: Performance,
        demands: Mapping[str, Demand],
        *,
        always: bool,
    ) -> PoolsPlan:
        return pools_plan(
            list(_loads(spec, demands)),
            _pool(Role.PREFILL, observation, performance),
            _pool(Role.DECODE, observation, performance, prefills=spec.deflects and observation.deflection_active),
            step_budget_seconds=_step_budget_seconds(spec),
            enough=enough_for(on=self._on, always=always),
        )


def _anybody_waits(observation: Observation) -> bool:
    demand = observation.demand
    return demand is not None and (demand.waiting_requests > 0 or demand.rejected_requests_per_second > 0)


def _loads(spec: DuetSpec, demands: Mapping[str, Demand]) -> Iterator[ClassLoad]:
    weights = {each.name: each.weight for each in spec.slo.classes}
    for name, demand in demands.items():
        if demand.requests_per_second <= 0:
            continue
        cached_share = demand.cached_tokens_per_second / max(demand.input_tokens_per_second, 1.0)
        yield ClassLoad(
            name=name,
            arrivals_per_second=demand.requests_per_second + demand.waiting_requests / CLEARING_SECONDS,
            prompt_tokens=max(demand.mean_input_tokens * (1.0 - min(cached_share, 1.0)), 1.0),
            output_tokens=max(demand.mean_output_tokens, 1.0),
            weight=weights.get(name, LEAST_WEIGHT),
        )


def _pool(
    role: Role, observation: Observation, performance: Performance, *, prefills: bool = False
) -> PoolWorkers | None:
    worker = performance.prefill if role is Role.PREFILL else performance.decode
    ready = observation.pool(role).ready
    if worker is None or not ready:
        return None
    return PoolWorkers(
        count=ready,
        steps=worker.steps,
        chunk_tokens=worker.chunked_prefill_tokens,
        kv_capacity_tokens=worker.kv_capacity_tokens,
        most_requests=worker.max_running_requests,
        prefills=prefills,
    )


def _step_budget_seconds(spec: DuetSpec) -> float:
    """For the strictest of all classes, as gateways and engines hold it."""
    strictest = min([spec.slo.itl_milliseconds, *(each.itl_milliseconds or 10**9 for each in spec.slo.classes)])
    return (spec.deflection.beta_percent or DEFAULT_BETA_PERCENT) / 100 * strictest / 1000
