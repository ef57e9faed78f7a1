"""From the grounds of a decision to the decision: reasons, what limited it, the sentence and the numbers behind it.

Invariant: nothing here changes a count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from duet_engine.protocol import Role
from duet_operator.planner.explain import Account, PoolAccount, held_message, message
from duet_operator.planner.guards import limits_on
from duet_operator.planner.reasons import CEILINGS, Reason
from duet_operator.planner.sizing import carries, deflected_share
from duet_operator.planner.types import Counts, Decision, PoolDecision

if TYPE_CHECKING:
    from duet_operator.planner.capacity import Fleet
    from duet_operator.planner.guards import Guards
    from duet_operator.planner.outlook import Outlook
    from duet_operator.planner.sizing import Sizing
    from duet_operator.planner.types import Observation, PlannerMemory, PlanSpec

WHY_HELD = {
    Reason.STALE_SIGNALS: "no gateway answered, so nothing changes",
    Reason.MODEL_UNKNOWN: "no worker has told yet what it can do, so nothing changes but for the minima",
}

STANDING = (
    Reason.PENDING_PODS,
    Reason.MAX_GPUS,
    Reason.MAX_REPLICAS,
    Reason.STALE_SIGNALS,
    Reason.ROLLOUT,
    Reason.STABILIZATION,
    Reason.ITL_UNMEETABLE,
    Reason.TTFT_UNMEETABLE,
)
"""Reasons for standing still, the most important first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grounds:
    """Everything that a decision was made from, and the counts that came out."""

    observation: Observation
    spec: PlanSpec
    fleet: Fleet
    outlook: Outlook
    rules: Guards
    recommended: Counts
    need: Sizing
    wished: Counts
    comfortable: Counts
    counts: Counts


def decision(grounds: Grounds, memory: PlannerMemory) -> Decision:
    """The decision with its reasons."""
    prefill, decode = _pool(grounds, Role.PREFILL), _pool(grounds, Role.DECODE)
    share = deflected_share(grounds.outlook.load, grounds.fleet, grounds.counts)
    account = Account(
        spec=grounds.spec,
        fleet=grounds.fleet,
        load=grounds.outlook.load,
        counts=grounds.counts,
        horizon_seconds=grounds.outlook.horizon_seconds,
        cold_start_measured=grounds.observation.cold_start_p90_seconds is not None,
        deflected_share=share,
        correction=grounds.outlook.correction,
        bursts=grounds.outlook.bursts if grounds.outlook.kept_for_bursts else None,
    )
    return Decision(
        prefill=_pool_decision(prefill),
        decode=_pool_decision(decode),
        deflected_share=share,
        reason=_overall(prefill, decode),
        message=message(account, prefill=prefill, decode=decode),
        memory=memory,
        held=grounds.rules.keeps is Reason.STALE_SIGNALS and grounds.counts == grounds.observation.present,
        limited_by=tuple(dict.fromkeys((*decode.limited_by, *prefill.limited_by))),
        inputs=_inputs(grounds),
        capacity_per_replica=_capacity_per_replica(grounds),
        capacity_basis=grounds.fleet.basis,
        forecast=_forecast(grounds.outlook),
    )


def held_decision(observation: Observation, memory: PlannerMemory, *, counts: Counts, reason: Reason) -> Decision:
    """The decision of a pass that couldn't decide."""

    def pool(replicas: int) -> PoolDecision:
        return PoolDecision(replicas=replicas, recommended=replicas, reason=reason, limited_by=(reason,))

    return Decision(
        prefill=pool(counts.prefill),
        decode=pool(counts.decode),
        deflected_share=0.0,
        reason=reason,
        message=held_message(observation.present, counts, WHY_HELD[reason]),
        memory=memory,
        held=True,
        limited_by=(reason,),
    )


# --- reasons ---


def _pool(grounds: Grounds, role: Role) -> PoolAccount:
    count = grounds.counts.of(role)
    pool = PoolAccount(
        role=role,
        state=grounds.observation.pool(role),
        bounds=grounds.spec.pool(role),
        lowest=grounds.rules.limits.lowest.of(role),
        recommended=grounds.recommended.of(role),
        need=grounds.need.counts.of(role),
        wished=grounds.wished.of(role),
        comfortable=grounds.comfortable.of(role),
        count=count,
    )
    guarded = limits_on(pool, feasible=grounds.need.feasible, keeps=grounds.rules.keeps)
    limited = guarded + _unmeetable(grounds, role)
    return pool.judged(limited, reason=_reason(grounds, pool, limited))


def _unmeetable(grounds: Grounds, role: Role) -> tuple[Reason, ...]:
    """Objectives that no number of workers can meet."""
    if grounds.outlook.load.requests <= 0:
        return ()
    if role is Role.DECODE:
        return () if grounds.fleet.itl_feasible else (Reason.ITL_UNMEETABLE,)
    return () if grounds.fleet.ttft_feasible else (Reason.TTFT_UNMEETABLE,)


