"""The planner: from what was seen to how many workers of each kind, and why.

Invariant: pure. The same values give the same decision, live and simulated; no count is under its pool's minimum, and
with incomplete signals none is under the present one.

The steps: remember the demand, look a cold start ahead, size both pools together at least cost, add spares, guard,
explain. What each step assumes stands in its module.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING

from duet_operator.planner.capacity import MOST_REPLICAS, Fleet
from duet_operator.planner.forecast import mean_lengths
from duet_operator.planner.guards import Guards, guards, lowest_counts, settle
from duet_operator.planner.memory import begun, found_counts, largest_need, with_demand, with_need
from duet_operator.planner.outlook import Outlook, look_ahead
from duet_operator.planner.reasons import Reason
from duet_operator.planner.spare import size_with_spares
from duet_operator.planner.types import Counts
from duet_operator.planner.verdict import Grounds, decision, held_decision

if TYPE_CHECKING:
    from duet_operator.planner.types import (
        Decision,
        Observation,
        Performance,
        PlannerMemory,
        PlanSpec,
        WorkerPerformance,
    )

SHRINKING_MARGIN = 1.1
"""A pool shrinks only to what would hold this much more, so that a count just given up isn't needed again at once."""
MISSED_INTERVALS = 3
"""Passes that may be missed before the present counts count as needed again, as after a restart without memory."""

REMEMBERED_FLEETS = 64

_fleet = lru_cache(REMEMBERED_FLEETS)(Fleet)
"""Without traffic it's the same one pass after pass, and what it has worked out of itself needn't be again."""


def plan(observation: Observation, memory: PlannerMemory, spec: PlanSpec, performance: Performance) -> Decision:
    """How many workers each pool should have from now on."""
    demand = observation.demand
    memory = begun(memory, observation.present, now_seconds=observation.now_seconds)
    if demand is None:
        minima = Counts(spec.prefill.min_replicas, spec.decode.min_replicas)
        return _hold(observation, memory, spec, minima=minima, reason=Reason.STALE_SIGNALS)
    memory = with_demand(memory, demand, now_seconds=observation.now_seconds)
    workers = _workers(performance, spec)
    if workers is None:
        minima = lowest_counts(observation, spec, loaded=demand.requests_per_second > 0)
        return _hold(observation, memory, spec, minima=minima, reason=Reason.MODEL_UNKNOWN)
    prefill, decode = workers
    fleet = _fleet(
        prefill=prefill,
        decode=decode,
        lengths=mean_lengths(demand, memory.samples),
        objective=spec.objective,
        attainment_goal=spec.attainment_goal,
        deflection=spec.deflection_enabled and observation.deflection_active,
    )
    outlook = look_ahead(observation, demand, memory=memory, spec=spec, lengths=fleet.lengths)
    return _decide(observation, memory, spec, fleet=fleet, outlook=outlook)


def _workers(performance: Performance, spec: PlanSpec) -> tuple[WorkerPerformance, WorkerPerformance] | None:
    """Both kinds of workers. The other kind stands in for one that hasn't told, where both have equally many GPUs.

    Without a stand-in a pool of none could never grow, because only its own first worker would tell.
    """
    prefill, decode = performance.prefill, performance.decode
    if spec.prefill.gpus_per_replica == spec.decode.gpus_per_replica:
        prefill, decode = prefill or decode, decode or prefill
    return None if prefill is None or decode is None else (prefill, decode)


def _hold(
    observation: Observation, memory: PlannerMemory, spec: PlanSpec, *, minima: Counts, reason: Reason
) -> Decision:
    """The present counts, raised to the minima. They count as needed, so that nothing shrinks right afterwards."""
    counts = observation.present.at_least(minima)
    memory = _remember(memory, counts, observation, spec)
    return held_decision(observation, memory, counts=counts, reason=reason)


def _decide(
    observation: Observation, memory: PlannerMemory, spec: PlanSpec, *, fleet: Fleet, outlook: Outlook
) -> Decision:
    load, present = outlook.load, observation.present
    rules = guards(observation, spec, loaded=load.requests > 0 or load.output_tokens > 0)
    boundless = replace(rules.limits, highest=Counts(MOST_REPLICAS, MOST_REPLICAS), max_gpus=None)
    sized = partial(size_with_spares, fleet=fleet, present=present, spec=spec)
    need, wished = sized(load, limits=rules.limits)
    comfortable = sized(load.scaled(SHRINKING_MARGIN), limits=rules.limits)[1].at_least(wished)
    recommended = sized(load, limits=boundless)[1]
    # Where the bounds keep a pool too small, misses say nothing about the model.
    correction = outlook.correction if need.feasible else min(outlook.correction, memory.correction)
    memory = replace(memory, correction=correction)
    memory = _remember(memory, _to_remember(comfortable, memory, observation, spec, rules), observation, spec)
    held = largest_need(memory.needs)
    if spec.stabilization_seconds > 0:
        held = held.at_least(
            found_counts(memory, now_seconds=observation.now_seconds, lead_seconds=outlook.horizon_seconds)
        )
    counts = settle(wished, need=need.counts, held=held, observation=observation, spec=spec, rules=rules)
    grounds = Grounds(
        observation=observation,
        spec=spec,
        fleet=fleet,
        outlook=outlook,
        rules=rules,
        recommended=recommended,
        need=need,
        wished=wished,
        comfortable=comfortable,
        counts=counts,
    )
    return decision(grounds, memory)


def _to_remember(
    comfortable: Counts, memory: PlannerMemory, observation: Observation, spec: PlanSpec, rules: Guards
) -> Counts:
    """This pass's need for stabilization: the present counts too when this pass can't tell, or remembers nothing."""
    longest_gap = max(spec.stabilization_seconds, MISSED_INTERVALS * spec.interval_seconds)
    forgot = not memory.needs or observation.now_seconds - memory.needs[-1].time_seconds > longest_gap
    if rules.keeps is not None or (forgot and spec.stabilization_seconds > 0):
        return comfortable.at_least(observation.present)
    return comfortable


def _remember(memory: PlannerMemory, need: Counts, observation: Observation, spec: PlanSpec) -> PlannerMemory:
    return with_need(memory, need, now_seconds=observation.now_seconds, window_seconds=spec.stabilization_seconds)
