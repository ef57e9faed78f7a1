"""What is remembered of a pure function: nothing old ever comes back for new inputs."""

import pytest
from tests.support.manifests import deployment

from duet_operator.api.v1alpha1 import DuetStatus, ResolvedStatus, RolloutSpec
from duet_operator.latest import Latest
from duet_operator.reading import Reading
from duet_operator.resources.rendering import Defaults


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


def test_children_are_made_anew_only_where_more_than_reports_changed() -> None:
    before = deployment()
    reading, defaults = Reading(), Defaults(operator_version="1", engine_image="e:1", gateway_image="g:1")
    told = before.model_copy(update={"status": DuetStatus(observed_generation=3)})
    made = reading.render(before, {}, defaults)
    assert reading.render(told, {}, defaults) is made
    kept = ResolvedStatus(engine_image="e:0", gateway_image="g:0")
    pinned = before.model_copy(update={"status": DuetStatus(resolved=kept)})
    assert reading.render(pinned, {}, defaults).images.engine == "e:0"
    other = before.model_copy(update={"spec": before.spec.model_copy(update={"rollout": RolloutSpec(max_surge=2)})})
    assert reading.render(other, {}, defaults) is not made