def _reason(grounds: Grounds, pool: PoolAccount, limited: tuple[Reason, ...]) -> Reason:
    """The one reason that bound this pool."""
    if pool.count > pool.state.replicas:
        if pool.count == pool.lowest:
            return Reason.DEFLECTION_INACTIVE if pool.lowest > pool.bounds.min_replicas else Reason.MIN_REPLICAS
        if pool.state.replicas >= pool.need:
            return Reason.SPARE_REPLICAS
        if grounds.outlook.kept_for_bursts and grounds.outlook.bursts.seen > 1:
            return Reason.BURSTS
        return Reason.BACKLOG if grounds.outlook.backlogged else Reason.LOAD_RISING
    if pool.count < pool.state.replicas:
        if limited and limited[0] in CEILINGS:
            return limited[0]
        return Reason.LOAD_FALLING
    if limited:
        return limited[0]
    if _bound_by_minimum(grounds, pool):
        return Reason.MIN_REPLICAS
    spared = pool.need < min(pool.count, pool.wished)
    if spared:
        return Reason.SPARE_REPLICAS
    return Reason.BURSTS if grounds.outlook.kept_for_bursts else Reason.SUFFICIENT


def _bound_by_minimum(grounds: Grounds, pool: PoolAccount) -> bool:
    """Whether one replica less would do, but for minReplicas."""
    if pool.count == 0 or pool.count != pool.bounds.min_replicas:
        return False
    one = Counts(int(pool.role is Role.PREFILL), int(pool.role is Role.DECODE))
    fewer = Counts(grounds.counts.prefill - one.prefill, grounds.counts.decode - one.decode)
    return carries(grounds.outlook.load, grounds.fleet, fewer)


def _overall(prefill: PoolAccount, decode: PoolAccount) -> Reason:
    """The reason of the whole: of the pool that changes, else of the one that is limited."""
    change = {pool.role: pool.count - pool.state.replicas for pool in (prefill, decode)}
    if change[Role.PREFILL] * change[Role.DECODE] < 0:
        return Reason.REBALANCED
    by_weight = sorted((decode, prefill), key=lambda pool: -abs(change[pool.role]))
    if change[by_weight[0].role] != 0:
        return by_weight[0].reason
    reasons = [pool.reason for pool in (decode, prefill)]
    for reason in STANDING:
        if reason in reasons:
            return reason
    return reasons[0]


def _pool_decision(pool: PoolAccount) -> PoolDecision:
    return PoolDecision(
        replicas=pool.count, recommended=pool.recommended, reason=pool.reason, limited_by=pool.limited_by
    )


# --- numbers ---


def _inputs(grounds: Grounds) -> dict[str, float]:
    demand, lengths = grounds.observation.demand, grounds.fleet.lengths
    backlog_tokens = grounds.outlook.backlog.input_tokens * grounds.outlook.horizon_seconds
    return {
        "requests_per_second_milli": 1000 * demand.requests_per_second if demand else 0.0,
        "input_tokens_per_second": demand.input_tokens_per_second if demand else 0.0,
        "cached_tokens_per_second": demand.cached_tokens_per_second if demand else 0.0,
        "output_tokens_per_second": demand.output_tokens_per_second if demand else 0.0,
        "mean_input_tokens": lengths.input_tokens,
        "mean_output_tokens": lengths.output_tokens,
        "p95_input_tokens": lengths.p95_input_tokens,
        "backlog_tokens": backlog_tokens,
        "burst_share_percent": 100 * grounds.outlook.bursts.share,
        "correction_percent": 100 * grounds.outlook.correction,
    }


def _capacity_per_replica(grounds: Grounds) -> dict[str, float]:
    fleet, counts, load = grounds.fleet, grounds.counts, grounds.outlook.load
    prefill, decode = max(counts.prefill, 1), max(counts.decode, 1)
    return {
        "decode_batch_requests": fleet.decode_batch,
        "decode_output_tokens_per_second": fleet.output_capacity(decode) / decode,
        "decode_deflectable_tokens_per_second": fleet.deflectable(decode, load) / decode,
        "prefill_input_tokens_per_second": fleet.input_capacity(prefill) / prefill,
    }


def _forecast(outlook: Outlook) -> dict[str, float]:
    return {
        "horizon_seconds": outlook.horizon_seconds,
        "requests_per_second_milli": 1000 * outlook.load.requests,
        "uncached_input_tokens_per_second": outlook.load.input_tokens,
        "output_tokens_per_second": outlook.load.output_tokens,
        "burst_input_tokens_per_second": outlook.bursts.load.input_tokens,
        "burst_output_tokens_per_second": outlook.bursts.load.output_tokens,
    }
