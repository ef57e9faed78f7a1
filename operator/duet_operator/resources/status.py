"""The status of a DuetDeployment, from one pass's facts.

Invariant: an absent measurement is absent here too, never zero.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from pydantic.alias_generators import to_camel

from duet_engine.protocol import Role
from duet_operator.api.v1alpha1 import (
    DecisionStatus,
    DuetStatus,
    PoolStatus,
    ResolvedStatus,
    ScaleAction,
    SloStatus,
    SummaryStatus,
    TrafficStatus,
)
from duet_operator.resources.conditions import conditions
from duet_operator.resources.findings import Facts, findings

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from duet_operator.api.v1alpha1 import DuetDeployment
    from duet_operator.planner.types import Decision, Demand
    from duet_operator.resources.rendering import Rendering

KEPT_ACTIONS = 20
MOST_LIMITS = 16


def resolved(rendering: Rendering, deployment: DuetDeployment) -> ResolvedStatus:
    """The derived values to keep; those that are in force stay, with the version that derived them."""
    pinned, images = rendering.pinned or ResolvedStatus(), rendering.images
    return ResolvedStatus(
        operator_version=pinned.operator_version or rendering.operator_version,
        engine_image=pinned.engine_image if deployment.spec.engine.image else images.engine,
        gateway_image=images.gateway,
        image_pull_secrets=images.pull_secrets,
        image_pull_policy=images.pull_policy,
        upgrade=rendering.upgrade or None,
    )


def status(
    facts: Facts, *, resolved: ResolvedStatus | None = None, actions: Iterable[ScaleAction] = (), now: datetime
) -> DuetStatus:
    """The whole status after a pass. `actions` are those of this pass."""
    deployment, observation, decision = facts.deployment, facts.observation, facts.decision
    before = deployment.status
    generation = deployment.metadata.generation
    told = DuetStatus(
        observed_generation=generation,
        conditions=conditions(findings(facts), before=before.conditions, generation=generation, now=now),
        resolved=resolved or before.resolved,
        prefill=_pool(facts, Role.PREFILL),
        decode=_pool(facts, Role.DECODE),
        slo=_slo(facts),
        summary=_summary(facts),
        traffic=_traffic(observation.demand),
        decision=_decision(decision, now),
        history=(*before.history, *actions)[-KEPT_ACTIONS:],
    )
    return _with_measurements_of(before, told) if facts.first_look and before.decision is not None else told


def _with_measurements_of(before: DuetStatus, told: DuetStatus) -> DuetStatus:
    """What is measured as it was told last, the states as they are now."""
    kept: dict[str, object] = {"slo": before.slo, "traffic": before.traffic, "decision": before.decision}
    if told.summary is not None and before.summary is not None:
        shares = {"attainment": before.summary.attainment, "deflected": before.summary.deflected}
        kept["summary"] = told.summary.model_copy(update=shares)
    for name, old, new in (("prefill", before.prefill, told.prefill), ("decode", before.decode, told.decode)):
        if old is not None and new is not None:
            kept[name] = new.model_copy(update={"recommended": old.recommended})
    return told.model_copy(update=kept)


# --- its parts ---


def _pool(facts: Facts, role: Role) -> PoolStatus:
    pool = facts.observation.pool(role)
    decided = facts.decision.prefill if role is Role.PREFILL else facts.decision.decode
    return PoolStatus(
        replicas=pool.replicas,
        ready=pool.ready,
        starting=pool.starting + pool.pending_too_long,
        draining=pool.draining,
        replacing=pool.replacing,
        desired=facts.targets.of(role),
        recommended=decided.recommended,
    )


def _slo(facts: Facts) -> SloStatus:
    attainment = facts.observation.attainment
    if attainment is None:
        return SloStatus(
            burn_rate_5m_milli=_scaled(facts.burn_rate_5m, 1000), burn_rate_1h_milli=_scaled(facts.burn_rate_1h, 1000)
        )
    return SloStatus(
        ttft_p95_milliseconds=_scaled(attainment.ttft_p95_seconds, 1000),
        itl_p95_milliseconds=_scaled(attainment.itl_p95_seconds, 1000),
        attainment_basis_points=_scaled(attainment.met_both_share, 10_000),
        burn_rate_5m_milli=_scaled(facts.burn_rate_5m, 1000),
        burn_rate_1h_milli=_scaled(facts.burn_rate_1h, 1000),
    )


def _traffic(demand: Demand | None) -> TrafficStatus | None:
    if demand is None:
        return None
    return TrafficStatus(
        requests_per_second_milli=round(1000 * demand.requests_per_second),
        input_tokens_per_second=round(demand.input_tokens_per_second),
        output_tokens_per_second=round(demand.output_tokens_per_second),
        deflected_basis_points=_scaled(_deflected_share(demand), 10_000),
    )


def _summary(facts: Facts) -> SummaryStatus:
    observation, targets = facts.observation, facts.targets
    share = observation.attainment.met_both_share if observation.attainment else None
    deflected = None if observation.demand is None else _deflected_share(observation.demand)
    return SummaryStatus(
        prefill=f"{observation.prefill.ready}/{targets.prefill}",
        decode=f"{observation.decode.ready}/{targets.decode}",
        attainment=None if share is None else f"{100 * share:.1f}%",
        deflected=None if deflected is None else f"{100 * deflected:.0f}%",
    )


def _decision(decision: Decision, now: datetime) -> DecisionStatus:
    return DecisionStatus(
        time=now,
        reason=decision.reason,
        message=decision.message,
        limited_by=decision.limited_by[:MOST_LIMITS] or None,
        inputs=_quantities(decision.inputs),
        capacity_per_replica=_quantities(decision.capacity_per_replica),
        capacity_basis=decision.capacity_basis and decision.capacity_basis.value,
        forecast=_quantities(decision.forecast),
    )


_camel = cache(to_camel)
"""Names are few, and told in every pass."""


def _quantities(numbers: Mapping[str, float]) -> dict[str, int] | None:
    return {_camel(name): round(value) for name, value in numbers.items()} or None


def _deflected_share(demand: Demand) -> float | None:
    """Share of prompts that decode workers prefilled, None where nobody asked."""
    if demand.requests_per_second <= 0:
        return None
    return min(demand.deflected_requests_per_second / demand.requests_per_second, 1.0)


def _scaled(value: float | None, factor: float) -> int | None:
    return None if value is None else round(factor * value)
