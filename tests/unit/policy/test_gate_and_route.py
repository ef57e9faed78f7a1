"""Gate and routers: nobody is admitted who isn't there, plans are kept, chance falls as it should."""

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from duet_engine.policy.fluid_model import TrafficClass, WorkerPace
from duet_engine.policy.fluid_plan import FluidPlan, fluid_plan
from duet_engine.policy.gate import FirstComeGate, Gate, PlanGate, PriorityGate
from duet_engine.policy.router import (
    GreedyRouter,
    Place,
    Pool,
    ShareRouter,
    uniform_choice,
    weighted_index,
)

DECODE_HEAVY = TrafficClass(
    name="decode-heavy", prompt_tokens=300, output_tokens=1000, arrivals_per_second=0.5, impatience_per_second=0.1
)
PREFILL_HEAVY = TrafficClass(
    name="prefill-heavy", prompt_tokens=3000, output_tokens=400, arrivals_per_second=0.5, impatience_per_second=0.1
)
PACE = WorkerPace(chunk_tokens=256, batch_slots=16, mixed_step_seconds=0.0333, solo_step_seconds=0.022)
PLAN = fluid_plan([DECODE_HEAVY, PREFILL_HEAVY], PACE)
WORKERS = 100


def with_shares(*shares: float, queues: Sequence[float] | None = None) -> FluidPlan:
    """A plan that gives these shares of prefills to as many classes; only what a gate reads is meaningful."""
    zeros = (0.0,) * len(shares)
    return replace(
        PLAN,
        classes=(DECODE_HEAVY,) * len(shares),
        prefilling=tuple(shares),
        decoding_mixed=zeros,
        decoding_solo=zeros,
        prefill_queue=tuple(queues) if queues else zeros,
        decode_queue=zeros,
    )


@dataclass(frozen=True)
class Moment:
    """What a gate sees."""

    shares: tuple[float, ...]
    prefilling: tuple[int, ...]
    waiting: tuple[int, ...]
    heads: tuple[float, ...]


@st.composite
def moments(draw: st.DrawFn) -> Moment:
    size = draw(st.integers(1, 5))

    def several(values: st.SearchStrategy[float]) -> tuple[float, ...]:
        return tuple(draw(st.lists(values, min_size=size, max_size=size)))

    counts = st.integers(0, 30)
    return Moment(
        shares=several(st.just(0.0) | st.floats(0.001, 0.2)),
        prefilling=several(counts),  # type: ignore[arg-type]  # they are whole
        waiting=several(counts),  # type: ignore[arg-type]
        heads=several(st.floats(0, 100)),
    )


def gates(moment: Moment) -> list[Gate]:
    classes = [
        replace(DECODE_HEAVY, prompt_tokens=100.0 + index, output_tokens=10.0) for index in range(len(moment.shares))
    ]
    return [PlanGate(with_shares(*moment.shares), workers=WORKERS), PriorityGate(classes), FirstComeGate()]


@settings(deadline=None)
@given(moments())
def test_a_gate_admits_someone_who_waits_while_anybody_does(moment: Moment) -> None:
    for gate in gates(moment):
        chosen = gate.admit(moment.prefilling, moment.waiting, heads_arrived=moment.heads)
        assert (chosen is None) == (sum(moment.waiting) == 0)
        assert chosen is None or moment.waiting[chosen] > 0


@settings(deadline=None)
@given(moments())
def test_a_class_below_its_target_goes_before_one_above(moment: Moment) -> None:
    chosen = PlanGate(with_shares(*moment.shares), workers=WORKERS).admit(
        moment.prefilling, moment.waiting, heads_arrived=moment.heads
    )

    def below(index: int) -> bool:
        return moment.prefilling[index] < WORKERS * moment.shares[index] * (1 - 1e-9)

    if any(below(index) and moment.waiting[index] > 0 for index in range(len(moment.shares))):
        assert chosen is not None
        assert moment.shares[chosen] > 0.0
        assert moment.prefilling[chosen] <= WORKERS * moment.shares[chosen] * (1 + 1e-9)


