"""The live planner inside a simulation: what a run shows becomes what the operator's signals would tell.

Invariant: `planner.plan` is called as the control loop calls it, with the same windows; nothing is known here that the
operator couldn't know, and the simulation's own truth (step times, coming arrivals) least of all.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

import numpy as np

from duet_engine.policy.estimates import unloaded_pair_seconds
from duet_engine.simulator.scenario import Replicas
from duet_operator.planner.plan import plan
from duet_operator.planner.types import (
    Attainment,
    Demand,
    Observation,
    PlannerMemory,
    PoolState,
)
from duet_operator.settings import Settings
from duet_operator.signals.cold_start import MOST_SAMPLES, ColdStarts

if TYPE_CHECKING:
    from collections.abc import Iterable

    from duet_engine.simulator.scenario import EndedRequest, PoolView
    from duet_engine.simulator.scenario import Observation as Seen
    from duet_operator.planner.types import Performance, Planner, PlanSpec


@dataclass(slots=True)
class _Window:
    """What was seen over the last seconds, as gateways count it."""

    seconds: float
    seen: deque[Seen]

    def add(self, observation: Seen) -> None:
        self.seen.append(observation)
        while self.seen and self.seen[0].now_seconds <= observation.now_seconds - self.seconds:
            self.seen.popleft()

    @property
    def length_seconds(self) -> float:
        return sum(each.window_seconds for each in self.seen)

    @property
    def ended(self) -> list[EndedRequest]:
        return [request for each in self.seen for request in each.ended]

    @property
    def arrived_input_tokens(self) -> list[int]:
        return [tokens for each in self.seen for tokens in each.arrived_input_tokens]


class LivePlanner:
    """The operator's planner, in Auto mode; remembers as the operator does."""

    def __init__(self, spec: PlanSpec, performance: Performance, *, decide: Planner = plan) -> None:
        settings = Settings()
        self._decide = decide
        self._spec, self._performance = spec, performance
        self._demand = _Window(settings.demand_window_for(spec.interval_seconds), deque())
        self._lengths = _Window(max(settings.attainment_window_seconds, self._demand.seconds), deque())
        self._cold_starts = ColdStarts()
        self._memory = PlannerMemory()

    def plan(self, observation: Seen) -> Replicas:
        """One pass of the control loop."""
        self._demand.add(observation)
        self._lengths.add(observation)
        measured = (*self._cold_starts.seconds, *observation.cold_starts_seconds)
        self._cold_starts = ColdStarts(measured[-MOST_SAMPLES:])
        decision = self._decide(self._observation(observation), self._memory, self._spec, self._performance)
        self._memory = decision.memory
        return Replicas(prefill=decision.prefill.replicas, decode=decision.decode.replicas, reason=decision.message)

    def _observation(self, seen: Seen) -> Observation:
        deflects = self._spec.deflection_enabled and seen.decode.ready > 0
        return Observation(
            now_seconds=seen.now_seconds,
            prefill=_pool_state(seen.prefill),
            decode=_pool_state(seen.decode),
            demand=self._demand_seen(seen),
            attainment=self._attainment(),
            cold_start_p90_seconds=self._cold_starts.p90_seconds,
            deflection_active=deflects,
        )

    def _demand_seen(self, seen: Seen) -> Demand | None:
        seconds = self._demand.length_seconds
        if seconds <= 0:
            return None
        inputs, ended = self._demand.arrived_input_tokens, self._demand.ended
        deflected = [request for request in ended if request.deflected]
        return Demand(
            window_seconds=seconds,
            requests_per_second=len(inputs) / seconds,
            input_tokens_per_second=sum(inputs) / seconds,
            cached_tokens_per_second=sum(request.cached_tokens for request in ended) / seconds,
            output_tokens_per_second=sum(each.output_tokens for each in self._demand.seen) / seconds,
            mean_input_tokens=float(np.mean(inputs)) if inputs else 0.0,
            mean_output_tokens=_mean(request.output_tokens for request in self._lengths.ended if request.succeeded),
            p95_input_tokens=float(np.percentile(inputs, 95)) if inputs else 0.0,
            deflected_requests_per_second=len(deflected) / seconds,
            deflected_tokens_per_second=sum(each.input_tokens - each.cached_tokens for each in deflected) / seconds,
            waiting_requests=seen.waiting_requests,
            waiting_tokens=seen.waiting_tokens,
        )

    def _attainment(self) -> Attainment:
        ended = self._demand.ended
        missed = [request for request in ended if not (request.ttft_met and request.itl_met)]
        return Attainment(
            window_seconds=self._demand.length_seconds,
            completed_requests=len(ended),
            met_both_share=1 - len(missed) / len(ended) if ended else None,
            ttft_p95_seconds=_p95(request.ttft_seconds for request in ended if request.succeeded),
            itl_p95_seconds=_p95(request.tpot_seconds for request in ended if request.succeeded),
            capacity_misses=sum(not self._infeasible(request) for request in missed),
        )

    def _infeasible(self, request: EndedRequest) -> bool:
        """Whether not even idle workers would have met its TTFT objective: more of them wouldn't help."""
        workers = self._performance.prefill or self._performance.decode
        if workers is None or request.ttft_met or not request.succeeded:
            return False
        unloaded = unloaded_pair_seconds(
            request.input_tokens, workers.steps, chunk_tokens=workers.chunked_prefill_tokens
        )
        return unloaded > self._spec.objective.ttft_objective_seconds(unloaded)


def _pool_state(view: PoolView) -> PoolState:
    return PoolState(
        replicas=view.replicas,
        ready=view.ready,
        starting=view.starting,
        draining=view.draining,
        queued_prefill_tokens=view.queued_prefill_tokens,
        running_requests=view.running_requests,
        kv_used_tokens=view.kv_used_tokens,
        headroom_tokens_per_second=view.headroom_tokens_per_second,
    )


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return float(np.mean(found)) if found else 0.0


def _p95(values: Iterable[float]) -> float | None:
    found = sorted(values)
    return found[ceil(0.95 * len(found)) - 1] if found else None
