"""Numbers from gateways' counters: sums, differences, percentiles, windows, restarts, silence."""

import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.documents import BOUNDS, document, histogram, profile, report, served

from duet_engine.protocol import MissCause, Role
from duet_operator.pods import Pod
from duet_operator.signals.classes import MEMORY_SECONDS, ClassesInUse
from duet_operator.signals.cold_start import MOST_SAMPLES, ColdStarts
from duet_operator.signals.demand import DemandHistory
from duet_operator.signals.freshness import Freshness
from duet_operator.signals.gateways import Scrape
from duet_operator.signals.picture import Gateways, Signals
from duet_operator.signals.totals import Totals, mean, quantile, total, totals
from duet_operator.signals.workers import freshest, load, profiles, states

counts = st.lists(st.integers(0, 1000), min_size=4, max_size=4).map(tuple)


# --- percentiles ---


@pytest.mark.parametrize(
    ("observed", "share", "expected"),
    [
        ((0, 0, 0, 0), 0.95, None),
        ((10, 0, 0, 0), 0.5, 0.05),
        ((0, 10, 0, 0), 0.5, 0.3),
        ((5, 5, 0, 0), 0.5, 0.1),
        ((0, 0, 0, 10), 0.95, 1.0),
        ((0, 10, 0, 10), 0.5, 0.5),
        ((1, 0, 0, 0), 1.0, 0.1),
    ],
)
def test_quantiles(observed: tuple[int, ...], share: float, expected: float | None) -> None:
    assert quantile(histogram(*observed), share) == (None if expected is None else pytest.approx(expected))


@given(counts, st.floats(0.01, 1.0))
def test_a_quantile_lies_in_the_bucket_that_holds_its_rank(observed: tuple[int, ...], share: float) -> None:
    found = quantile(histogram(*observed), share)
    if not sum(observed):
        assert found is None
        return
    assert found is not None
    below = sum(count for bound, count in zip(BOUNDS, observed, strict=False) if bound < found)
    reached = sum(count for bound, count in zip((*BOUNDS, math.inf), observed, strict=True) if bound <= found)
    assert below <= share * sum(observed) + 1e-9
    if found < BOUNDS[-1]:
        upper = next(index for index, bound in enumerate(BOUNDS) if found <= bound)
        assert sum(observed[: upper + 1]) >= share * sum(observed) - 1e-9
    assert reached <= sum(observed)


def test_clients_that_gave_up_waiting_are_judged() -> None:
    """An overload in which all of them leave must not read as full attainment."""
    assert totals(document(served(8).model_copy(update={"given_up_total": 5}))).judged == 13


@given(counts)
def test_quantiles_grow_with_their_share(observed: tuple[int, ...]) -> None:
    found = [quantile(histogram(*observed), share) or 0.0 for share in (0.1, 0.5, 0.9, 0.95, 1.0)]
    assert found == sorted(found)


def test_a_mean_of_nothing_is_unknown() -> None:
    assert mean(histogram()) is None
    assert mean(histogram(1, 1, 0, 0, total=0.8)) == 0.4


# --- sums and differences ---


@given(counts, counts)
def test_what_is_added_can_be_taken_away_again(one: tuple[int, ...], other: tuple[int, ...]) -> None:
    def with_counts(numbers: tuple[int, ...]) -> Totals:
        return Totals(arrivals=sum(numbers), ttft_seconds=histogram(*numbers))

    assert (with_counts(one) + with_counts(other)).since(with_counts(one)) == with_counts(other)


def test_a_restarted_instance_counts_from_zero() -> None:
    assert totals(document(served(3))).since(totals(document(served(100)))) == totals(document(served(3)))


def test_histograms_of_other_bounds_are_not_mixed() -> None:
    one, other = Totals(ttft_seconds=histogram(1, 0, 0, 0)), Totals(ttft_seconds=histogram(1, 1, bounds=(9.0,)))
    assert (one + other).ttft_seconds == one.ttft_seconds


def test_classes_and_instances_are_added() -> None:
    both = total([totals(document(served(3, name="a"), served(4, missed=1, name="b"))), totals(document(served(5)))])
    assert (both.arrivals, both.met_both, both.capacity_misses, both.input_tokens) == (12, 11, 1, 6000)
    assert sum(both.ttft_seconds.counts) == 12


def test_only_misses_that_capacity_prevents_count() -> None:
    assert totals(document(served(9, missed=2))).capacity_misses == 2


