"""Sizes: the busiest window is found, the law's answer carries it, and a simulation has the last word."""

from dataclasses import replace

import pytest
from tests.support.simulations import SCENARIO, TRAFFIC, study_of

from duet_engine.simulator.workload import Request
from duet_operator.planner.types import Counts
from duet_operator.simulation.replicas import Knowledge
from duet_operator.simulation.sizing import LoadSummary, answer, headroom, summarise, with_objective
from duet_operator.simulation.verification import Trial, Verifier
from duet_operator.simulation.whatif import rows

SUMMARY = LoadSummary(
    start_seconds=0.0,
    window_seconds=300.0,
    requests_per_second=10.0,
    mean_requests_per_second=10.0,
    mean_input_tokens=1200.0,
    p95_input_tokens=4000.0,
    mean_output_tokens=200.0,
)


def test_the_busiest_window_is_the_one_with_most_tokens_in_and_out() -> None:
    quiet = [Request(float(second), 100, 10) for second in range(0, 600, 10)]
    busy = [Request(300 + second / 2, 100, 10) for second in range(100)]
    summary = summarise(sorted(quiet + busy, key=lambda each: each.arrival_seconds), window_seconds=60.0)
    assert 290 <= summary.start_seconds <= 300
    assert summary.requests_per_second == pytest.approx(106 / 60, rel=0.03)
    assert (summary.mean_input_tokens, summary.mean_output_tokens) == (100.0, 10.0)
    with pytest.raises(ValueError, match="has no requests"):
        summarise([], window_seconds=60.0)


def test_the_answer_carries_the_load_and_one_worker_less_does_not() -> None:
    study = study_of(SCENARIO)
    found = answer(study, SUMMARY)
    assert found.feasible
    assert found.headroom >= 0
    assert found.gpus == found.counts.prefill + found.counts.decode
    assert headroom(study, SUMMARY, replace(found.counts, prefill=found.counts.prefill - 1)) < 0
    more = answer(study, SUMMARY, factor=3.0)
    assert more.gpus > found.gpus


def test_objectives_nobody_can_meet_are_named() -> None:
    study = study_of(SCENARIO)
    assert answer(with_objective(study, itl=0.1), SUMMARY).misses == "ITL"
    assert answer(with_objective(study, ttft=0.05), SUMMARY).misses == "TTFT"
    assert not answer(with_objective(study, ttft=0.05), SUMMARY).feasible


def test_what_if_changes_one_thing_a_row() -> None:
    study = study_of(SCENARIO)
    found = rows(study, SUMMARY, Knowledge())
    assert found[0].answer == answer(study, SUMMARY)
    loads = [row.answer.gpus for row in found if row.group == "load"]
    assert loads == sorted(loads)
    gpus = {row.what: row.answer for row in found if row.group == "GPU"}
    assert {"h100-sxm", "h200-sxm", "b200-sxm", "l40s", "mi300x", "h100-3g.40gb"} <= gpus.keys()
    assert not {"a100-sxm", "cpu", "4 x cpu"} & gpus.keys()
    assert gpus["l40s"].basis in ("data-sheet", "assumed")
    shares = {row.what: row.answer for row in found if row.group == "MPS"}
    assert shares.keys() == {"50 % of a100-sxm", "25 % of a100-sxm"}
    assert shares["25 % of a100-sxm"].gpus >= shares["50 % of a100-sxm"].gpus > found[0].answer.gpus
    assert all(each.basis in ("data-sheet", "assumed") for each in shares.values())
    assert {row.what for row in found if row.group == "TP"} == {"2 x a100-sxm", "4 x a100-sxm", "8 x a100-sxm"}


def test_a_simulation_settles_on_the_smallest_size_that_holds() -> None:
    study = study_of(SCENARIO)
    requests = list(study.workload.requests())
    told: list[Trial] = []
    verifier = Verifier(study, summarise(requests, window_seconds=60.0), told=told.append)
    settled = verifier.settle(Counts(2, 1))
    assert settled is not None
    assert settled.attainment >= study.spec.attainment_goal
    assert told == verifier.trials
    tried = {trial.counts: trial.attainment for trial in verifier.trials}
    smaller = Counts(settled.counts.prefill - 1, settled.counts.decode)
    assert smaller.prefill < 0 or tried[smaller] < study.spec.attainment_goal


def test_what_no_size_holds_is_not_called_held() -> None:
    study = with_objective(study_of(SCENARIO | {"workload": {"traffic": TRAFFIC, "minutes": 0.2}}), ttft=0.01)
    verifier = Verifier(study, summarise(study.workload.requests(), window_seconds=60.0))
    assert verifier.settle(Counts(1, 1)) is None
