"""Spare workers: how many there are, what goes before them, and what is said of them."""

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.support.planning import SLICE, SLICES, WHOLE, Toy, bounds, decide, demand, seen, spec

from duet_engine.slo import Objective
from duet_operator.planner.capacity import Fleet
from duet_operator.planner.lengths import Lengths
from duet_operator.planner.load import Load
from duet_operator.planner.reasons import Reason
from duet_operator.planner.sizing import Limits, Sizing, carries
from duet_operator.planner.spare import size_with_spares
from duet_operator.planner.types import Counts, Decision, Performance, PoolState

WHOLES = Performance(prefill=WHOLE, decode=WHOLE)


def counts(decision: Decision) -> tuple[int, int]:
    return decision.prefill.replicas, decision.decode.replicas


def planned(present: tuple[int, int], rate: float, **changes: Any) -> Decision:
    """The decision of a first pass, so that nothing shrinks."""
    performance = changes.pop("performance", SLICES)
    return decide(seen(*present, demand=demand(rate)), spec=spec(**changes), performance=performance)


# --- how many ---


def test_each_pool_gets_its_spares() -> None:
    assert counts(planned((1, 1), 20)) == (5, 7)
    assert counts(planned((1, 1), 20, spare_replicas=2)) == (7, 9)


def test_a_prefill_pool_that_nothing_is_needed_of_keeps_no_spare() -> None:
    assert counts(planned((0, 1), 5, performance=WHOLES)) == (0, 1)
    assert counts(planned((0, 1), 5, performance=WHOLES, spare_replicas=2)) == (0, 3)


def test_without_load_one_worker_and_its_spares_stay() -> None:
    assert counts(planned((0, 1), 0, spare_replicas=2)) == (0, 3)
    assert counts(planned((1, 1), 0, spare_replicas=2, deflection_enabled=False)) == (3, 3)


def test_workers_of_a_minimum_that_the_load_does_not_need_are_spares() -> None:
    assert counts(planned((0, 4), 0, decode=bounds(4, 8), spare_replicas=2)) == (0, 4)


# --- what goes before ---


def test_spares_end_at_the_maximum() -> None:
    decision = planned((5, 7), 20, decode=bounds(1, 8), prefill=bounds(0, 5), spare_replicas=2)
    assert counts(decision) == (5, 8)
    assert Reason.MAX_REPLICAS in decision.limited_by
    assert "1 of 2 spare, 9 needed but maxReplicas is 8" in decision.message
    assert "0 of 2 spare, 7 needed but maxReplicas is 5" in decision.message


def test_spares_take_no_gpu_that_the_load_needs() -> None:
    """A budget of exactly the need, while pods that are leaving still hold two of its GPUs."""
    observation = seen(4, PoolState(replicas=6, ready=6, draining=2), demand=demand(20))
    for spare in (0, 3):
        decision = decide(observation, spec=spec(max_gpus=14, spare_replicas=spare))
        assert counts(decision) == (5, 7)


def test_a_lowered_budget_takes_spares_first() -> None:
    observation = seen(7, 9, demand=demand(20))
    assert counts(decide(observation, spec=spec(max_gpus=12, spare_replicas=2))) == (5, 7)


# --- why ---


def test_growth_for_spares_alone_says_so() -> None:
    decision = planned((5, 7), 20, spare_replicas=1)
    assert counts(decision) == (6, 8)
    assert decision.reason == Reason.SPARE_REPLICAS
    assert decision.message.count(", 1 spare") == 2


def test_spares_that_are_there_are_the_reason_for_standing() -> None:
    decision = planned((6, 8), 20, spare_replicas=1)
    assert (counts(decision), decision.reason) == ((6, 8), Reason.SPARE_REPLICAS)
    assert decision.limited_by == ()


def test_without_spares_nothing_is_said_of_them() -> None:
    decision = planned((6, 8), 20)
    assert "spare" not in decision.message
    assert decision.reason != Reason.SPARE_REPLICAS


def test_a_recommendation_has_them_too() -> None:
    """So that Recommend mode tells what Auto would do."""
    assert planned((1, 1), 20, spare_replicas=2).decode.recommended == 9


# --- over time ---


