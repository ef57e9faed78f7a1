"""A recorded run is reproduced from its arrivals, routes and step times alone; what was altered in it is found."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from tests.support.small_fleets import PLAIN_LIMITS, pairs, pool

from duet_engine.policy.dispatch import Dispatch, Hold, Local, Pair
from duet_engine.policy.fleet import Fleet, Prompt
from duet_engine.protocol import Role, StepKind
from duet_engine.simulator.flight import Flight
from duet_engine.simulator.replay import Handover, Recording, Route, noticed, replay
from duet_engine.simulator.run import Simulation
from duet_engine.simulator.scenario import Scenario, StepNoise
from duet_engine.simulator.workload import Request
from duet_engine.step_log import Joined, StepLogEntry, StepLogHead, entry_line, head_line, read_step_log

SCENARIO = replace(
    pairs(noise=StepNoise(relative_spread=0.3, stall_probability=0.02)),
    decode=pool(Role.DECODE, 2, kv_capacity_tokens=9_000, limits=replace(PLAIN_LIMITS, max_running_requests=12)),
)


def through_a_file(name: str, role: Role, steps: list[StepLogEntry]) -> list[StepLogEntry]:
    head = head_line(StepLogHead(worker=name, role=role, model="Qwen/Qwen3-8B"))
    _, entries = read_step_log([head, *map(entry_line, steps)], name=name)
    return list(entries)


class Noting:
    """The live dispatch, with its routes noted."""

    def __init__(self, taken: list[Route]) -> None:
        self._dispatch, self._taken = Dispatch(), taken

    def dispatch(self, waiting: Sequence[Prompt], fleet: Fleet) -> Sequence[Pair | Local | Hold]:
        routes = self._dispatch(waiting, fleet, SCENARIO.rule, window_seconds=0.15)
        for route in routes:
            if isinstance(route, Pair):
                self._taken.append(Route(route.decode, route.prefill))
            elif isinstance(route, Local):
                self._taken.append(Route(route.decode, chunks_tokens=route.chunks_tokens))
        return routes


class SlowLinks:
    """Claims and KV travel for a while, each for its own; what they did is noted."""

    turn_seconds = 1e-5

    def __init__(self) -> None:
        self.claims: dict[int, float] = {}
        self.kv: dict[int, float] = {}

    def claim_at(self, flight: Flight) -> float:
        self.claims[flight.index] = flight.dispatched_at + 0.003 * (1 + flight.index % 5)
        return self.claims[flight.index]

    def kv_at(self, flight: Flight, *, computed_at: float) -> float:
        return self.kv.setdefault(flight.index, computed_at + 0.002 * (1 + flight.index % 7))

    def handover(self, index: int) -> Handover | None:
        return Handover(self.claims[index], self.kv[index]) if index in self.kv else None


def recorded(scenario: Scenario, links: SlowLinks | None = None) -> Recording:
    """A noisy run with requests for both paths, as its engines would have logged it."""
    steps: dict[str, list[StepLogEntry]] = {"prefill-0000": [], "decode-0000": [], "decode-0001": []}
    coming = [Request(0.04 * index, 40 + 97 * (index % 13), 5 + 17 * (index % 9)) for index in range(150)]
    taken: list[Route] = []
    scenario = replace(scenario, dispatch=lambda: Noting(taken))
    simulation = Simulation(scenario, record=lambda name, entry: steps[name].append(entry), passage=links)
    result = simulation.run(coming)
    rows = result.requests
    order = sorted(range(len(rows)), key=lambda index: (rows.dispatched_seconds[index], index))
    assert not rows.retries.any()
    requests = [replace(coming[index], arrival_seconds=float(rows.dispatched_seconds[index])) for index in order]
    logs = {name: through_a_file(name, Role(name.split("-")[0]), each) for name, each in steps.items()}
    handovers = None if links is None else [links.handover(index) for index in order]
    return Recording(requests=requests, routes=taken, logs=logs, handovers=handovers)


@pytest.fixture(scope="module")
def recording() -> Recording:
    return recorded(SCENARIO)


def test_every_step_of_a_recorded_run_comes_out_by_itself(recording: Recording) -> None:
    found = replay(recording, SCENARIO, loop_seconds=1e-9)

    assert sum(len(log) for log in recording.logs.values()) > 500
    assert any(route.prefill is None for route in recording.routes)
    for name, agreement in found.items():
        assert agreement.logged == agreement.simulated == agreement.same_batch, name
        assert agreement.same_kv == agreement.same_queues == agreement.logged, name
        assert agreement.share == 1.0
        assert agreement.first_difference is None


def test_how_long_kv_travelled_is_taken_from_the_recording() -> None:
    recording = recorded(SCENARIO, SlowLinks())

    found = replay(recording, SCENARIO, loop_seconds=1e-9)
    without = replay(replace(recording, handovers=None), SCENARIO, loop_seconds=1e-9)

    assert all(agreement.same_queues == agreement.logged == agreement.simulated for agreement in found.values()), found
    assert min(agreement.share for agreement in without.values()) < 0.9


def test_a_route_without_its_handover_is_named(recording: Recording) -> None:
    with pytest.raises(ValueError, match=r"handovers: must be as many as requests, got 1"):
        replace(recording, handovers=[None])
    with pytest.raises(ValueError, match=r"handovers\[\d+\]: is missing"):
        replay(replace(recording, handovers=[None] * len(recording.requests)), SCENARIO)


def test_an_idle_engine_takes_in_what_came_with_the_step_that_follows_and_a_busy_one_when_it_came() -> None:
    def step(start: float, *joined: Joined, rows: int = 1, **queues: int) -> StepLogEntry:
        return StepLogEntry(
            kind=StepKind.DECODE,
            started_at_seconds=start,
            seconds=0.010,
            decode_rows=rows,
            queues=queues,
            joined=joined,
        )

    late = Joined(rid="a", ready_at_seconds=1.15)
    assert noticed(1.005, [step(1.0), step(1.2, late)]) == 1.005, "a step was under way"
    assert noticed(1.15, [step(1.0), step(1.2, late)]) == pytest.approx(1.2, abs=1e-5)
    assert noticed(1.15, [step(1.0), step(1.2, late, rows=2)]) == 1.15, "somebody else went on"
    assert noticed(1.15, [step(1.0, queued=1), step(1.2, late)]) == 1.15, "somebody waited"
    assert noticed(1.5, [step(1.0), step(1.2, late)]) == 1.5, "nothing followed"
    first, second = (noticed(moment, [step(1.0), step(1.2, late)]) for moment in (1.15, 1.16))
    assert first < second < 1.2, "in order"


def test_a_step_that_ran_otherwise_is_found_and_costs_only_itself(recording: Recording) -> None:
    log = list(recording.logs["prefill-0000"])
    log[7] = replace(log[7], prefill_tokens=log[7].prefill_tokens + 1)
    altered = replace(recording, logs={**recording.logs, "prefill-0000": log})

    agreement = replay(altered, SCENARIO, loop_seconds=1e-9)["prefill-0000"]

    assert agreement.first_difference == 7
    assert agreement.same_batch == agreement.logged - 1


def test_an_engine_that_schedules_otherwise_is_found(recording: Recording) -> None:
    smaller = replace(SCENARIO, prefill=pool(Role.PREFILL, 1, limits=replace(PLAIN_LIMITS, chunked_prefill_tokens=64)))

    assert replay(recording, smaller)["prefill-0000"].share < 0.9


def test_split_steps_are_refused_by_name(recording: Recording) -> None:
    log = [replace(recording.logs["decode-0000"][0], kind=StepKind.SPLIT)]
    with pytest.raises(ValueError, match=r"logs\['decode-0000'\]: has split steps"):
        replace(recording, logs={"decode-0000": log})
