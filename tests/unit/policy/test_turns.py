"""Late demotion: prompts that can't be in time wait behind those that can, and nobody waits for ever."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.routing import prompt

from duet_engine.policy.fleet import Prompt
from duet_engine.policy.turns import LATE_TURN, Turns, is_late

ON_TIME, LATE = prompt(waited_seconds=0.2), prompt(waited_seconds=1.1)
queues = st.lists(st.builds(prompt, tokens=st.integers(1, 9999), waited_seconds=st.floats(0, 2)), max_size=40)


@pytest.mark.parametrize(("waited", "late"), [(0.0, False), (0.69, False), (0.71, True), (5.0, True)])
def test_late_is_who_would_be_even_on_idle_workers(waited: float, late: bool) -> None:
    assert is_late(prompt(waited_seconds=waited, unloaded_ttft_seconds=0.3)) is late


@settings(deadline=None, max_examples=60)
@given(queues, st.integers(1, 40))
def test_those_in_time_go_first_and_order_is_kept_on_both_sides(waiting: list[Prompt], most: int) -> None:
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
