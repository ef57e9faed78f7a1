"""What is kept for bursts that come quicker than workers start."""

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.planning import Toy, demand, spec

from duet_operator.planner.bursts import FIRST_RETURN_STARTS, Bursts, expected_bursts
from duet_operator.planner.memory import FOUND_STARTS, from_document, to_document
from duet_operator.planner.reasons import Reason
from duet_operator.planner.types import Demand, DemandSample

START = 1_000_000.0
LEAD, KEPT, WINDOW = 60.0, 120.0, 15.0
untimed = settings(deadline=None, max_examples=60)


def windows(rates: list[float]) -> list[DemandSample]:
    return [
        DemandSample(START + WINDOW * index, rate, 1000.0 * rate, 100.0 * rate, 2000.0)
        for index, rate in enumerate(rates)
    ]


def kept(rates: list[float], *, quiet_seconds: float = 0.0, goal: float = 0.99) -> Bursts:
    seen = windows(rates)
    return expected_bursts(
        seen,
        now_seconds=seen[-1].time_seconds + quiet_seconds if seen else START,
        window_seconds=WINDOW,
        lead_seconds=LEAD,
        kept_seconds=KEPT,
        miss_share=1 - goal,
    )


LULL, BURST = [1.0] * 16, [20.0] * 4
MOMENT = LULL[:6]
"""Of calm, shorter than a single burst is remembered."""


def test_a_burst_is_kept_ready_for_at_its_height() -> None:
    bursts = kept(LULL + BURST + MOMENT)
    assert bursts.seen == 1
    assert bursts.load.input_tokens == 20_000.0
    assert bursts.load.output_tokens == 2_000.0


def test_one_burst_is_forgotten_after_some_cold_starts() -> None:
    assert kept(LULL + BURST, quiet_seconds=FIRST_RETURN_STARTS * LEAD).seen == 1
    assert kept(LULL + BURST, quiet_seconds=FIRST_RETURN_STARTS * LEAD + 1).seen == 0


def test_bursts_that_return_are_kept_ready_for_beyond_their_longest_gap() -> None:
    """When a single one would be forgotten long since."""
    longer = [1.0] * 40
    returning = LULL + BURST + longer + BURST
    gap = (len(longer) + 1) * WINDOW
    assert 2 * gap > FIRST_RETURN_STARTS * LEAD
    assert kept(returning, quiet_seconds=2 * gap).seen == 2
    assert kept(returning, quiet_seconds=2 * gap + 1).seen == 0


def test_a_step_on_a_step_is_no_second_burst() -> None:
    assert kept(LULL + BURST * 3 + [50.0] * 4).seen == 1


def test_the_next_of_few_may_be_higher_and_of_many_hardly() -> None:
    heights = [kept((LULL + BURST) * count + MOMENT).load.input_tokens for count in (1, 2, 4, 8)]
    assert heights[0] == 20_000.0
    assert all(later < earlier for earlier, later in pairwise(heights[1:]))
    assert all(20_000.0 < each < 25_000.0 for each in heights[1:])


def test_what_the_goal_may_miss_is_not_kept_ready_for() -> None:
    steady = [10.0] * 100
    rare = [*steady, 40.0, *steady[:6]]
    assert kept(rare, goal=0.99).seen == 1
    assert kept(rare, goal=0.95) == Bursts()


@pytest.mark.parametrize("level", [0.1, 3.0, 500.0])
def test_steady_load_keeps_nothing(level: float) -> None:
    assert kept([level] * 200) == Bursts()


@pytest.mark.parametrize("seed", range(5))
def test_noise_keeps_nothing(seed: int) -> None:
    chance = random.Random(seed)
    assert kept([chance.gauss(10.0, 1.5) for _ in range(240)]) == Bursts()


def test_a_day_that_rises_slowly_keeps_nothing() -> None:
    """Doubling within an hour is a tenth in a cold start: that can be followed."""
    rising = [10.0 * 2 ** (index / 240) for index in range(240)]
    assert kept(rising + rising[::-1]) == Bursts()


def test_single_requests_far_apart_are_no_bursts_and_renew_none() -> None:
    """They all come out of nothing."""
    sparse = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1 / WINDOW] * 12
    assert kept(sparse) == Bursts()
    assert kept(LULL + BURST + sparse) == Bursts()