# --- windows ---


def history() -> DemandHistory:
    return DemandHistory(fine_seconds=120.0)


def test_one_look_is_no_window() -> None:
    past = history()
    past.add([document(served(50))], now_seconds=0.0)
    assert past.demand(window_seconds=10, lengths_seconds=60, now_seconds=0.0) is None
    assert past.attainment(window_seconds=60, now_seconds=0.0) is None


def test_rates_are_those_of_the_window() -> None:
    past = history()
    for second in range(0, 61, 5):
        past.add([document(served(1000 + (second if second <= 50 else 50 + 10 * (second - 50))))], now_seconds=second)
    recent = past.demand(window_seconds=10, lengths_seconds=60, now_seconds=60)
    assert recent is not None
    assert (recent.window_seconds, recent.requests_per_second) == (10, 10.0)
    assert (recent.input_tokens_per_second, recent.output_tokens_per_second) == (5000, 500)
    assert (recent.mean_input_tokens, recent.mean_output_tokens) == (500, 50)
    longer = past.demand(window_seconds=60, lengths_seconds=60, now_seconds=60)
    assert longer is not None and longer.requests_per_second == pytest.approx(150 / 60)


def test_an_instance_that_started_meanwhile_counts_from_its_start() -> None:
    past = history()
    past.add([document(served(100))], now_seconds=0.0)
    newcomer = document(served(40), instance="two", age_seconds=4.0)
    past.add([document(served(120)), newcomer], now_seconds=10.0)
    demand = past.demand(window_seconds=10, lengths_seconds=60, now_seconds=10.0)
    assert demand is not None and demand.requests_per_second == 6.0


def test_an_old_instance_that_is_seen_late_counts_from_then_on() -> None:
    past = history()
    past.add([document(served(100))], now_seconds=0.0)
    past.add([document(served(120)), document(served(9000), instance="two")], now_seconds=10.0)
    demand = past.demand(window_seconds=10, lengths_seconds=60, now_seconds=10.0)
    assert demand is not None and demand.requests_per_second == 2.0


def test_an_instance_that_is_gone_leaves_with_the_window() -> None:
    past = history()
    past.add([document(served(0)), document(served(0), instance="two")], now_seconds=0.0)
    past.add([document(served(10)), document(served(10), instance="two")], now_seconds=5.0)
    past.add([document(served(20))], now_seconds=10.0)
    demand = past.demand(window_seconds=10, lengths_seconds=60, now_seconds=10.0)
    assert demand is not None and demand.requests_per_second == 3.0
    past.add([document(served(30))], now_seconds=16.0)
    later = past.demand(window_seconds=10, lengths_seconds=60, now_seconds=16.0)
    assert later is not None and later.requests_per_second == pytest.approx(20 / 11)


def test_burn_rates_reach_an_hour_back_and_memory_stays_small() -> None:
    past = history()
    ended = missed = 0
    for second in range(0, 7201, 5):
        ended += 10
        missed += 1 if second > 7201 - 300 else 0
        past.add([document(served(ended, missed=missed))], now_seconds=second)
    short = past.burn_rate(window_seconds=300, goal=0.99, now_seconds=7200)
    long = past.burn_rate(window_seconds=3600, goal=0.99, now_seconds=7200)
    assert short == pytest.approx(10.0, rel=0.25)
    assert long == pytest.approx(10.0 / 12, rel=0.25)
    assert past.burn_rate(window_seconds=300, goal=1.0, now_seconds=7200) is None
    assert len(pickle.dumps(past)) < 50_000


def test_attainment_is_the_share_of_all_that_ended() -> None:
    past = history()
    past.add([document(served(0))], now_seconds=0.0)
    past.add([document(served(8, missed=2, rejected=2))], now_seconds=10.0)
    found = past.attainment(window_seconds=60, now_seconds=10.0)
    assert found is not None
    assert (found.completed_requests, found.met_both_share, found.capacity_misses) == (10, 0.6, 2)
    assert found.ttft_p95_seconds == pytest.approx(0.48)


# --- freshness and the picture ---


def see(gateways: Gateways, *answers: tuple[str, object], now: float) -> Signals:
    scrape = Scrape(
        documents={pod: answer for pod, answer in answers if not isinstance(answer, str)},  # type: ignore[misc]
        failures={pod: answer for pod, answer in answers if isinstance(answer, str)},
    )
    return gateways.see(
        scrape,
        now_seconds=now,
        window_seconds=10,
        stale_after_seconds=15,
        goal=0.99,
        worker_pods=[Pod(namespace="n", name="d1", uid="d1")],
        revision="new",
    )


