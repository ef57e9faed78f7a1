"""The gate's order and its early word: whole classes first, nobody starves, only who is shed is turned away."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from duet_engine.policy.class_gate import SHED_TURN, ClassGate, ClassTurns, Underway, class_plans, enough_for
from duet_engine.policy.demand_window import CLEARING_SECONDS, USUAL_OUTPUT_TOKENS, Counted, DemandWindow
from duet_engine.policy.pools_plan import ClassShare, PoolsPlan
from duet_engine.protocol import ClassPlan

WHOLE = ClassPlan(name="whole", prefill_occupancy=1.0, solo_occupancy=90.0, admitted_per_second=10.0)
SHED = ClassPlan(name="shed", prefill_occupancy=0.5, solo_occupancy=10.0, admitted_per_second=5.0, shed_per_second=20.0)
GATE = ClassGate([WHOLE, SHED])


@dataclass(frozen=True)
class One:
    """Somebody who waits."""

    class_name: str
    number: int = 0
    late: bool = False


def queue(*names: str) -> list[One]:
    return [One(name, number) for number, name in enumerate(names)]


def first(
    waiting: list[One], *, most: int = 32, gate: ClassGate = GATE, running: int = 0, **prefilling: int
) -> list[One]:
    underway = Underway(Counter(prefilling), running)
    return ClassTurns().through(gate, underway).first(waiting, lambda each: each.late, most=most)


def test_classes_that_are_served_whole_go_first_in_their_own_order() -> None:
    ordered = first(queue("shed", "shed", "whole", "whole"))
    assert [each.number for each in ordered] == [2, 3, 0, 1]


def test_among_classes_that_are_served_whole_the_deficit_decides() -> None:
    other = ClassPlan(name="other", prefill_occupancy=3.0, admitted_per_second=30.0)
    gate = ClassGate([WHOLE, other])
    ordered = first(queue(*["whole"] * 4, *["other"] * 4), gate=gate, whole=1, other=0)
    assert [each.class_name for each in ordered] == ["other", "other", "other", "whole", "other", "whole"] + [
        "whole"
    ] * 2


def test_the_printed_gate_goes_by_the_deficit_alone_and_turns_nobody_away() -> None:
    gate = ClassGate([WHOLE, SHED], printed=True)
    ordered = first(queue("shed", "shed", "whole", "whole"), gate=gate, whole=1)
    assert [each.class_name for each in ordered] == ["shed", "whole", "whole", "shed"]
    assert gate.retry_after_seconds("shed", waiting=100, ttft_objective_seconds=1.0) is None


@pytest.mark.parametrize(("running", "offered"), [(0, 4), (82, 4), (83, 3), (84, 2), (500, 2)])
def test_while_the_slots_are_taken_only_classes_that_are_served_whole_are_looked_at(running: int, offered: int) -> None:
    """101.5 slots, of which 15.7 are kept free for swings, and two prompts of the other class take theirs first."""
    ordered = first(queue("shed", "shed", "whole", "whole"), running=running)
    assert len(ordered) == offered and {each.class_name for each in ordered[:2]} == {"whole"}


def test_a_class_that_the_plan_does_not_know_yet_waits_for_nobody() -> None:
    assert [each.class_name for each in first(queue("shed", "whole", "new"))] == ["new", "whole", "shed"]


def test_within_a_class_late_prompts_go_behind() -> None:
    waiting = [One("whole", 0, late=True), One("whole", 1), One("shed", 2, late=True), One("shed", 3)]
    assert [each.number for each in first(waiting)] == [1, 0, 3, 2]


def test_one_of_so_many_departures_is_of_a_class_that_is_shed() -> None:
    turns, departures = ClassTurns(), Counter[str]()
    waiting = queue(*["whole"] * 40, *["shed"] * 40)
    for _ in range(2 * SHED_TURN):
        head = turns.through(GATE, Underway()).first(waiting, lambda each: each.late, most=1)[0]
        turns.left(GATE, head.class_name, late=False)
        departures[head.class_name] += 1
    assert departures == {"whole": 2 * SHED_TURN - 2, "shed": 2}


@settings(max_examples=50)
@given(st.lists(st.sampled_from(["whole", "shed", "new"]), max_size=60), st.integers(1, 40))
def test_everybody_is_there_once_in_any_order(names: list[str], most: int) -> None:
    waiting = queue(*names)
    ordered = first(waiting, most=most)
    assert len(ordered) == min(most, len(waiting)) == len(set(ordered))
    assert set(ordered) <= set(waiting)


@pytest.mark.parametrize(
    ("name", "waiting", "share", "objective", "told"),
    [
        ("whole", 1000, 1.0, 1.0, None),
        ("new", 1000, 1.0, 1.0, None),
        ("shed", 2, 1.0, 1.0, None),
        ("shed", 5, 1.0, 1.0, 1.2),
        ("shed", 5, 0.5, 1.0, 2.4),
        ("shed", 5, 0.5, 10.0, None),
        ("shed", 10_000, 1.0, 1.0, 60.0),
        ("shed", 0, 0.001, 1.0, None),
    ],
)
def test_only_a_class_that_is_shed_is_told_to_come_back_and_only_when_it_would_be_late(
    name: str, waiting: int, share: float, objective: float, told: float | None
) -> None:
    gate = ClassGate([WHOLE, SHED], share=share)
    found = gate.retry_after_seconds(name, waiting=waiting, ttft_objective_seconds=objective)
    assert found == (None if told is None else pytest.approx(told))


def test_a_plan_travels_without_the_solvers_dust() -> None:
    share = ClassShare(
        name="a",
        admitted_per_second=10.0,
        prefilling=0.333333333,
        deflected=0.1,
        mixed=1.0,
        solo=2.0,
        shed_per_second=1e-9,
    )
    assert class_plans(PoolsPlan(capacity_ratio=0.9, shares=(share,))) == (
        ClassPlan(
            name="a", prefill_occupancy=0.3333, mixed_occupancy=1.0, solo_occupancy=2.0, admitted_per_second=10.0
        ),
    )


def test_the_gate_goes_off_later_than_it_goes_on() -> None:
    assert enough_for(on=False) < enough_for(on=True) < enough_for(on=False, always=True)


def test_loads_are_what_came_in_the_window_and_what_waits() -> None:
    window = DemandWindow()
    assert window.loads(weight_of=lambda _: 1, waiting={}) == []
    window.add(0.0, {"a": Counted(arrivals=10, prompt_tokens=1000)})
    window.add(5.0, {"a": Counted(arrivals=20, prompt_tokens=6000, cached_tokens=3000), "b": Counted()})
    (load,) = window.loads(weight_of=lambda _: 7, waiting={"a": 20})
    assert load.arrivals_per_second == pytest.approx(10 / 5 + 20 / CLEARING_SECONDS)
    assert load.prompt_tokens == pytest.approx(250.0)
    assert (load.output_tokens, load.weight) == (USUAL_OUTPUT_TOKENS, 7)
    for second in range(6, 40):
        window.add(second, {"a": Counted(arrivals=20, prompt_tokens=6000, completed=2, output_tokens=80.0)})
    assert window.loads(weight_of=lambda _: 7, waiting={}) == []
    (waits,) = window.loads(weight_of=lambda _: 7, waiting={"a": 1})
    assert waits.prompt_tokens == pytest.approx(300.0)
    assert waits.output_tokens == 40.0
