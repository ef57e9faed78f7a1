"""The plan for two pools: what it admits fits, the lowest weight is shed first, nobody gets nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.simple_steps import SimpleSteps

from duet_engine.policy.pools_plan import (
    LEAST_SHARE,
    MOST_CAPACITY,
    ClassLoad,
    ClassShare,
    PoolsPlan,
    PoolWorkers,
    pools_plan,
)

STEPS = SimpleSteps(decode_context_token_seconds=0.0)
PREFILL = PoolWorkers(count=2, steps=STEPS, chunk_tokens=2048)
DECODE = PoolWorkers(
    count=2, steps=STEPS, chunk_tokens=2048, kv_capacity_tokens=200_000, most_requests=64, prefills=True
)
BUDGET = 0.05


def load(name: str, rate: float, *, weight: int = 1, prompt: float = 1000.0, output: float = 100.0) -> ClassLoad:
    return ClassLoad(name=name, arrivals_per_second=rate, prompt_tokens=prompt, output_tokens=output, weight=weight)


def planned(*loads: ClassLoad, prefill: PoolWorkers | None = PREFILL, decode: PoolWorkers | None = DECODE) -> PoolsPlan:
    return pools_plan(loads, prefill, decode, step_budget_seconds=BUDGET)


def shares(plan: PoolsPlan) -> dict[str, ClassShare]:
    return {share.name: share for share in plan.shares}


def test_where_there_is_enough_nobody_is_told_anything() -> None:
    plan = planned(load("only", 1.0))
    assert plan.capacity_ratio > 1.0 and plan.shares == ()
    assert planned().capacity_ratio == planned(load("none", 0.0)).capacity_ratio == MOST_CAPACITY
    assert planned(load("only", 1.0), decode=None).capacity_ratio == 0.0


def test_the_prefill_pool_alone_carries_what_its_step_times_say() -> None:
    plan = planned(load("only", 1.0), decode=replace(DECODE, count=100, prefills=False))
    assert plan.capacity_ratio == pytest.approx(min(2 / STEPS.prompt_seconds(1000, chunk_tokens=2048), MOST_CAPACITY))


def test_twice_the_workers_carry_twice_as_much() -> None:
    demand = [load("one", 40.0), load("two", 40.0, prompt=200, output=400)]
    small = planned(*demand)
    large = planned(*demand, prefill=replace(PREFILL, count=4), decode=replace(DECODE, count=4))
    assert large.capacity_ratio == pytest.approx(2 * small.capacity_ratio)


@pytest.mark.parametrize("lengths", [(1000, 100, 9000, 100), (9000, 10, 2000, 400), (2000, 400, 9000, 10)])
def test_the_lowest_weight_is_shed_first_whatever_its_lengths(lengths: tuple[int, int, int, int]) -> None:
    high = load("high", 1.0, weight=10, prompt=lengths[0], output=lengths[1])
    low = load("low", 1.0, weight=1, prompt=lengths[2], output=lengths[3])
    for factor in (5, 20, 100):
        demand = [replace(each, arrivals_per_second=factor * each.arrivals_per_second) for each in (high, low)]
        plan = planned(*demand, decode=replace(DECODE, count=500, prefills=False))
        assert plan.capacity_ratio < 1.0, "the prefill pool is what is scarce"
        found = shares(plan)
        assert found["low"].shed_per_second > 0
        if found["high"].shed_per_second > 1e-3:
            least = LEAST_SHARE * plan.capacity_ratio * factor
            assert found["low"].admitted_per_second == pytest.approx(least, rel=1e-3)


def test_a_share_of_prefill_is_what_admitting_takes() -> None:
    plan = planned(load("high", 20.0, weight=5), load("low", 400.0))
    found = shares(plan)
    assert found["high"].admitted_per_second == pytest.approx(20.0)
    assert 0 < found["low"].admitted_per_second < 400
    assert sum(share.prefilling - share.deflected for share in plan.shares) <= PREFILL.count + 1e-6
    assert sum(share.deflected for share in plan.shares) <= DECODE.count + 1e-6


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.floats(0.1, 300), st.floats(1, 20_000), st.floats(1, 3000), st.integers(1, 100), st.integers(0, 9999)
        ),
        min_size=1,
        max_size=5,
    ),
    st.integers(0, 4),
    st.integers(1, 6),
)
def test_a_plan_is_always_found_and_starves_nobody(
    found: list[tuple[float, float, float, int, int]], prefill: int, decode: int
) -> None:
    loads = [
        load(str(index), rate, weight=weight, prompt=prompt, output=output)
        for index, (rate, prompt, output, weight, _) in enumerate(found)
    ]
    plan = planned(*loads, prefill=replace(PREFILL, count=prefill), decode=replace(DECODE, count=decode))
    for share, each in zip(plan.shares, loads, strict=bool(plan.shares)):
        least = LEAST_SHARE * plan.capacity_ratio * each.arrivals_per_second
        assert share.admitted_per_second >= least * (1 - 1e-3)
        assert share.admitted_per_second <= each.arrivals_per_second * (1 + 1e-6)
        assert share.prefilling > 0
