"""What is remembered of a pure function: nothing old ever comes back for new inputs."""

import pytest

from duet_operator.latest import Latest


class Counted:
    """A function that says how often it was called."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, number: int, *, times: int = 1, offset: int = 0) -> list[int]:
        self.calls += 1
        if number < 0:
            raise ValueError("negative")
        return [number * times + offset]


def test_the_same_inputs_give_the_very_result() -> None:
    counted = Counted()
    latest = Latest(counted)
    first = latest(2, times=3)
    assert latest(2, times=3) is first
    assert counted.calls == 1


def test_any_other_input_gives_another_result() -> None:
    latest = Latest(Counted())
    assert latest(2, times=3) == [6]
    assert latest(2, offset=3) == [5]
    assert latest(3, offset=3) == [6]
    assert latest(2, times=3) == [6]


def test_an_error_is_not_remembered() -> None:
    counted = Counted()
    latest = Latest(counted)
    kept = latest(1)
    for _ in range(2):
        with pytest.raises(ValueError, match="negative"):
            latest(-1)
    assert counted.calls == 3
    assert latest(1) is kept
