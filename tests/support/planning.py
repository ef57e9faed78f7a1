"""Values for planner tests: one GPU's step model, observations, and a toy world that obeys decisions."""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from tests.support.step_times import LinearSteps

from duet_engine.slo import Objective
from duet_operator.planner.plan import plan
from duet_operator.planner.types import (
    Attainment,
    Decision,
    Demand,
    Observation,
    Performance,
    PlannerMemory,
    PlanSpec,
    PoolBounds,
    PoolState,
    WorkerPerformance,
)

GPU = LinearSteps(
    prefill_base_seconds=0.0046,
    prefill_per_token_seconds=1.83e-5,
    prefill_per_token_squared_seconds=5.8e-10,
    decode_base_seconds=0.0065,
    decode_per_request_seconds=7.7e-6,
    decode_per_context_token_seconds=4.2e-8,
    transfer_base_seconds=0.002,
    transfer_per_token_seconds=5e-6,
)
SLICED_GPU = LinearSteps(
    prefill_base_seconds=7 * GPU.prefill_base_seconds,
    prefill_per_token_seconds=7 * GPU.prefill_per_token_seconds,
    prefill_per_token_squared_seconds=7 * GPU.prefill_per_token_squared_seconds,
    decode_base_seconds=4 * GPU.decode_base_seconds,
    decode_per_request_seconds=7 * GPU.decode_per_request_seconds,
    decode_per_context_token_seconds=4 * GPU.decode_per_context_token_seconds,
    transfer_base_seconds=GPU.transfer_base_seconds,
    transfer_per_token_seconds=GPU.transfer_per_token_seconds,
)
"""A seventh of its SMs and a quarter of its bandwidth."""
WHOLE = WorkerPerformance(steps=GPU, kv_capacity_tokens=450_000, max_running_requests=256, chunked_prefill_tokens=8192)
SLICE = WorkerPerformance(
    steps=SLICED_GPU,
    kv_capacity_tokens=40_000,
    max_running_requests=64,
    chunked_prefill_tokens=2048,
)
SLICES = Performance(prefill=SLICE, decode=SLICE)


def spec(**changes: Any) -> PlanSpec:
    """A spec as the smallest object has it, with quick times."""
    values: dict[str, Any] = {
        "objective": Objective(ttft_seconds=0.8, itl_seconds=0.05),
        "attainment_goal": 0.99,
        "prefill": PoolBounds(min_replicas=0, max_replicas=20),
        "decode": PoolBounds(min_replicas=1, max_replicas=20),
        "deflection_enabled": True,
        "interval_seconds": 5.0,
        "stabilization_seconds": 180.0,
        "cold_start_guess_seconds": 60.0,
    }
    return PlanSpec(**values | changes)


def bounds(lowest: int, highest: int, **changes: Any) -> PoolBounds:
    return PoolBounds(min_replicas=lowest, max_replicas=highest, **changes)


def demand(
    requests_per_second: float, *, input_tokens: float = 1000.0, output_tokens: float = 200.0, **changes: Any
) -> Demand:
    """Traffic of equal requests, seen over one interval."""
    values: dict[str, Any] = {
        "window_seconds": 5.0,
        "requests_per_second": requests_per_second,
        "input_tokens_per_second": requests_per_second * input_tokens,
        "cached_tokens_per_second": 0.0,
        "output_tokens_per_second": requests_per_second * output_tokens,
        "mean_input_tokens": input_tokens,
        "mean_output_tokens": output_tokens,
        "p95_input_tokens": 2 * input_tokens,
    }
    return Demand(**values | changes)


def serving(replicas: int, **changes: Any) -> PoolState:
    """A pool all of whose workers are ready."""
    return PoolState(**{"replicas": replicas, "ready": replicas} | changes)


def seen(prefill: int | PoolState = 1, decode: int | PoolState = 1, **changes: Any) -> Observation:
    """A quiet observation; so many ready workers, or pools in the given states."""
    values: dict[str, Any] = {
        "now_seconds": 1_000_000.0,
        "prefill": serving(prefill) if isinstance(prefill, int) else prefill,
        "decode": serving(decode) if isinstance(decode, int) else decode,
        "demand": demand(0.0),
        "deflection_active": decode != 0,
    }
    return Observation(**values | changes)


def decide(
    observation: Observation, *, spec: PlanSpec, memory: PlannerMemory | None = None, performance: Performance = SLICES
) -> Decision:
    return plan(observation, memory or PlannerMemory(), spec, performance)


@dataclass
class Toy:
    """A world that does what decisions say: pods start after a cold start, and stop at once."""

    spec: PlanSpec
    load: Callable[[float], Demand]
    performance: Performance = SLICES
    cold_start_seconds: float = 60.0
    now_seconds: float = 1_000_000.0
    prefill: list[float] = field(default_factory=lambda: [0.0])
    """When each prefill pod is ready."""
    decode: list[float] = field(default_factory=lambda: [0.0])
    memory: PlannerMemory = field(default_factory=PlannerMemory)
    counts: list[tuple[int, int]] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    attainment: Attainment | None = None

    def run(self, seconds: float) -> None:
        """Passes for so long."""
        end = self.now_seconds + seconds
        while self.now_seconds < end:
            self.step()

    def step(self) -> Decision:
        """One pass."""
        observation = Observation(
            now_seconds=self.now_seconds,
            prefill=self._state(self.prefill),
            decode=self._state(self.decode),
            demand=self.load(self.now_seconds),
            attainment=self.attainment,
            deflection_active=any(ready <= self.now_seconds for ready in self.decode),
            cold_start_p90_seconds=self.cold_start_seconds,
        )
        decision = plan(observation, self.memory, self.spec, self.performance)
        self.memory = decision.memory
        self._follow(self.prefill, decision.prefill.replicas)
        self._follow(self.decode, decision.decode.replicas)
        self.counts.append((decision.prefill.replicas, decision.decode.replicas))
        self.decisions.append(decision)
        self.now_seconds += self.spec.interval_seconds
        return decision

    def actions(self) -> int:
        """How often a count changed."""
        return sum(before != after for before, after in pairwise(self.counts))

    def _state(self, pods: list[float]) -> PoolState:
        ready = sum(at <= self.now_seconds for at in pods)
        return PoolState(replicas=len(pods), ready=ready, starting=len(pods) - ready)

    def _follow(self, pods: list[float], wanted: int) -> None:
        while len(pods) < wanted:
            pods.append(self.now_seconds + self.cold_start_seconds)
        del pods[wanted:]
