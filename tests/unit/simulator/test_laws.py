"""Whatever the scenario: nothing gets lost, nothing appears, and a seed gives the same run again to the last bit."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.small_fleets import OBJECTIVE, PLAIN_LIMITS, pairs, pool, unified

from duet_engine.policy.baselines import Baseline
from duet_engine.protocol import Role
from duet_engine.simulator.run import simulate
from duet_engine.simulator.scenario import (
    GatewayLimits,
    LocalPrefill,
    Network,
    Observation,
    Replicas,
    Scenario,
    StepNoise,
    WorkerDeath,
    baseline_dispatch,
)
from duet_engine.simulator.workload import Request
from duet_engine.slo import Objective, Outcome, judge

NOISE = StepNoise(stall_probability=0.01)


@st.composite
def workloads(draw: st.DrawFn) -> list[Request]:
    """Requests that overload a small fleet now and then, some with common prefixes, some too large for a worker."""
    now, requests = 0.0, []
    for index in range(draw(st.integers(1, 25))):
        now += draw(st.floats(0.0, 0.3))
        tokens = draw(st.one_of(st.integers(1, 1500), st.just(9_500)))
        shared = draw(st.integers(0, tokens // 512))
        blocks = (*range(shared), *(1000 * (index + 1) + block for block in range(tokens // 512 - shared)))
        name = draw(st.sampled_from(["default", "batch"]))
        requests.append(Request(now, tokens, draw(st.integers(1, 150)), blocks, name))
    return requests


class UpAndDown:
    """A planner that never lets the fleet come to rest."""

    def __init__(self) -> None:
        self._turn = 0

    def plan(self, observation: Observation) -> Replicas:
        self._turn += 1
        return Replicas(prefill=1 + self._turn % 3, decode=1 + (self._turn + 1) % 3, reason=f"turn {self._turn}")


def limits(**changes: Any) -> dict[str, Any]:
    return {"kv_capacity_tokens": 9_000, "limits": replace(PLAIN_LIMITS, max_running_requests=12, **changes)}


def scenarios() -> dict[str, Scenario]:
    """One of each kind."""
    classes = {"batch": Objective(ttft_seconds=20.0, itl_seconds=0.5)}
    cached = limits(prefix_cache=True)
    paired = pairs(2, 2, noise=NOISE, class_objectives=classes, network=Network(workers_per_link=2))
    small: dict[str, Any] = {
        "prefill": pool(Role.PREFILL, 2, **cached),
        "decode": pool(Role.DECODE, 2, **limits()),
    }
    found = {
        "pairs": replace(paired, **small),
        "caches on both sides": replace(
            paired,
            prefill=small["prefill"],
            decode=pool(Role.DECODE, 2, **cached),  # type: ignore[arg-type]
        ),
        "late news": replace(
            paired,
            **small,
            gateway=GatewayLimits(state_interval_seconds=0.3, state_age_seconds=0.05, queue_timeout_seconds=60.0),
        ),
        "dying": replace(
            paired,
            **small,
            deaths=tuple(WorkerDeath(at_seconds=0.4 * turn, role=role) for turn in range(4) for role in Role),
        ),
        "planned": replace(paired, **small, planner=UpAndDown, planner_interval_seconds=0.7),
        "round robin": replace(paired, **small, dispatch=baseline_dispatch(Baseline.ROUND_ROBIN)),
        "prefix threshold": replace(paired, **small, dispatch=baseline_dispatch(Baseline.PREFIX_THRESHOLD)),
    }
    for style in LocalPrefill:
        worker = cached | {"local_prefill": style}
        found[f"unified, {style}"] = unified(2, worker=worker, noise=NOISE, class_objectives=classes)
    return found


@pytest.mark.parametrize("name", scenarios())
@settings(max_examples=5, deadline=None)
@given(workload=workloads(), seed=st.integers(0, 5))
def test_conservation(name: str, workload: list[Request], seed: int) -> None:
    scenario = replace(scenarios()[name], seed=seed)

    result = simulate(scenario, workload, audit=True)

    rows = result.requests
    assert len(rows) == len(workload)
    done = rows.succeeded
    assert (rows.output_tokens[done] == np.array([request.output_tokens for request in workload])[done]).all()
    times = (
        rows.arrival_seconds,
        rows.dispatched_seconds,
        rows.prefill_started_seconds,
        rows.prefill_ended_seconds,
        rows.kv_arrived_seconds,
        rows.first_token_seconds,
        rows.last_token_seconds,
    )
    for earlier, later in pairwise(times):
        assert (later[done] >= earlier[done] - 1e-9).all()
    assert (rows.input_tokens[~done] >= 9_000).all() or name == "dying"
    assert simulate(scenario, workload).digest() == result.digest()


def test_another_seed_is_another_run() -> None:
    workload = [Request(0.05 * index, 400, 40) for index in range(40)]
    runs = {simulate(replace(pairs(noise=NOISE), seed=seed), workload).digest() for seed in range(3)}
    assert len(runs) == 3


@settings(max_examples=10, deadline=None)
@given(workload=workloads(), ratio=st.none() | st.floats(1.0, 10.0))
def test_results_judge_as_the_one_definition_does(workload: list[Request], ratio: float | None) -> None:
    objective = replace(OBJECTIVE, ttft_seconds=0.2, ttft_unloaded_ratio=ratio)
    result = simulate(pairs(noise=NOISE, objective=objective), workload)
    rows = result.requests
    for index in range(len(rows)):
        outcome = Outcome(
            succeeded=bool(rows.succeeded[index]),
            ttft_seconds=float(rows.ttft_seconds[index]),
            output_tokens=int(rows.output_tokens[index]),
            decode_seconds=float(rows.last_token_seconds[index] - rows.first_token_seconds[index]),
            gaps_over_objective=int(rows.gaps_over_objective[index]),
            unloaded_ttft_seconds=float(rows.unloaded_ttft_seconds[index]),
        )
        verdict = judge(outcome, objective)
        assert (result.ttft_met[index], result.itl_met[index]) == (verdict.ttft_met, verdict.itl_met)


def test_every_gap_is_counted_once() -> None:
    workload: Sequence[Request] = [Request(0.1 * index, 300, 1 + index % 30) for index in range(60)]
    result = simulate(pairs(noise=NOISE), workload)
    assert sum(result.gap_counts) == sum(request.output_tokens - 1 for request in workload)


def test_a_request_without_tokens_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"requests\[1\].*at least one input"):
        simulate(pairs(), [Request(0.0, 5, 5), Request(1.0, 0, 5)])


def test_a_workload_that_goes_back_in_time_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"requests\[1\].arrival_seconds: goes back"):
        simulate(pairs(), [Request(1.0, 5, 5), Request(0.5, 5, 5)])
