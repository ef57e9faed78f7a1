"""The live planner inside a simulation: it is told what the operator's signals would tell, and it drives the pools."""

from dataclasses import replace

import pytest
from tests.support.simulations import DEPLOYMENT, ENDED, SEEN, WORKLOAD, compared, study_of

from duet_operator.planner.plan import plan
from duet_operator.planner.types import Decision, Observation, Performance, PlannerMemory, PlanSpec
from duet_operator.simulation.live_planner import LivePlanner


class Recorder:
    """The live planner, and what it was called with."""

    def __init__(self) -> None:
        self.observations: list[Observation] = []

    def __call__(
        self, observation: Observation, memory: PlannerMemory, spec: PlanSpec, performance: Performance
    ) -> Decision:
        self.observations.append(observation)
        return plan(observation, memory, spec, performance)


def planner() -> tuple[LivePlanner, Recorder]:
    study, recorder = study_of(DEPLOYMENT, WORKLOAD), Recorder()
    return LivePlanner(study.spec, study.performance, decide=recorder), recorder


def test_what_a_run_shows_is_told_as_gateways_count_it() -> None:
    live, recorder = planner()
    live.plan(SEEN)
    (observation,) = recorder.observations
    demand, attainment = observation.demand, observation.attainment
    assert demand is not None
    assert attainment is not None
    assert (demand.requests_per_second, demand.input_tokens_per_second) == (4.0, 4800.0)
    assert demand.cached_tokens_per_second == 200.0
    assert (demand.mean_input_tokens, demand.mean_output_tokens) == (1200.0, 50.0)
    assert (demand.deflected_requests_per_second, demand.deflected_tokens_per_second) == (0.4, 320.0)
    assert (demand.waiting_requests, demand.waiting_tokens) == (3, 2700)
    assert (attainment.completed_requests, attainment.met_both_share) == (10, 0.8)
    assert attainment.capacity_misses == 2
    assert attainment.ttft_p95_seconds == 2.0
    assert observation.cold_start_p90_seconds == 21.0
    assert (observation.prefill.starting, observation.prefill.queued_prefill_tokens) == (1, 500)
    assert observation.deflection_active


def test_demand_is_that_of_the_live_window_and_no_older() -> None:
    live, recorder = planner()
    for now in (5.0, 10.0, 15.0, 20.0):
        live.plan(replace(SEEN, now_seconds=now, arrived_input_tokens=(1000,) if now > 5 else (1000,) * 500))
    demand = recorder.observations[-1].demand
    assert demand is not None
    assert (demand.window_seconds, demand.requests_per_second) == (15.0, pytest.approx(3 / 15))


def test_misses_that_no_worker_could_prevent_are_no_lack_of_capacity() -> None:
    live, recorder = planner()
    endless = replace(ENDED, input_tokens=120_000, ttft_seconds=40.0, ttft_met=False)
    live.plan(replace(SEEN, ended=(endless,)))
    attainment = recorder.observations[0].attainment
    assert attainment is not None
    assert (attainment.met_both_share, attainment.capacity_misses) == (0.0, 0)


def test_a_burst_makes_it_add_workers_and_say_why() -> None:
    _, (live, fixed) = compared()
    grown = [decision for decision in live.scale_actions if decision.prefill + decision.decode > 2]
    assert grown
    assert "tok/s expected" in grown[0].reason
    assert not fixed.scale_actions
    assert live.figures.peak_gpus > fixed.figures.peak_gpus == 2
