"""Other systems' laws: tables worked out by hand from their own descriptions, and what makes them planners."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.simulations import DEPLOYMENT, SEEN, WORKLOAD, study_of

from duet_engine.simulator.scenario import PoolView
from duet_operator.simulation.peer_laws import (
    PoolSignals,
    aibrix_apa,
    concurrency,
    dynamo_load,
    dynamo_throughput,
    hpa,
    keda_queue,
    role_ratio,
    wva_saturation,
)
from duet_operator.simulation.peers import PEERS
from duet_operator.simulation.variants import UnknownVariantError, chosen, variant

POOL = PoolSignals(replicas=4, ready=4, starting=0, utilisation=0.6, waiting_requests=0.0, inflight_requests=0.0)


def pool(**changes: float) -> PoolSignals:
    return replace(POOL, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(("utilisation", "expected"), [(0.6, 4), (0.65, 4), (0.9, 6), (0.3, 2), (0.0, 0)])
def test_hpa_is_proportional_outside_a_tenth(utilisation: float, expected: int) -> None:
    assert hpa(pool(utilisation=utilisation)) == expected


@pytest.mark.parametrize(("utilisation", "expected"), [(0.54, 4), (0.6, 5), (1.2, 8), (0.4, 4), (0.05, 2)])
def test_aibrix_at_most_doubles_or_halves(utilisation: float, expected: int) -> None:
    assert aibrix_apa(pool(utilisation=utilisation)) == expected


def test_queues_and_concurrency_are_shares_of_a_target() -> None:
    assert keda_queue(pool(waiting_requests=11)) == 3
    assert concurrency(pool(inflight_requests=70), target=20) == 4


@pytest.mark.parametrize(
    ("utilisation", "starting", "expected"),
    [(0.8, 0, 4), (0.95, 0, 5), (0.95, 1, 5), (0.3, 0, 2), (0.6, 0, 4)],
)
def test_wva_counts_coming_supply_and_leaves_a_band(utilisation: float, starting: int, expected: int) -> None:
    assert wva_saturation(pool(utilisation=utilisation, starting=starting)) == expected


@pytest.mark.parametrize(
    ("asked", "expected"), [((8, 3), (8, 8)), ((1, 6), (3, 6)), ((4, 5), (4, 5)), ((0, 0), (1, 1))]
)
def test_a_role_ratio_raises_what_lacks(asked: tuple[int, int], expected: tuple[int, int]) -> None:
    assert role_ratio(*asked, lowest=0.5, highest=1.0) == expected


def test_dynamos_throughput_loop_divides_means() -> None:
    assert dynamo_throughput(10.0, per_worker=4.0) == 3
    assert dynamo_throughput(0.0, per_worker=4.0) == 1


@pytest.mark.parametrize(
    ("latency", "starting", "expected"), [(0.9, 0, 4), (1.1, 0, 5), (1.1, 1, 4), (0.5, 0, 3), (0.7, 0, 4)]
)
def test_dynamos_load_loop_moves_by_one_and_waits_for_what_starts(latency: float, starting: int, expected: int) -> None:
    """With one of four fewer each has 4/3 of the load: 0.5 becomes 0.67, 0.7 becomes 0.93."""
    assert dynamo_load(pool(starting=starting), estimate=lambda factor: latency * factor, objective=1.0) == expected


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(sorted(PEERS)),
    st.lists(st.integers(0, 60), min_size=1, max_size=12),
    st.integers(0, 5_000_000),
    st.integers(1, 8),
)
def test_peers_stay_within_the_bounds(name: str, arrivals: list[int], kv_used_tokens: int, ready: int) -> None:
    study = study_of(DEPLOYMENT, WORKLOAD)
    planner = PEERS[name](study)
    for index, count in enumerate(arrivals, start=1):
        view = PoolView(replicas=ready, ready=ready, starting=0, draining=0, kv_used_tokens=kv_used_tokens)
        seen = replace(SEEN, now_seconds=5.0 * index, arrived_input_tokens=(1000,) * count, prefill=view, decode=view)
        wish = planner.plan(seen)
        assert 0 <= wish.prefill <= 8
        assert 1 <= wish.decode <= 8


def test_a_peer_takes_away_only_after_its_window() -> None:
    planner = PEERS["hpa"](study_of(DEPLOYMENT, WORKLOAD))
    busy = PoolView(replicas=2, ready=2, starting=0, draining=0, kv_used_tokens=600_000)
    first = planner.plan(replace(SEEN, decode=busy)).decode
    grown = PoolView(replicas=first, ready=first, starting=0, draining=0)
    later = [planner.plan(replace(SEEN, now_seconds=now, decode=grown)).decode for now in (25.0, 200.0, 400.0)]
    assert first > 2
    assert later == [first, first, 1]


def test_names_make_variants_and_unknown_ones_list_what_there_is() -> None:
    study = study_of(DEPLOYMENT, WORKLOAD)
    names = [each.name for each in chosen(["duet", "hpa", "kairos", "wva+least-loaded"], study)]
    assert names == ["duet", "hpa", "kairos", "wva+least-loaded"]
    assert variant("kairos", study).planner is not None
    assert not variant("no-deflection", study).local_prefill
    own = variant("tests.unit.simulation.test_peers:Two", study)
    assert own.planner is not None
    assert own.planner(study).plan(SEEN).decode == 2
    for wrong in ("hpaa", "hpa+nobody", "no.such.module:thing", "duet_engine:nothing"):
        with pytest.raises(UnknownVariantError):
            variant(wrong, study)
    with pytest.raises(UnknownVariantError, match=r"planners are duet, fixed, peak, hpa.*routings are duet"):
        variant("hpaa", study)


class Two:
    """A planner of one's own."""

    def __init__(self, study: object) -> None:
        self.study = study

    def plan(self, observation: object) -> object:
        from duet_engine.simulator.scenario import Replicas

        return Replicas(prefill=2, decode=2)