@settings(deadline=None)
@given(moments())
def test_the_printed_argmin_is_what_is_taken(moment: Moment) -> None:
    chosen = PlanGate(with_shares(*moment.shares), workers=WORKERS).admit(
        moment.prefilling, moment.waiting, heads_arrived=moment.heads
    )
    printed = {
        index: (moment.prefilling[index] - WORKERS * share) / share
        for index, share in enumerate(moment.shares)
        if share > 0.0 and moment.waiting[index] > 0
    }
    if printed:
        assert chosen in printed
        assert printed[chosen] == pytest.approx(min(printed.values()), abs=1e-6)


def test_a_class_without_a_plan_waits_for_those_with_one_and_may_be_left_out() -> None:
    plan = with_shares(0.1, 0.0)
    lenient, strict = PlanGate(plan, workers=WORKERS), PlanGate(plan, workers=WORKERS, serve_unplanned=False)
    assert lenient.admit((50, 0), (1, 9), heads_arrived=(5.0, 0.0)) == 0
    assert lenient.admit((50, 0), (0, 9), heads_arrived=(5.0, 0.0)) == 1
    assert strict.admit((50, 0), (0, 9), heads_arrived=(5.0, 0.0)) is None


def test_equal_deviations_go_to_the_queue_that_exceeds_its_plan_most() -> None:
    gate = PlanGate(with_shares(0.1, 0.1, queues=(0.5, 0.0)), workers=WORKERS)
    assert gate.admit((3, 3), (52, 3), heads_arrived=(0.0, 0.0)) == 1
    assert gate.admit((3, 3), (54, 3), heads_arrived=(0.0, 0.0)) == 0


def test_priority_is_output_over_prompt_and_first_come_is_age() -> None:
    assert PriorityGate([PREFILL_HEAVY, DECODE_HEAVY]).admit((0, 0), (5, 1), heads_arrived=(0.0, 9.0)) == 1
    assert FirstComeGate().admit((0, 0), (5, 1), heads_arrived=(0.0, 9.0)) == 0
    assert FirstComeGate().admit((0, 0), (0, 1), heads_arrived=(0.0, 9.0)) == 1


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.floats(0.02, 0.2), min_size=1, max_size=4),
    st.lists(st.floats(0, 1, exclude_max=True), min_size=50, max_size=200),
)
def test_saturated_classes_hold_their_planned_shares(shares: list[float], draws: list[float]) -> None:
    """Everybody waits all the time: however prefills end, no class drifts from its target by more than one slot's
    worth of the class that is furthest below."""
    gate = PlanGate(with_shares(*shares), workers=WORKERS)
    slots = round(WORKERS * sum(shares))
    prefilling = [0] * len(shares)
    waiting = [1000] * len(shares)
    for _ in range(slots):
        admit(gate, prefilling, waiting)
    for draw in draws:
        ended = weighted_index(prefilling, draw)
        assert ended is not None
        prefilling[ended] -= 1
        admit(gate, prefilling, waiting)
        assert sum(prefilling) == slots
    for count, share in zip(prefilling, shares, strict=True):
        assert abs(count - WORKERS * share) <= 1 + share / min(shares)


def admit(gate: Gate, prefilling: list[int], waiting: list[int]) -> None:
    chosen = gate.admit(prefilling, waiting, heads_arrived=[0.0] * len(waiting))
    assert chosen is not None
    prefilling[chosen] += 1
    waiting[chosen] -= 1
    assert waiting[chosen] >= 0


def test_nobody_who_is_planned_for_starves() -> None:
    """A flood of one class: the other is prefilled within as many admissions as its share of the slots takes."""
    gate = PlanGate(PLAN, workers=WORKERS)
    slots = PLAN.mixed_workers(WORKERS)
    running: deque[int] = deque()
    prefilling, waiting = [0, 0], [0, 10**9]
    for _ in range(slots):
        admit(gate, prefilling, waiting)
        running.append(1)
    waiting[0] = 1
    for _ in range(2):
        prefilling[running.popleft()] -= 1
        admit(gate, prefilling, waiting)
    assert prefilling[0] == 1


