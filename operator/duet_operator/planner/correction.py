"""The slow factor on demand that measured attainment earns: the step model's error, learned from results.

Invariant: stays within [0.8, 2] and moves by at most a tenth in one cold start or minute, because what it asks for
shows only after that. It rises only on misses that capacity would have prevented, and only while every worker that was
asked for serves: misses of a pool that is still starting teach nothing about the model. What no measurement confirms
any more fades: a factor learned in a burst doesn't hold replicas through the quiet time after it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from duet_operator.planner.memory import HIGHEST_CORRECTION, LOWEST_CORRECTION

if TYPE_CHECKING:
    from duet_operator.planner.types import Attainment, Observation, PlanSpec, PoolState

FEWEST_REQUESTS = 30
GREATEST_CHANGE = 0.1
SHORTEST_SETTLING_SECONDS = 60.0
"""However quick a start is, results are measured over a window, and a burst's misses over several."""
EASY_LATENCY_SHARE = 0.5
"""Latencies under this share of their objectives say that there is more capacity than the objectives need."""


def corrected(correction: float, observation: Observation, spec: PlanSpec, *, horizon_seconds: float) -> float:
    """The factor after one more pass."""
    attainment = observation.attainment
    settling_seconds = max(horizon_seconds, SHORTEST_SETTLING_SECONDS)
    change = GREATEST_CHANGE * min(spec.interval_seconds / settling_seconds, 1.0)
    if attainment is None or attainment.completed_requests < FEWEST_REQUESTS:
        return correction if attainment and attainment.capacity_misses else _faded(correction, change / 2)
    allowed = 1 - spec.attainment_goal
    missed = attainment.capacity_misses / attainment.completed_requests
    if missed > allowed:
        return min(correction * (1 + change), HIGHEST_CORRECTION) if _settled(observation) else correction
    if missed > allowed / 2:
        return correction
    if correction > 1:
        return max(correction * (1 - change / 2), 1.0)
    return max(correction * (1 - change / 2), LOWEST_CORRECTION) if _easy(attainment, spec) else correction


def _faded(correction: float, change: float) -> float:
    return max(correction * (1 - change), 1.0) if correction > 1 else min(correction * (1 + change), 1.0)


def _settled(observation: Observation) -> bool:
    """Whether all workers that were asked for serve."""

    def serves(pool: PoolState) -> bool:
        return pool.starting == 0 and pool.pending_too_long == 0 and pool.ready >= pool.replicas

    return serves(observation.prefill) and serves(observation.decode) and not observation.rollout_in_progress


def _easy(attainment: Attainment, spec: PlanSpec) -> bool:
    """Whether both latencies are far under their objectives."""
    ttft, itl = attainment.ttft_p95_seconds, attainment.itl_p95_seconds
    if ttft is None or itl is None or attainment.capacity_misses:
        return False
    objective = spec.objective
    return ttft < EASY_LATENCY_SHARE * objective.ttft_seconds and itl < EASY_LATENCY_SHARE * objective.itl_seconds
