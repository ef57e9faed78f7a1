"""The factor that measured attainment earns."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.planning import seen, serving, spec

from duet_operator.planner.correction import GREATEST_CHANGE, corrected
from duet_operator.planner.types import Attainment, Observation, PoolState

HORIZON = 100.0


def result(**changes: Any) -> Attainment:
    values: dict[str, Any] = {
        "window_seconds": 30.0,
        "completed_requests": 1000,
        "met_both_share": 1.0,
        "ttft_p95_seconds": 0.6,
        "itl_p95_seconds": 0.04,
        "capacity_misses": 0,
    }
    return Attainment(**values | changes)


MISSING = result(met_both_share=0.9, capacity_misses=100)
EASY = result(ttft_p95_seconds=0.1, itl_p95_seconds=0.01)


def after(correction: float, attainment: Attainment | None, *, passes: int = 1, **changes: Any) -> float:
    observation = seen(2, 2, attainment=attainment, **changes)
    for _ in range(passes):
        correction = corrected(correction, observation, spec(), horizon_seconds=HORIZON)
    return correction


def test_misses_raise_it_by_a_tenth_in_one_cold_start() -> None:
    passes = int(HORIZON / spec().interval_seconds)
    assert after(1.0, MISSING, passes=passes) == pytest.approx(1 + GREATEST_CHANGE, rel=0.02)


@pytest.mark.parametrize(
    ("attainment", "changes"),
    [
        pytest.param(None, {}, id="nothing measured"),
        pytest.param(result(completed_requests=10, capacity_misses=10), {}, id="too few requests"),
        pytest.param(result(met_both_share=0.5), {}, id="misses of other causes"),
        pytest.param(result(capacity_misses=8), {}, id="within the error budget"),
        pytest.param(MISSING, {"decode": PoolState(replicas=2, ready=1, starting=1)}, id="a worker is starting"),
        pytest.param(MISSING, {"prefill": PoolState(replicas=2, ready=1)}, id="a worker is missing"),
        pytest.param(MISSING, {"decode": serving(2, pending_too_long=1)}, id="a worker can't start"),
        pytest.param(MISSING, {"rollout_in_progress": True}, id="rollout"),
    ],
)
def test_stays_where_nothing_can_be_learned(attainment: Attainment | None, changes: dict[str, Any]) -> None:
    values: dict[str, Any] = {"prefill": serving(2), "decode": serving(2)}
    observation = seen(**values | changes, attainment=attainment)
    assert corrected(1.0, observation, spec(), horizon_seconds=HORIZON) == 1.0


def test_met_objectives_bring_it_back_to_one_and_no_further() -> None:
    assert 1.0 < after(1.5, result()) < 1.5
    assert after(1.5, result(), passes=1000) == 1.0


@pytest.mark.parametrize("attainment", [None, result(completed_requests=10)], ids=["no request", "few requests"])
def test_fades_when_nothing_confirms_it(attainment: Attainment | None) -> None:
    assert 1.0 < after(1.5, attainment) < 1.5
    assert after(1.5, attainment, passes=1000) == after(0.8, attainment, passes=1000) == 1.0


def test_easy_latencies_lower_it_to_the_bound() -> None:
    assert 0.99 < after(1.0, EASY) < 1.0
    assert after(1.0, EASY, passes=1000) == 0.8


def test_latencies_near_the_objectives_do_not() -> None:
    assert after(0.9, result(), passes=100) == 0.9


@given(
    start=st.floats(0.8, 2.0),
    completed=st.integers(0, 1000),
    misses=st.integers(0, 1000),
    ttft=st.none() | st.floats(0, 10),
    horizon=st.floats(1, 1000),
)
def test_stays_bounded_and_moves_slowly(
    start: float, completed: int, misses: int, ttft: float | None, horizon: float
) -> None:
    observation: Observation = seen(
        2, 2, attainment=result(completed_requests=completed, capacity_misses=misses, ttft_p95_seconds=ttft)
    )
    moved = corrected(start, observation, spec(), horizon_seconds=horizon)
    assert 0.8 <= moved <= 2.0
    assert abs(moved - start) <= GREATEST_CHANGE * start * (1 + 1e-9)
