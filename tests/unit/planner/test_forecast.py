"""The load at the end of a cold start, from the last windows."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.planning import demand

from duet_operator.planner.forecast import GREATEST_GROWTH, expect, forecast, mean_lengths, spaced
from duet_operator.planner.types import DemandSample

START = 1_000_000.0


def expected(values: list[float], *, spacing: float = 10.0, horizon: float = 100.0) -> float:
    times = [START + spacing * index for index in range(len(values))]
    return expect(times, values, horizon_seconds=horizon)


def sample(time: float, rate: float, *, p95: float = 0.0) -> DemandSample:
    return DemandSample(time, rate, 100 * rate, 10 * rate, p95)


def test_no_windows_no_load() -> None:
    assert expected([]) == 0.0


def test_steady_load_is_expected_as_it_is() -> None:
    assert expected([50.0] * 20) == 50.0


def test_first_window_gets_room_for_noise() -> None:
    assert 50.0 < expected([50.0]) < 60.0


def test_step_is_followed_at_once_and_not_extrapolated() -> None:
    for since in range(1, 20):
        assert 100.0 <= expected([20.0] * 20 + [100.0] * since) <= 115.0


def test_steady_growth_is_carried_on_to_the_horizon() -> None:
    growing = [100.0 + 2 * index for index in range(24)]
    assert expected(growing, spacing=10.0, horizon=100.0) == pytest.approx(growing[-1] + 20.0, rel=0.03)


def test_growth_is_bounded() -> None:
    growing = [10.0 * index for index in range(1, 25)]
    assert expected(growing, horizon=10_000.0) == GREATEST_GROWTH * growing[-1]


def test_falling_load_is_not_carried_on() -> None:
    falling = [100.0 - 3 * index for index in range(24)]
    assert falling[-1] <= expected(falling) <= falling[-6]


def test_noise_adds_about_one_deviation_and_no_trend() -> None:
    chance = random.Random(7)
    noisy = [chance.gauss(100.0, 5.0) for _ in range(24)]
    assert 98.0 <= expected(noisy) <= 118.0


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=24), st.floats(1, 1000))
def test_forecast_is_bounded_by_what_was_seen(values: list[float], horizon: float) -> None:
    assert 0.0 <= expected(values, horizon=horizon) <= GREATEST_GROWTH * max(values)


@given(st.lists(st.floats(0, 100), min_size=5, max_size=24), st.floats(1, 1000))
def test_a_higher_last_window_is_met(values: list[float], horizon: float) -> None:
    rising = [*values, 4 * max(values) + 100]
    assert expected(rising, horizon=horizon) >= rising[-1]


def test_overlapping_windows_count_once() -> None:
    samples = [sample(START + 5 * index, 1.0) for index in range(61)]
    chosen = spaced(samples, 30.0)
    assert [each.time_seconds - START for each in chosen] == list(range(0, 301, 30))


def test_old_windows_are_left_out() -> None:
    assert len(spaced([sample(START + index, 1.0) for index in range(500)], 1.0)) == 24


def test_all_rates_are_forecast() -> None:
    load = forecast([sample(START + 10 * index, 5.0) for index in range(20)], horizon_seconds=60, window_seconds=10)
    assert (load.requests, load.input_tokens, load.output_tokens) == (5.0, 500.0, 50.0)


def test_lengths_are_means_over_requests() -> None:
    samples = [
        DemandSample(START, 1.0, 1000.0, 100.0, 2000.0),
        DemandSample(START + 10, 3.0, 600.0, 60.0, 400.0),
    ]
    asked = demand(3.0, input_tokens=250.0, cached_tokens_per_second=150.0, window_seconds=10.0)
    lengths = mean_lengths(asked, samples)
    assert lengths.uncached_tokens == 400.0
    assert lengths.cached_tokens == 50.0
    assert lengths.output_tokens == 40.0
    assert lengths.p95_input_tokens == 800.0


def test_unknown_lengths_are_assumed() -> None:
    assert mean_lengths(demand(0.0), []).input_tokens > 0


def test_quotients_of_tiny_rates_are_no_lengths() -> None:
    lengths = mean_lengths(demand(1e-300), [DemandSample(START, 1e-300, 1.0, 1.0)])
    assert lengths.input_tokens < 1e8
