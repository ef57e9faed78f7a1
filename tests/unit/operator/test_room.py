"""A surplus that finds no place is taken back once, and asked for again after longer and longer waits."""

from hypothesis import given
from hypothesis import strategies as st

from duet_operator.room import LONGEST_WAIT_SECONDS, Room, learn

DEADLINE_SECONDS = 900.0
WHY = "Unschedulable: decode-x"


def seen(room: Room | None, *, at: float, replicas: int = 5, unplaced: int = 0) -> Room | None:
    return learn(
        room, placed=replicas - unplaced, unplaced=unplaced, why=WHY, now_seconds=at, deadline_seconds=DEADLINE_SECONDS
    )


def test_nothing_is_known_while_every_pod_finds_a_place() -> None:
    assert seen(None, at=0.0) is None


def test_a_surplus_without_a_place_bounds_the_pool_for_a_while() -> None:
    room = seen(None, at=0.0, unplaced=2)
    assert room is not None
    assert (room.count, room.why) == (3, WHY)
    assert room.holds(899.0) and not room.holds(900.0)
    assert seen(room, at=5.0, replicas=3) == room


def test_the_bound_does_not_move_on_while_the_surplus_is_still_there() -> None:
    room = seen(None, at=0.0, unplaced=2)
    assert seen(room, at=5.0, unplaced=2) == room


def test_each_refusal_in_a_row_doubles_the_wait_up_to_an_hour() -> None:
    room, now, waits = None, 0.0, []
    for _ in range(5):
        room = seen(room, at=now, unplaced=2)
        assert room is not None
        waits.append(room.until_seconds - now)
        now = room.until_seconds + DEADLINE_SECONDS
    assert waits == [900.0, 1800.0, 3600.0, 3600.0, 3600.0]


def test_refusals_are_forgotten_after_a_while_without_one() -> None:
    room = seen(None, at=0.0, unplaced=2)
    assert seen(room, at=900.0 + 2 * DEADLINE_SECONDS) is None


@given(
    steps=st.lists(st.tuples(st.floats(1.0, 5000.0), st.integers(0, 4)), max_size=40),
    deadline_seconds=st.floats(10.0, 86_400.0),
)
def test_no_wait_is_longer_than_an_hour_or_the_deadline(
    steps: list[tuple[float, int]], deadline_seconds: float
) -> None:
    room, now = None, 0.0
    for seconds, unplaced in steps:
        now += seconds
        room = learn(
            room, placed=4 - unplaced, unplaced=unplaced, why=WHY, now_seconds=now, deadline_seconds=deadline_seconds
        )
        if unplaced:
            assert room is not None and room.count == 4 - unplaced
        if room is not None:
            assert room.until_seconds - now <= max(LONGEST_WAIT_SECONDS, deadline_seconds) + 1e-6
