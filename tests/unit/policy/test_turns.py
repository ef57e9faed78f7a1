"""Late demotion: prompts that can't be in time wait behind those that can, and nobody waits for ever."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from duet_engine.policy.turns import LATE_TURN, Turns, late_from

queues = st.lists(st.tuples(st.integers(), st.booleans()), max_size=40)
"""Prompts, and whether each is late."""
ON_TIME, LATE = (1, False), (2, True)


def is_late(prompt: tuple[int, bool]) -> bool:
    return prompt[1]


@pytest.mark.parametrize(("window", "left_in_time"), [(0.0, 0.65), (0.15, 0.5)])
def test_what_a_prompt_takes_after_it_left_comes_off_its_time(window: float, left_in_time: float) -> None:
    """Of an objective of 1 s 5 % are for errors, 0.3 s for the prompt itself and the window for those ahead of it."""
    moment = late_from(arrived_at=7.0, objective_seconds=1.0, unloaded_ttft_seconds=0.3, window_seconds=window)
    assert moment == pytest.approx(7.0 + left_in_time)


@settings(deadline=None, max_examples=60)
@given(queues, st.integers(1, 40))
def test_those_in_time_go_first_and_order_is_kept_on_both_sides(waiting: list[tuple[int, bool]], most: int) -> None:
    order = Turns().first(waiting, is_late, most=most)
    wanted = [each for each in waiting if not is_late(each)] + [each for each in waiting if is_late(each)]
    assert order == wanted[:most]


def test_every_fourth_that_leaves_is_a_late_one() -> None:
    turns, left = Turns(), []
    for _ in range(3 * LATE_TURN):
        first = turns.first([LATE, ON_TIME, ON_TIME], is_late, most=32)[0]
        turns.left(late=is_late(first))
        left.append(is_late(first))
    assert left == [False, False, False, True] * 3


def test_without_others_the_late_leave_at_once() -> None:
    assert Turns().first([LATE, LATE], is_late, most=1) == [LATE]
