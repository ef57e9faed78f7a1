"""Demand over capacity in virtual time: what the gate does for each class, beside no gate and the printed one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import numpy as np
from numpy.typing import NDArray
from tests.support.small_fleets import RULE, STEPS, pairs

from duet_engine.policy.pools_plan import ClassLoad, PoolWorkers, pools_plan
from duet_engine.simulator.result import SimulationResult
from duet_engine.simulator.run import simulate
from duet_engine.simulator.workload import Request, merged

SECONDS = 60.0
WEIGHTS = {"high": 10, "middle": 5, "low": 1}


def capacity() -> float:
    """Requests a second that the fleet serves within the objectives."""
    one = ClassLoad(name="one", arrivals_per_second=5.0, prompt_tokens=900, output_tokens=40)
    worker = PoolWorkers(count=1, steps=STEPS, chunk_tokens=1000, kv_capacity_tokens=100_000, most_requests=256)
    decode, budget = replace(worker, prefills=True), RULE.step_budget_seconds
    return 5.0 * pools_plan([one], worker, decode, step_budget_seconds=budget).capacity_ratio


CAPACITY = capacity()


def poisson(name: str, rate: float, seed: int) -> Iterator[Request]:
    generator = np.random.default_rng(seed)
    now = 0.0
    while (now := now + generator.exponential(1 / rate)) < SECONDS:
        yield Request(now, 900, 40, class_name=name)


@cache
def run(kind: str, high: float, middle: float, low: float) -> SimulationResult:
    weights = None if kind == "none" else WEIGHTS
    scenario = replace(pairs(), gate_weights=weights, printed_gate=kind == "printed", warm_up_seconds=10.0)
    shares = {"high": high, "middle": middle, "low": low}
    coming = [poisson(name, share * CAPACITY, seed) for seed, (name, share) in enumerate(shares.items()) if share]
    return simulate(scenario, merged(coming))


def of_class(result: SimulationResult, name: str) -> NDArray[np.bool_]:
    index = list(result.class_names).index(name)
    found: NDArray[np.bool_] = result.judged & (result.requests.class_index == index)
    return found


def met(result: SimulationResult, name: str) -> float:
    """Attainment of one class."""
    return float(result.met[of_class(result, name)].mean())


def test_at_twice_the_capacity_the_high_class_keeps_its_objective() -> None:
    gated, free = run("Duet's", 0.4, 0.0, 1.6), run("none", 0.4, 0.0, 1.6)
    assert met(free, "high") < 0.6, "without a gate all are late alike"
    assert met(gated, "high") >= 0.99
    assert gated.goodput > free.goodput + 2.0, "and the others' goodput isn't its price"


def test_nobody_starves_however_little_is_left() -> None:
    """Higher classes alone are more than the fleet serves."""
    result = run("Duet's", 0.9, 0.9, 0.9)
    served = {name: float(result.requests.succeeded[of_class(result, name)].mean()) for name in WEIGHTS}
    assert served["high"] > served["middle"] and min(served.values()) > 0.01, served


def test_the_lowest_is_told_early_and_what_is_let_in_is_mostly_in_time() -> None:
    result = run("Duet's", 0.4, 0.0, 1.6)
    served = of_class(result, "low") & result.requests.succeeded
    assert result.ttft_met[served].mean() > 0.7 and result.itl_met[served].mean() > 0.95
    waits = (result.requests.dispatched_seconds - result.requests.arrival_seconds)[served]
    assert waits.max() < 10.0
    assert result.counters["turned_away"] > 100 and not result.counters.get("timeouts")


def test_the_printed_gate_keeps_the_high_class_less_well() -> None:
    assert met(run("printed", 0.4, 0.0, 1.6), "high") < met(run("Duet's", 0.4, 0.0, 1.6), "high")


def test_where_there_is_enough_a_gate_changes_nothing() -> None:
    assert run("Duet's", 0.1, 0.0, 0.2).digest() == run("none", 0.1, 0.0, 0.2).digest()
