"""The simulator against queues whose answers are known: within the confidence interval of independent runs."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from tests.support.simple_steps import SimpleSteps
from tests.support.small_fleets import PLAIN_LIMITS, unified

from duet_engine.policy.baselines import Baseline
from duet_engine.simulator.run import simulate
from duet_engine.simulator.scenario import Scenario, baseline_dispatch
from duet_engine.simulator.workload import Request

RUNS = 8
STUDENT_99 = 3.50
"""Two-sided, 7 degrees of freedom; seeds are fixed."""
STEP_SECONDS = 0.1
FIXED_STEPS = SimpleSteps(
    prompt_base_seconds=STEP_SECONDS,
    prompt_token_seconds=0.0,
    prompt_pair_seconds=0.0,
    decode_base_seconds=0.05,
    decode_request_seconds=0.0,
    decode_context_token_seconds=0.0,
)
TOKENS_A_STEP = 100


def arrivals(rate: float, count: int, seed: int) -> np.ndarray:
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate, count))


def mean_waits(
    scenario: Scenario, make: Callable[[int], Iterator[Request]], own_seconds: Callable[..., np.ndarray]
) -> list[float]:
    """Mean time from arrival to service of each run; the first fifth is warming up."""
    waits = []
    for seed in range(RUNS):
        rows = simulate(replace(scenario, seed=seed), make(seed)).requests
        assert rows.succeeded.all()
        waits.append(float(own_seconds(rows)[len(rows) // 5 :].mean()))
    return waits


def assert_within_interval(waits: list[float], expected: float) -> None:
    half_width = STUDENT_99 * float(np.std(waits, ddof=1)) / math.sqrt(len(waits))
    assert abs(np.mean(waits) - expected) <= half_width
    assert half_width < 0.5 * expected, "the runs are too short to tell"


def one_server() -> Scenario:
    """A worker that computes one chunk a step and nothing else."""
    worker = {
        "steps": FIXED_STEPS,
        "kv_capacity_tokens": 10**9,
        "limits": replace(PLAIN_LIMITS, chunked_prefill_tokens=TOKENS_A_STEP, max_running_requests=10**6),
    }
    return unified(1, worker=worker, dispatch=baseline_dispatch(Baseline.ROUND_ROBIN))


@pytest.mark.parametrize("load", [0.4, 0.7])
def test_equal_prompts_on_one_worker_wait_as_in_m_d_1(load: float) -> None:
    def requests(seed: int) -> Iterator[Request]:
        for moment in arrivals(load / STEP_SECONDS, 1200, seed):
            yield Request(float(moment), TOKENS_A_STEP, 1)

    waits = mean_waits(one_server(), requests, lambda rows: rows.ttft_seconds - STEP_SECONDS)

    assert_within_interval(waits, load * STEP_SECONDS / (2 * (1 - load)))


def test_prompts_of_random_length_on_one_worker_wait_as_in_m_g_1() -> None:
    stop, load = 0.4, 0.6
    mean, second_moment = 1 / stop, (2 - stop) / stop**2
    rate = load / (mean * STEP_SECONDS)

    def requests(seed: int) -> Iterator[Request]:
        steps = np.random.default_rng([seed, 1]).geometric(stop, 1200)
        for moment, count in zip(arrivals(rate, 1200, seed), steps, strict=True):
            yield Request(float(moment), TOKENS_A_STEP * int(count), 1)

    waits = mean_waits(
        one_server(), requests, lambda rows: rows.ttft_seconds - STEP_SECONDS * rows.input_tokens / TOKENS_A_STEP
    )

    assert_within_interval(waits, rate * second_moment * STEP_SECONDS**2 / (2 * (1 - load)))


def test_a_gateway_before_several_workers_waits_as_in_m_m_k() -> None:
    servers, load, mean_tokens = 4, 0.6, 200
    quick = replace(FIXED_STEPS, prompt_base_seconds=1e-6)
    worker = {"steps": quick, "limits": replace(PLAIN_LIMITS, max_running_requests=1), "kv_capacity_tokens": 10**9}
    scenario = unified(servers, worker=worker, dispatch=baseline_dispatch(Baseline.LEAST_LOADED))
    scenario = replace(scenario, gateway=replace(scenario.gateway, pass_interval_seconds=0.1))
    service_seconds = (mean_tokens - 1) * FIXED_STEPS.decode_base_seconds
    rate = load * servers / service_seconds

    def requests(seed: int) -> Iterator[Request]:
        tokens = np.random.default_rng([seed, 1]).geometric(1 / mean_tokens, 800)
        for moment, count in zip(arrivals(rate, 800, seed), tokens, strict=True):
            yield Request(float(moment), 10, int(count))

    waits = mean_waits(scenario, requests, lambda rows: rows.ttft_seconds)

    offered = load * servers
    terms = [offered**number / math.factorial(number) for number in range(servers)]
    last = offered**servers / math.factorial(servers) / (1 - load)
    all_busy = last / (sum(terms) + last)
    assert_within_interval(waits, all_busy * service_seconds / servers / (1 - load))