def test_a_small_burst_renews_no_large_one() -> None:
    small = [0.0] * 14 + [2.0] * 4
    assert kept(LULL + BURST + small * 8) == Bursts()


def test_a_first_load_is_no_burst() -> None:
    assert kept([]) == Bursts()
    assert kept([50.0] * 3) == Bursts()


@untimed
@given(st.lists(st.floats(0, 1e4), max_size=60), st.floats(0.5, 0.999))
def test_never_more_than_half_above_what_was_seen_and_less_for_a_lower_goal(rates: list[float], goal: float) -> None:
    bursts, modest = kept(rates, goal=goal), kept(rates, goal=goal - 0.2)
    highest = max(rates, default=0.0)
    for value, lower, seen in (
        (bursts.load.requests, modest.load.requests, highest),
        (bursts.load.input_tokens, modest.load.input_tokens, 1000 * highest),
        (bursts.load.output_tokens, modest.load.output_tokens, 100 * highest),
    ):
        assert 0.0 <= lower <= value <= 1.5 * seen


@untimed
@given(
    st.lists(st.floats(0, 100), min_size=1, max_size=80),
    st.sampled_from([2.0, 5.0, WINDOW, 20.0]),
    st.floats(0.9, 0.999),
)
def test_calm_never_raises_what_is_kept(rates: list[float], interval_seconds: float, goal: float) -> None:
    """Whatever moment of it the present one is, and however often it is looked at: else a pool grew after a burst."""
    calm = min(rates)
    seen = [
        DemandSample(START + interval_seconds * index, rate, 1000.0 * rate, 100.0 * rate)
        for index, rate in enumerate([*rates, *[calm] * 10])
    ]
    found = [
        expected_bursts(
            seen[:count],
            now_seconds=seen[count - 1].time_seconds,
            window_seconds=WINDOW,
            lead_seconds=LEAD,
            kept_seconds=KEPT,
            miss_share=1 - goal,
        ).load
        for count in range(len(rates), len(seen) + 1)
    ]
    for before, after in pairwise(found):
        assert after.requests <= before.requests
        assert after.input_tokens <= before.input_tokens
        assert after.output_tokens <= before.output_tokens


def test_looking_oftener_counts_no_request_twice() -> None:
    """The share that the goal may miss is one of requests, not of looks."""
    rates = LULL + BURST + MOMENT
    often = [
        DemandSample(START + WINDOW / 3 * index, rate, 1000.0 * rate, 100.0 * rate)
        for index, rate in enumerate(rate for rate in rates for _ in range(3))
    ]
    looked = expected_bursts(
        often,
        now_seconds=often[-1].time_seconds,
        window_seconds=WINDOW,
        lead_seconds=LEAD,
        kept_seconds=KEPT,
        miss_share=0.01,
    )
    assert looked.load == kept(rates).load
    assert looked.share == pytest.approx(kept(rates).share, rel=0.05)


# --- in the loop ---


def bursty(now_seconds: float) -> Demand:
    """One minute of twenty, five of one."""
    return demand(20.0 if (now_seconds - START) % 360.0 >= 300.0 else 1.0)


def test_workers_stay_between_bursts_and_the_message_says_why() -> None:
    toy = Toy(spec=spec(), load=bursty)
    toy.run(3000.0)
    later = toy.decisions[360:]
    assert min(sum(counts) for counts in toy.counts[360:]) >= 10
    assert any(each.reason == Reason.BURSTS for each in later)
    assert "bursts were quicker than a cold start" in later[-30].message
    assert later[-30].forecast["burst_input_tokens_per_second"] >= 20_000.0


def test_what_was_found_at_the_start_stays_until_enough_was_seen() -> None:
    toy = Toy(spec=spec(), load=lambda _: demand(1.0), prefill=[0.0] * 4, decode=[0.0] * 4)
    toy.run(FOUND_STARTS * 65.0)
    assert toy.counts[-1] == (4, 4)
    toy.run(30.0)
    assert toy.counts[-1] < (4, 4)


def test_what_was_found_survives_a_restart() -> None:
    toy = Toy(spec=spec(), load=bursty)
    toy.run(60.0)
    assert from_document(to_document(toy.memory))[0].found == toy.memory.found is not None