def test_a_document_that_does_not_move_is_silence() -> None:
    freshness = Freshness()
    for now in (0.0, 10.0, 20.0):
        freshness = freshness.observe({"pod": document(sequence=4)}, now_seconds=now)
    assert freshness.stale(now_seconds=20.0, limit_seconds=15.0) == {"pod": 20.0}
    freshness = freshness.observe({"pod": document(sequence=5)}, now_seconds=21.0)
    assert freshness.stale(now_seconds=21.0, limit_seconds=15.0) == {}


def test_the_picture_is_complete_only_with_every_gateway() -> None:
    gateways = Gateways(attainment_window_seconds=60)
    see(gateways, ("a", document(served(0))), ("b", document(served(0), instance="two")), now=0.0)
    found = see(gateways, ("a", document(served(10), sequence=2)), ("b", "no answer in 2 s"), now=5.0)
    assert found.demand is not None and found.demand.requests_per_second == 2.0
    assert (found.complete, found.gateways, dict(found.silent)) == (False, 2, {"b": "no answer in 2 s"})


def test_without_any_answer_demand_is_unknown_not_zero() -> None:
    gateways = Gateways(attainment_window_seconds=60)
    see(gateways, ("a", document(served(0))), now=0.0)
    see(gateways, ("a", document(served(10), sequence=2)), now=5.0)
    found = see(gateways, ("a", "unreachable"), now=10.0)
    assert (found.demand, found.attainment, found.complete) == (None, None, False)
    assert see(gateways, now=15.0).complete is False


def test_a_stale_document_counts_for_nothing() -> None:
    gateways = Gateways(attainment_window_seconds=60)
    for now in (0.0, 5.0, 16.0):
        found = see(gateways, ("a", document(served(10), sequence=2, workers=[report("d1")])), now=now)
    assert (found.demand, dict(found.states)) == (None, {})
    assert dict(found.silent) == {"a": "unchanged for 16 s"}


# --- workers ---


def test_the_youngest_report_with_a_state_counts() -> None:
    reports = freshest(
        [
            document(workers=[report("d1", age_seconds=3.0, queued_tokens=1), report("d2", age_seconds=1.0)]),
            document(
                workers=[report("d1", age_seconds=0.5, queued_tokens=2), report("d2", age_seconds=0.1, known=False)]
            ),
        ]
    )
    pods = [Pod(namespace="n", name=name, uid=name) for name in ("d1", "d2", "d3")]
    known = states(reports, pods, stale_after_seconds=15.0)
    assert {uid: state.queued_prefill_tokens for uid, state in known.items()} == {"d1": 2, "d2": 0}
    assert states(reports, [], stale_after_seconds=15.0) == {}


def test_what_a_silent_worker_told_last_counts_no_more() -> None:
    reports = freshest([document(workers=[report("d1", age_seconds=14.0), report("d2", age_seconds=16.0)])])
    pods = [Pod(namespace="n", name=name, uid=name) for name in ("d1", "d2")]
    assert set(states(reports, pods, stale_after_seconds=15.0)) == {"d1"}


def test_a_draining_worker_has_no_headroom() -> None:
    pods = [Pod(namespace="n", name=name, uid=name) for name in ("d1", "d2")]
    reports = freshest([document(workers=[report("d1", headroom=70.0), report("d2", headroom=50.0, draining=True)])])
    assert load(states(reports, pods, stale_after_seconds=15.0).values()).headroom_tokens_per_second == 70.0
    assert load([]).headroom_tokens_per_second is None


def test_profiles_are_those_of_the_present_revision_where_it_tells() -> None:
    told = document(
        workers=[report("d1", revision="old", digest="o"), report("d2", revision="new", digest="n")],
        profiles=[profile("n"), profile("o"), profile("p", role=Role.PREFILL)],
    )
    assert profiles([told], revision="new")[Role.DECODE].digest == "n"
    assert profiles([told], revision="old")[Role.DECODE].digest == "o"
    assert profiles([told], revision="other")[Role.PREFILL].digest == "p"


# --- cold starts ---


