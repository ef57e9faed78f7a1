"""One sentence with numbers for the person on call: what changes, what stays, and what bound it.

Invariant: a message names both pools, the present count of each, and the load and capacity it was decided from; it is
made from the same values as the decision and from nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from duet_operator.planner.reasons import CEILINGS, Reason

if TYPE_CHECKING:
    from duet_engine.protocol import Role
    from duet_operator.planner.bursts import Bursts
    from duet_operator.planner.capacity import Fleet
    from duet_operator.planner.load import Load
    from duet_operator.planner.types import Counts, PlanSpec, PoolBounds, PoolState

LEAST_TOKENS = 0.5
"""A second: less would read as 0. Answers are still expected, and prompts may wait, where no request is to come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolAccount:
    """How one pool came to its count."""

    role: Role
    state: PoolState
    bounds: PoolBounds
    lowest: int
    recommended: int
    need: int
    """What the load needs within the bounds."""
    wished: int
    """The need and its spares, whether or not there is room for them."""
    comfortable: int
    """What it needs with the margin under which a pool doesn't shrink."""
    count: int
    reason: Reason = Reason.SUFFICIENT
    limited_by: tuple[Reason, ...] = ()

    def judged(self, limited_by: tuple[Reason, ...], *, reason: Reason) -> PoolAccount:
        """The same with the reasons for it."""
        return replace(self, reason=reason, limited_by=limited_by)


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What a decision was made from."""

    spec: PlanSpec
    fleet: Fleet
    load: Load
    counts: Counts
    horizon_seconds: float
    cold_start_measured: bool
    deflected_share: float
    correction: float
    bursts: Bursts | None
    """What is kept for them, where that is more than what is expected."""


def tokens(value: float) -> str:
    """A token rate in three digits: 960, 41.2k, 1.20M."""
    if value < 1000:
        return f"{value:.0f}"
    for unit, size in (("k", 1e3), ("M", 1e6)):
        scaled = value / size
        if scaled < 999.5:
            return f"{scaled:.{2 if scaled < 10 else 1 if scaled < 100 else 0}f}{unit}"
    return f"{value / 1e9:.3g}G"


def percent(share: float) -> str:
    """A share as people write it."""
    return f"{100 * share:.0f} %"


def message(account: Account, *, prefill: PoolAccount, decode: PoolAccount) -> str:
    """The whole sentence; the pool that changes more comes first."""
    changed = prefill.count != prefill.state.replicas
    parts = [
        f"{_change(decode)}: {_decode_numbers(account)}{_limits(decode, account.spec)}",
        f"{_change(prefill)}: {_prefill_numbers(account, changed=changed)}{_limits(prefill, account.spec)}",
    ]
    if abs(prefill.count - prefill.state.replicas) > abs(decode.count - decode.state.replicas):
        parts.reverse()
    return "; ".join(parts) + _bursts(account) + "."


def _bursts(account: Account) -> str:
    """What the load is made of where bursts count for more than what is expected."""
    bursts = account.bursts
    if bursts is None:
        return ""
    times = "a burst was" if bursts.seen == 1 else f"{bursts.seen} bursts were"
    return (
        f"; {times} quicker than a cold start with {percent(bursts.share)} of the requests,"
        f" so room for {tokens(bursts.load.input_tokens)} input tok/s is kept"
    )


def held_message(observed: Counts, counts: Counts, why: str) -> str:
    """The sentence of a pass that couldn't decide."""
    changes = [
        f"{role} {_arrow(before, after)}"
        for role, before, after in (
            ("decode", observed.decode, counts.decode),
            ("prefill", observed.prefill, counts.prefill),
        )
    ]
    return f"{', '.join(changes)}: {why}."


def _change(pool: PoolAccount) -> str:
    return f"{pool.role} {_arrow(pool.state.replicas, pool.count)}"


def _arrow(before: int, after: int) -> str:
    return f"{before}→{after}" if before != after else f"stays {after}"


def _decode_numbers(account: Account) -> str:
    basis = "cold start p90" if account.cold_start_measured else "assumed cold start"
    horizon = f"{account.horizon_seconds:.0f} s ({basis})"
    if account.load.requests <= 0 and account.load.output_tokens < LEAST_TOKENS:
        return f"no requests expected in {horizon}"
    replicas = max(account.counts.decode, 1)
    return (
        f"{tokens(account.load.output_tokens)} output tok/s expected in {horizon},"
        f" one replica holds {tokens(account.fleet.output_capacity(replicas) / replicas)}"
        f" at ITL {1000 * account.spec.objective.itl_seconds:.0f} ms"
    )


def _prefill_numbers(account: Account, *, changed: bool) -> str:
    load, fleet, counts = account.load, account.fleet, account.counts
    if load.requests <= 0 and load.input_tokens < LEAST_TOKENS:
        return "no prompts expected"
    own = fleet.input_capacity(counts.prefill)
    capacity = own + fleet.deflectable(counts.decode, load)
    headroom = f"headroom {percent(max(1 - load.input_tokens / capacity, 0.0) if capacity > 0 else 0.0)}"
    if counts.prefill == 0:
        return f"decode workers take all prompts, {tokens(load.input_tokens)} input tok/s expected, {headroom}"
    deflected = f"{percent(account.deflected_share)} of prompts deflected, {headroom}"
    if not changed:
        return deflected
    return (
        f"{tokens(load.input_tokens)} input tok/s expected, one replica prefills {tokens(own / counts.prefill)}"
        f" within TTFT {1000 * account.spec.objective.ttft_seconds:.0f} ms, {deflected}"
    )


def _limits(pool: PoolAccount, spec: PlanSpec) -> str:
    clauses = (_spares(pool), *(_clause(reason, pool, spec) for reason in pool.limited_by))
    return "".join(f", {clause}" for clause in clauses if clause)


def _spares(pool: PoolAccount) -> str:
    wanted, held = pool.wished - pool.need, pool.count - pool.need
    if wanted <= 0:
        return ""
    return f"{wanted} spare" if held >= wanted else f"{max(held, 0)} of {wanted} spare"


def _clause(reason: Reason, pool: PoolAccount, spec: PlanSpec) -> str:
    needed = pool.recommended if reason in CEILINGS else pool.wished
    match reason:
        case Reason.MAX_REPLICAS:
            return f"{needed} needed but maxReplicas is {pool.bounds.max_replicas}"
        case Reason.MAX_GPUS:
            return f"{needed} needed but maxGPUs {spec.max_gpus} leaves no room"
        case Reason.PENDING_PODS:
            if pool.state.room is not None:
                return f"{needed} needed but the cluster has a place for {pool.state.room}"
            return f"{needed} needed but {pool.state.pending_too_long} pods are pending past the deadline"
        case Reason.STABILIZATION:
            return f"{needed} needed now, {pool.count} within the last {spec.stabilization_seconds:.0f} s"
        case Reason.ROLLOUT:
            return f"{needed} needed, kept during the rollout"
        case Reason.STALE_SIGNALS:
            return f"{needed} needed by what is seen, kept because a gateway didn't answer"
        case Reason.DEFLECTION_INACTIVE:
            return "kept until a decode worker reports active deflection"
        case Reason.MIN_REPLICAS:
            return f"minReplicas is {pool.bounds.min_replicas}"
        case Reason.ITL_UNMEETABLE:
            return "no worker meets this ITL even for one request"
        case Reason.TTFT_UNMEETABLE:
            return "no worker meets this TTFT even for one mean prompt"
        case _:
            return ""