@pytest.mark.parametrize(
    ("solo_free", "mixed_free", "place"),
    [(3, 5, Place.SOLO), (0, 5, Place.MIXED), (0, 0, Place.BUFFER), (1, 0, Place.SOLO)],
)
def test_greedy_is_solo_first(solo_free: int, mixed_free: int, place: Place) -> None:
    assert GreedyRouter().place(0, solo_free=solo_free, mixed_free=mixed_free, draw=0.9) is place


@given(st.integers(0, 1), st.integers(0, 3), st.integers(0, 3), st.floats(0, 1, exclude_max=True))
def test_shares_wait_for_their_own_pool(one: int, solo_free: int, mixed_free: int, draw: float) -> None:
    place = ShareRouter(PLAN).place(one, solo_free=solo_free, mixed_free=mixed_free, draw=draw)
    if draw < PLAN.solo_probabilities()[one]:
        assert place is (Place.SOLO if solo_free else Place.SOLO_BUFFER)
    else:
        assert place is (Place.MIXED if mixed_free else Place.MIXED_BUFFER)


def test_a_freed_slot_goes_by_planned_throughput() -> None:
    router = ShareRouter(PLAN)
    draws = [(step + 0.5) / 1000 for step in range(1000)]
    taken = Counter(router.next_class(Pool.SOLO, (1, 1), draw) for draw in draws)
    planned = [
        PACE.solo_decodes_per_second(one) * count for one, count in zip(PLAN.classes, PLAN.decoding_solo, strict=True)
    ]
    assert taken[0] / 1000 == pytest.approx(planned[0] / sum(planned), abs=0.002)
    assert router.next_class(Pool.SOLO, (0, 3), 0.0) == 1
    assert router.next_class(Pool.MIXED, (0, 0), 0.5) is None
    unplanned = [index for index, count in enumerate(PLAN.decoding_mixed) if count == 0.0]
    for index in unplanned:
        waiting = [0, 0]
        waiting[index] = 1
        assert router.next_class(Pool.MIXED, waiting, 0.5) == index


@given(st.lists(st.floats(0, 10), max_size=6), st.floats(0, 1, exclude_max=True))
def test_chance_never_falls_on_weight_zero(weights: list[float], draw: float) -> None:
    index = weighted_index(weights, draw)
    assert (index is None) == (sum(weights) <= 0.0)
    assert index is None or weights[index] > 0.0


def test_every_free_worker_is_equally_likely() -> None:
    free = ["a", "b", "c"]
    taken = Counter(uniform_choice(free, (step + 0.5) / 900) for step in range(900))
    assert taken == {"a": 300, "b": 300, "c": 300}


@settings(deadline=None, max_examples=60)
@given(moments(), st.integers(1, 9))
def test_back_pressure_holds_shed_classes_only(moment: Moment, decodes: int) -> None:
    queues = [1.0 if index % 2 else 0.0 for index in range(len(moment.shares))]
    plan = with_shares(*moment.shares, queues=queues)
    pressed = PlanGate(plan, workers=WORKERS)
    chosen = pressed.admit(moment.prefilling, moment.waiting, heads_arrived=moment.heads, decodes_waiting=decodes)
    whole = [
        index
        for index, share in enumerate(moment.shares)
        if share > 0.0 and not queues[index] and moment.waiting[index] > 0
    ]
    assert (chosen is None) == (not whole)
    assert chosen is None or chosen in whole
    printed = PlanGate(plan, workers=WORKERS, back_pressure=False)
    free = pressed.admit(moment.prefilling, moment.waiting, heads_arrived=moment.heads)
    assert free == printed.admit(moment.prefilling, moment.waiting, heads_arrived=moment.heads, decodes_waiting=decodes)


def test_a_planned_decode_queue_presses_nobody() -> None:
    plan = replace(with_shares(0.1, queues=(1.0,)), decode_queue=(0.05,))
    gate = PlanGate(plan, workers=WORKERS)
    assert gate.admit((0,), (1,), heads_arrived=(0.0,), decodes_waiting=5) == 0
    assert gate.admit((0,), (1,), heads_arrived=(0.0,), decodes_waiting=6) is None


def test_a_share_that_is_the_solvers_rounding_is_none() -> None:
    gate = PlanGate(with_shares(1e-13, 0.1), workers=WORKERS)
    assert gate.admit((0, 9), (5, 1), heads_arrived=(0.0, 0.0)) == 1
