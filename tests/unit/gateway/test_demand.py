"""Records and counters: attribution of misses, and documents that subtract and add."""

from typing import Any

import pytest

from duet_engine.distribution import Distribution
from duet_engine.gateway.demand import (
    GAP_BOUNDS_SECONDS,
    LENGTH_BOUNDS_TOKENS,
    TTFT_BOUNDS_SECONDS,
    ClassCounters,
)
from duet_engine.gateway.record import End, RequestRecord, miss_cause
from duet_engine.protocol import MissCause
from duet_engine.slo import Objective, judge

OBJECTIVE = Objective(ttft_seconds=0.8, itl_seconds=0.05)


def record(**changes: Any) -> RequestRecord:
    """A request that met both objectives, but for the changes."""
    made = RequestRecord(
        arrived_at=100.0,
        path="/generate",
        streamed=True,
        prompt_tokens=50,
        output_tokens=11,
        relayed_tokens=11,
        dispatched_at=100.0,
        first_at=100.3,
        last_at=100.6,
        end=End.COMPLETED,
    )
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def cause_of(made: RequestRecord) -> MissCause | None:
    return miss_cause(made, judge(made.outcome(), OBJECTIVE), OBJECTIVE)


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({}, None),
        ({"end": End.REJECTED}, MissCause.GATE),
        ({"end": End.FAILED}, MissCause.ENGINE),
        ({"end": End.CANCELLED}, None),
        ({"end": End.CANCELLED, "first_at": None, "last_at": 100.7}, None),
        ({"end": End.CANCELLED, "first_at": None, "last_at": 103.0, "dispatched_at": None}, MissCause.QUEUE),
        ({"end": End.CANCELLED, "first_at": None, "last_at": 103.0}, MissCause.ENGINE),
        ({"end": End.CANCELLED, "first_at": None, "last_at": 103.0, "streamed": False}, None),
        ({"end": End.REFUSED}, None),
        ({"first_at": 101.5, "last_at": 101.6, "unloaded_ttft_seconds": 0.9}, MissCause.INFEASIBLE),
        ({"first_at": 101.5, "last_at": 101.6, "dispatched_at": 100.9}, MissCause.QUEUE),
        ({"first_at": 101.5, "last_at": 101.6, "predicted_queue_seconds": 0.7}, MissCause.QUEUE),
        ({"first_at": 101.5, "last_at": 101.6, "dispatched_at": 100.2}, MissCause.ENGINE),
        ({"first_at": 100.9, "last_at": 101.0, "loop_lag_seconds": 0.2}, MissCause.GATEWAY),
        ({"first_at": 100.9, "last_at": 101.0, "accept_wait_seconds": 0.5}, MissCause.GATEWAY),
        ({"last_at": 101.3}, MissCause.ENGINE),
        ({"last_at": 101.3, "blocked_seconds": 0.9}, MissCause.CLIENT),
        ({"gaps_over_objective": 3}, MissCause.ENGINE),
        ({"gaps_over_objective": 3, "gaps_over_for_client": 2}, MissCause.CLIENT),
        ({"gaps_over_objective": 3, "loop_lag_seconds": 0.06}, MissCause.GATEWAY),
    ],
    ids=str,
)
def test_every_miss_has_its_cause(changes: dict[str, Any], cause: MissCause | None) -> None:
    assert cause_of(record(**changes)) is cause


def test_counters_of_a_stream() -> None:
    counters, made = ClassCounters("default"), record(output_tokens=0, relayed_tokens=1, deflected=True, last_at=100.4)
    counters.arrived(made, OBJECTIVE)
    assert counters.input_tokens_total == 50, "what users ask for counts when they ask"
    counters.began(made)
    for gap, tokens in ((0.02, 1), (0.03, 3)):
        counters.gap(gap, tokens)
        made.relayed_tokens += tokens
    made.output_tokens = 6
    counters.ended(made, OBJECTIVE)
    document = counters.document()
    assert (document.arrivals_total, document.completed_total, document.met_both_total) == (1, 1, 1)
    assert document.output_tokens_total == 6, "the engine's count completes what went by"
    assert (document.deflected_requests_total, document.deflected_tokens_total) == (1, 50)
    assert sum(document.itl_seconds.counts) == 4, "one gap and two zeros in the second read"
    assert document.itl_seconds.counts[0] == 2
    assert document.itl_seconds.sum == pytest.approx(0.05)
    assert sum(document.ttft_seconds.counts) == 1


def test_a_client_that_left_is_neither_success_nor_failure() -> None:
    counters, made = ClassCounters("default"), record(end=End.CANCELLED)
    counters.ended(made, OBJECTIVE)
    document = counters.document()
    assert document.completed_total == document.failed_total == document.rejected_total == 0
    assert document.missed_total == {}


def test_a_client_that_gave_up_waiting_for_its_first_token_is_a_miss() -> None:
    """Else an overload in which every client times out would read as full attainment."""
    counters = ClassCounters("default")
    counters.ended(record(end=End.CANCELLED, first_at=None, dispatched_at=None, last_at=160.0), OBJECTIVE)
    document = counters.document()
    assert (document.given_up_total, document.met_both_total, document.met_itl_total) == (1, 0, 0)
    assert document.missed_total == {MissCause.QUEUE: 1}


def test_arrivals_that_were_wrong_in_themselves_can_be_told_apart() -> None:
    counters, made = ClassCounters("default"), record(end=End.REFUSED, first_at=None)
    counters.arrived(made, OBJECTIVE)
    counters.ended(made, OBJECTIVE)
    document = counters.document()
    assert (document.arrivals_total, document.refused_total, document.missed_total) == (1, 1, {})
    assert document.refused_input_tokens_total == document.input_tokens_total == made.prompt_tokens > 0


def test_a_whole_answer_is_judged_by_its_mean_gap() -> None:
    made = record(streamed=False, gaps_over_objective=9)
    assert judge(made.outcome(), OBJECTIVE).met


@pytest.mark.parametrize(
    ("bounds", "first", "last"),
    [(TTFT_BOUNDS_SECONDS, 0.01, 120.0), (GAP_BOUNDS_SECONDS, 0.001, 10.0), (LENGTH_BOUNDS_TOKENS, 1.0, 2.0**20)],
)
def test_bounds_cover_their_range_in_order(bounds: tuple[float, ...], first: float, last: float) -> None:
    assert bounds[0] == first and bounds[-1] >= last
    assert list(bounds) == sorted(set(bounds))


def test_a_distribution_puts_a_value_into_the_bucket_that_ends_at_or_after_it() -> None:
    distribution = Distribution((1.0, 2.0, 4.0))
    for value in (0.5, 1.0, 1.5, 4.0, 9.0):
        distribution.observe(value)
    document = distribution.document()
    assert document.counts == (2, 1, 1, 1)
    assert distribution.buckets() == [("1.0", 2), ("2.0", 3), ("4.0", 4), ("+Inf", 5)]
    assert document.sum == 16.0
