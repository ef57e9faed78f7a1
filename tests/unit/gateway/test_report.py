"""Reports of several processes add up to their pod's, whichever is asked; objectives are edges of histograms."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from duet_engine.distribution import Distribution
from duet_engine.gateway.demand import GAP_BOUNDS_SECONDS, TTFT_BOUNDS_SECONDS, Demand
from duet_engine.gateway.metrics import GatewayCollector
from duet_engine.gateway.objective_edge import ObjectiveEdge, with_edge
from duet_engine.gateway.record import End, RequestRecord
from duet_engine.gateway.report import ProcessReport, WorkerCounts, together
from duet_engine.gateway.wire.accept_queue import BOUNDS_SECONDS
from duet_engine.protocol import GatewayDemand, Role, WorkerReport, WorkerState
from duet_engine.slo import Objective

OBJECTIVE = Objective(ttft_seconds=0.8, itl_seconds=0.05)


def counted(*ttfts: float, class_name: str = "default", instance: str = "a", sequence: int = 1) -> ProcessReport:
    """What a process reports after completed requests with these times to first token."""
    demand = Demand()
    for ttft in ttfts:
        record = RequestRecord(
            arrived_at=0.0, path="/generate", streamed=True, class_name=class_name, prompt_tokens=10,
            route="prefill=p decode=d",
        )  # fmt: skip
        counters = demand.of(record)
        counters.arrived(record, OBJECTIVE)
        record.first_at, record.relayed_tokens = ttft, 1
        counters.began(record)
        counters.gap(0.04, 1)
        record.last_at, record.end, record.output_tokens = ttft + 0.04, End.COMPLETED, 2
        counters.ended(record, OBJECTIVE)
        demand.ended(record)
    worker = WorkerReport(
        worker="d", uid="d", address="http://d", role=Role.DECODE, reachable=instance == "a", inflight=len(ttfts),
        state=WorkerState(worker="d", role=Role.DECODE, sequence=sequence), state_age_seconds=1.0 / sequence,
    )  # fmt: skip
    document = GatewayDemand(
        gateway="pod", instance_id=instance, sequence=sequence, classes=demand.documents(), workers=(worker,)
    )
    series = tuple(each.series() for each in demand.classes())
    counts = (WorkerCounts(uid="d", refusals_total=1),)
    waits = Distribution(BOUNDS_SECONDS)
    waits.observe(0.3)
    return ProcessReport(
        demand=document,
        requests=demand.request_counts(),
        classes=series,
        workers=counts,
        accept_wait_seconds=waits.document(),
    )


def test_counters_and_histograms_of_processes_add_up() -> None:
    both = together([counted(0.1, 0.9), counted(0.2, instance="b"), counted(0.3, class_name="chat", instance="c")])
    default, chat = both.demand.classes
    assert (default.name, default.arrivals_total, default.met_ttft_total) == ("default", 3, 2)
    assert sum(default.ttft_seconds.counts) == 3 and default.ttft_seconds.sum == pytest.approx(1.2)
    assert default.input_tokens_total == 30
    assert (chat.name, chat.arrivals_total) == ("chat", 1)
    assert [each.count for each in both.requests] == [4]
    assert both.classes[0].ttft_within_total == 2


def test_it_does_not_matter_who_is_asked() -> None:
    one, other = counted(0.1, instance="a", sequence=3), counted(0.2, 0.3, instance="b", sequence=5)
    asked_one, asked_other = together([one, other]).demand, together([other, one]).demand
    assert asked_one.instance_id == asked_other.instance_id
    assert asked_one.sequence == asked_other.sequence == 8
    assert asked_one.classes == asked_other.classes and asked_one.workers == asked_other.workers
    renewed = together([one, counted(0.2, instance="new")]).demand
    assert renewed.instance_id != asked_one.instance_id, "else counters would seem to run backwards"


def test_a_worker_is_as_the_freshest_state_says_and_as_all_processes_count() -> None:
    merged = together([counted(0.1, sequence=1), counted(0.2, 0.3, instance="b", sequence=9)]).demand
    (worker,) = merged.workers
    assert worker.state is not None and worker.state.sequence == 9
    assert worker.inflight == 3 and worker.reachable and not worker.ejected


def test_prometheus_gets_the_objective_as_an_edge_and_the_reason_of_decisions() -> None:
    registry = CollectorRegistry()
    registry.register(GatewayCollector(together([counted(0.1, 0.79, 0.81), counted(0.3, instance="b")])))
    lines = dict(line.rsplit(" ", 1) for line in generate_latest(registry).decode().splitlines() if line[0] != "#")
    assert 0.8 not in TTFT_BOUNDS_SECONDS
    assert lines['duet_gateway_ttft_seconds_bucket{class="default",le="0.8"}'] == "3.0"
    assert lines['duet_gateway_itl_seconds_bucket{class="default",le="0.05"}'] == "4.0"
    assert lines['duet_gateway_decisions_total{reason="",route="prefill"}'] == "4.0"
    assert lines['duet_gateway_worker_refusals_total{role="decode",worker="d"}'] == "2.0"
    assert lines['duet_gateway_e2e_seconds_count{class="default"}'] == "4.0"
    assert lines['duet_gateway_accept_wait_seconds_bucket{le="0.2"}'] == "0.0"
    assert lines["duet_gateway_accept_wait_seconds_count"] == "2.0"


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.floats(0.0, 30.0), max_size=30),
    st.lists(st.floats(0.0, 30.0), max_size=30),
    st.floats(0.002, 20.0),
    st.floats(0.002, 20.0),
)
def test_an_edge_fits_between_its_neighbours_whatever_the_objective_was(
    before: list[float], after: list[float], first: float, second: float
) -> None:
    observed, edge = Distribution(GAP_BOUNDS_SECONDS), ObjectiveEdge()
    for bound, values in ((first, before), (second, after)):
        edge.move(bound, observed)
        for value in values:
            observed.observe(value)
            edge.count += value <= edge.bound
    buckets = with_edge(observed.document(), edge.bound, edge.count)
    assert all(low <= high for (_, low), (_, high) in pairwise(buckets))
    assert buckets[-1] == ("+Inf", float(len(before) + len(after)))
    assert str(second) in dict(buckets)
    if not before:
        assert dict(buckets)[str(second)] == sum(value <= second for value in after)