def test_a_burst_inside_the_spares_meets_workers_that_are_ready() -> None:
    """20 requests/s for ten minutes, then the load of one more decode worker: it's there before a cold start ends."""
    toys = [
        Toy(
            spec=spec(spare_replicas=spare),
            load=lambda now: demand(20 if now < 1_000_600 else 22),
            prefill=[0.0] * 8,
            decode=[0.0] * 10,
        )
        for spare in (0, 1)
    ]
    ready = []
    for toy in toys:
        toy.run(600)
        before = Counts(*toy.counts[-1])
        toy.run(5)
        needed = decide(seen(1, 1, demand=demand(22)), spec=spec()).decode.replicas
        ready.append(before.decode >= needed)
    assert ready == [False, True]


def test_counts_settle_with_spares() -> None:
    toy = Toy(spec=spec(spare_replicas=2, stabilization_seconds=30.0), load=lambda _: demand(20), cold_start_seconds=10)
    toy.run(400)
    settled = toy.counts[-1]
    toy.run(300)
    assert set(toy.counts[-60:]) == {settled}


# --- properties ---


@dataclass(frozen=True)
class Traffic:
    """A load and the workers to carry it with."""

    load: Load
    fleet: Fleet

    def sized(self, limits: Limits, *, spare: int) -> tuple[Sizing, Counts]:
        planned = spec(spare_replicas=spare, deflection_enabled=self.fleet.deflection)
        return size_with_spares(self.load, fleet=self.fleet, limits=limits, present=Counts(1, 1), spec=planned)


@st.composite
def traffics(draw: st.DrawFn) -> Traffic:
    worker = draw(st.sampled_from([WHOLE, SLICE]))
    lengths = Lengths(input_tokens=draw(st.floats(10, 8000)), cached_tokens=0.0, output_tokens=draw(st.floats(1, 1000)))
    rate = draw(st.floats(0, 100))
    return Traffic(
        load=Load(requests=rate, input_tokens=rate * lengths.input_tokens, output_tokens=rate * lengths.output_tokens),
        fleet=Fleet(
            prefill=worker,
            decode=worker,
            lengths=lengths,
            objective=Objective(ttft_seconds=0.8, itl_seconds=0.05),
            attainment_goal=0.99,
            deflection=draw(st.booleans()),
        ),
    )


def limited(lowest: Counts, highest: Counts) -> Limits:
    return Limits(lowest=lowest, highest=highest, gpus=Counts(1, 1), cost=Counts(1, 1))


untimed = settings(deadline=None, max_examples=100)
MINIMA = st.builds(Counts, st.integers(0, 3), st.integers(1, 4))


@untimed
@given(traffic=traffics(), minima=MINIMA, spare=st.integers(0, 4))
def test_spares_are_beyond_the_need_and_no_more_than_asked_for(traffic: Traffic, minima: Counts, spare: int) -> None:
    need, wished = traffic.sized(limited(minima, Counts(20, 20)), spare=spare)
    assert wished == wished.at_least(need.counts)
    assert wished == wished.at_most(Counts(need.counts.prefill + spare, need.counts.decode + spare))


@untimed
@given(traffic=traffics(), minima=MINIMA, spare=st.integers(1, 4))
def test_any_spares_of_a_pool_may_be_taken_away(traffic: Traffic, minima: Counts, spare: int) -> None:
    need, wished = traffic.sized(limited(minima, Counts(4096, 4096)), spare=spare)
    assume(need.feasible)
    assert wished.decode > spare
    assert carries(traffic.load, traffic.fleet, Counts(wished.prefill, wished.decode - spare))
    if not carries(traffic.load, traffic.fleet, Counts(0, need.counts.decode)):
        assert carries(traffic.load, traffic.fleet, Counts(wished.prefill - spare, wished.decode))


@pytest.mark.parametrize("spare", [0, 1, 3])
def test_more_spares_never_ask_for_fewer_workers(spare: int) -> None:
    for rate in (0.0, 3.0, 11.0, 40.0):
        fewer, more = (planned((1, 1), rate, spare_replicas=each) for each in (spare, spare + 1))
        assert more.prefill.recommended >= fewer.prefill.recommended
        assert more.decode.recommended >= fewer.decode.recommended