def pod(uid: str, *, ready_after: float | None) -> Pod:
    return Pod(
        namespace="n",
        name=uid,
        uid=uid,
        created_seconds=100.0,
        ready=ready_after is not None,
        has_been_ready=ready_after is not None,
        ready_changed_seconds=None if ready_after is None else 100.0 + ready_after,
    )


def test_cold_starts_are_measured_from_pods_that_were_seen_to_start() -> None:
    starts = ColdStarts().observe([pod("seen", ready_after=None), pod("old", ready_after=3.0)])
    starts = starts.observe([pod("seen", ready_after=12.0), pod("old", ready_after=500.0)])
    assert starts.seconds == (12.0,)
    assert starts.observe([pod("seen", ready_after=700.0)]).seconds == (12.0,)


def test_the_p90_is_of_the_last_ones() -> None:
    assert ColdStarts().p90_seconds is None
    assert ColdStarts(tuple(float(second) for second in range(1, 11))).p90_seconds == 9.0
    starts = ColdStarts(tuple([99.0] * MOST_SAMPLES))
    for index in range(MOST_SAMPLES):
        starts = starts.observe([pod(f"p{index}", ready_after=None)]).observe([pod(f"p{index}", ready_after=1.0)])
    assert starts.p90_seconds == 1.0


# --- what buys no workers ---


@pytest.mark.parametrize(
    ("cause", "buys"),
    [
        (MissCause.INFEASIBLE, False),
        (MissCause.GATEWAY, False),
        (MissCause.CLIENT, False),
        (MissCause.QUEUE, True),
        (MissCause.ENGINE, True),
        (MissCause.GATE, True),
    ],
)
def test_only_misses_that_capacity_would_prevent_reach_the_planner(cause: MissCause, buys: bool) -> None:
    missed = served(10).model_copy(update={"missed_total": {cause: 4}})
    assert totals(document(missed)).capacity_misses == (4 if buys else 0)


def test_requests_that_are_wrong_in_themselves_are_no_demand() -> None:
    counted = history()
    counted.add([document(served(0))], now_seconds=0.0)
    wrong = {
        "arrivals_total": 50,
        "refused_total": 40,
        "input_tokens_total": 90_000,
        "refused_input_tokens_total": 85_000,
    }
    counted.add([document(served(10).model_copy(update=wrong), sequence=2)], now_seconds=10.0)
    demand = counted.demand(window_seconds=10.0, lengths_seconds=10.0, now_seconds=10.0)
    assert demand is not None
    assert (demand.requests_per_second, demand.input_tokens_per_second, demand.mean_input_tokens) == (1.0, 500.0, 500.0)


def test_a_gateway_that_runs_late_is_told() -> None:
    late = document(served(1)).model_copy(update={"saturated": True, "loop_lag_p99_seconds": 0.034})
    fine = document(served(1), instance="two")
    assert see(Gateways(attainment_window_seconds=60), ("a", late), ("b", fine), now=0.0).late == {"a": 0.034}


# --- classes ---


def test_a_class_is_in_use_while_anybody_asks_in_it() -> None:
    seen = ClassesInUse()
    first = document(served(0), served(5, name="voice"), served(3, name="batch"))
    assert seen.see([first], now_seconds=0.0) == {"voice", "batch"}, "what came before the first look counts as new"
    again = document(served(0), served(6, name="voice"), served(3, name="batch"), sequence=2)
    assert seen.see([again], now_seconds=MEMORY_SECONDS - 1) == {"voice", "batch"}
    assert seen.see([again], now_seconds=MEMORY_SECONDS) == {"voice"}
    assert seen.see([], now_seconds=2 * MEMORY_SECONDS) == frozenset()


def test_it_is_quiet_when_nobody_asks_waits_or_is_served() -> None:
    gateways = Gateways(attainment_window_seconds=60)
    first = document(served(5))
    assert see(gateways, ("a", first), now=100.0).quiet_seconds == 0.0, "nobody knows since when"
    then = [
        (document(served(5), sequence=2), 110.0, 10.0),
        (document(served(6), sequence=3), 120.0, 0.0),
        (document(served(6), sequence=4, waiting=1), 130.0, 0.0),
        (document(served(6), sequence=5).model_copy(update={"inflight_requests": 1}), 140.0, 0.0),
        (document(served(6), sequence=6), 150.0, 10.0),
    ]
    for said, now, quiet_seconds in then:
        assert see(gateways, ("a", said), now=now).quiet_seconds == quiet_seconds
