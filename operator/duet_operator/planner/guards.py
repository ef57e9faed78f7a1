"""What stands between a need and a change: bounds, budget, direction, stabilization.

Invariant: no count leaves here under its pool's minimum; a pool grows at once and as far as needed, and shrinks only to
the largest need of the stabilization window, with complete signals and outside a rollout; growth never takes more GPUs
than the budget has left beside all that runs, leaving pods included.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from duet_engine.protocol import Role
from duet_operator.planner.reasons import Reason
from duet_operator.planner.sizing import Limits, within_budget
from duet_operator.planner.types import Counts

if TYPE_CHECKING:
    from duet_operator.planner.explain import PoolAccount
    from duet_operator.planner.types import Observation, PlanSpec, PoolState


@dataclass(frozen=True, slots=True, kw_only=True)
class Guards:
    """What this pass may choose from and what forbids it to shrink a pool (None: nothing)."""

    limits: Limits
    growth_gpus: int | None
    """The budget without the GPUs of pods beyond the counts: surging or leaving ones."""
    keeps: Reason | None


def guards(observation: Observation, spec: PlanSpec, *, loaded: bool) -> Guards:
    """The guards of one pass; `loaded` tells whether anybody asks for anything."""
    lowest = lowest_counts(observation, spec, loaded=loaded)
    gpus = Counts(spec.prefill.gpus_per_replica, spec.decode.gpus_per_replica)
    limits = Limits(
        lowest=lowest,
        highest=Counts(
            _reachable(observation.prefill, lowest.prefill, spec.prefill.max_replicas),
            _reachable(observation.decode, lowest.decode, spec.decode.max_replicas),
        ),
        gpus=gpus,
        cost=_cost(spec, gpus),
        max_gpus=spec.max_gpus,
    )
    return Guards(
        limits=limits,
        growth_gpus=None if spec.max_gpus is None else spec.max_gpus - _surplus_gpus(observation, gpus),
        keeps=_keeps(observation),
    )


def lowest_counts(observation: Observation, spec: PlanSpec, *, loaded: bool) -> Counts:
    """The minima, and one prefill worker for as long as no live decode worker takes prompts."""
    awake = loaded or spec.decode.min_replicas > 0
    deflects = spec.deflection_enabled and observation.deflection_active
    return Counts(
        max(spec.prefill.min_replicas, first_prefill(spec) if awake and not deflects else 0),
        max(spec.decode.min_replicas, int(awake)),
    )


def first_prefill(spec: PlanSpec) -> int:
    """Prefill workers for as long as no live decode worker takes prompts.

    None where the budget has room for decode alone: there it would take the GPU without which deflection never begins.
    """
    decode_gpus = max(spec.decode.min_replicas, 1) * spec.decode.gpus_per_replica
    crowded = spec.max_gpus is not None and decode_gpus + spec.prefill.gpus_per_replica > spec.max_gpus
    return 0 if crowded and spec.deflection_enabled else min(1, spec.prefill.max_replicas)


def settle(
    wished: Counts, *, need: Counts, held: Counts, observation: Observation, spec: PlanSpec, rules: Guards
) -> Counts:
    """The counts to hold from now on. Where the budget is short the need goes before the spares that are wished for.

    `held` is the largest wish of the stabilization window.
    """
    present, limits = observation.present, rules.limits
    may_shrink = rules.keeps is None
    floor = present.at_most(held).at_most(limits.highest) if may_shrink else present
    wanted = wished.at_most(limits.highest).at_least(floor).at_least(limits.lowest)
    kept = wanted.at_most(present).at_least(limits.lowest)
    if may_shrink and spec.max_gpus is not None and limits.gpus_of(kept) > spec.max_gpus:
        return _fitted(kept, need, limits)
    leaving_gpus = limits.gpus_of(present.at_least(wanted)) - limits.gpus_of(wanted)
    room = None if rules.growth_gpus is None else rules.growth_gpus - leaving_gpus
    return _fitted(wanted, need, replace(limits, lowest=kept, max_gpus=room))


def _fitted(counts: Counts, need: Counts, limits: Limits) -> Counts:
    """The counts shrunk to the budget, what is beyond the need first."""
    firm = within_budget(counts.at_most(need).at_least(limits.lowest), limits)
    return within_budget(counts, replace(limits, lowest=firm))


def limits_on(pool: PoolAccount, *, feasible: bool, keeps: Reason | None) -> tuple[Reason, ...]:
    """The guards that keep a pool from what the load asks for. `feasible`: the needed counts carry the load."""
    reasons: list[Reason] = []
    short = pool.count < pool.wished or (not feasible and pool.count < pool.recommended)
    if short:
        reasons.append(_ceiling(pool))
    if max(pool.wished, pool.comfortable) < pool.count <= pool.state.replicas:
        reasons.append(keeps or Reason.STABILIZATION)
    if pool.count == pool.lowest > pool.bounds.min_replicas and pool.role is Role.PREFILL:
        reasons.append(Reason.DEFLECTION_INACTIVE)
    return tuple(reasons)


def _ceiling(pool: PoolAccount) -> Reason:
    """What keeps a pool smaller than the load asks for."""
    state = pool.state
    if state.room is not None and pool.count >= state.room:
        return Reason.PENDING_PODS
    if state.pending_too_long and pool.count <= max(state.replicas, pool.lowest):
        return Reason.PENDING_PODS
    return Reason.MAX_REPLICAS if pool.count >= pool.bounds.max_replicas else Reason.MAX_GPUS


def _reachable(pool: PoolState, lowest: int, most: int) -> int:
    """No more pods of a kind that doesn't start, and none of those that found no place."""
    if pool.room is not None:
        most = min(most, pool.room)
    return max(min(most, pool.replicas), lowest) if pool.pending_too_long else max(most, lowest)


def _keeps(observation: Observation) -> Reason | None:
    if observation.demand is None or not observation.complete:
        return Reason.STALE_SIGNALS
    return Reason.ROLLOUT if observation.rollout_in_progress else None


def _cost(spec: PlanSpec, gpus: Counts) -> Counts:
    """Cost of one replica: its GPUs, by their price where both pools have one."""
    prefill_price, decode_price = spec.prefill.price_per_hour_milli, spec.decode.price_per_hour_milli
    if prefill_price is None or decode_price is None:
        return gpus
    return Counts(gpus.prefill * max(prefill_price, 1), gpus.decode * max(decode_price, 1))


def _surplus_gpus(observation: Observation, gpus: Counts) -> int:
    """GPUs of pods beyond the counts, those included that a rollout is about to add.

    A replacing pod holds none: it waits for its predecessor's.
    """

    def surplus(pool: PoolState) -> int:
        standing = pool.ready + pool.starting + pool.draining + pool.pending_too_long + pool.terminating
        return max(standing - pool.replicas, pool.surge)

    return surplus(observation.prefill) * gpus.prefill + surplus(observation.decode) * gpus.decode
