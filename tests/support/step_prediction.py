"""Latencies of a recorded run as the calibrated model and the simulator predict them, from nothing but the arrivals.

Invariant: pure. What is fitted (efficiencies, how far steps are off them, what a request's way takes beside steps)
comes from one part of a recording and is tried on another.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tests.support.step_comparison import PREFILL, Recorded, WorkerLog, scenario, simulated_names
from tests.support.step_recording import Answered

from duet_engine.perf.calibrate import CalibrationRow, calibrate
from duet_engine.perf.efficiencies import Calibrated, efficiencies_for
from duet_engine.perf.hardware import find_gpu
from duet_engine.perf.models import find_shape
from duet_engine.perf.roofline import Roofline
from duet_engine.protocol import Role
from duet_engine.simulator.replay import Route, routed
from duet_engine.simulator.run import Simulation
from duet_engine.simulator.workload import Request
from duet_engine.step_log import durations

if TYPE_CHECKING:
    from duet_engine.simulator.flight import Flight

PARAMETERS = ("linear_compute", "attention_compute", "attention_bandwidth", "linear_launch_seconds")
"""What steps of a tiny model tell: most of each is the interpreter between its products."""
BLOCK_STEPS = 64
"""A machine is slow for a while, not for a step: how far steps are off the model is drawn in runs of so many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """What one request's way took beside steps."""

    in_seconds: float
    """From the client to the decode worker's scheduler."""
    claim_seconds: float
    """From there until the prefill worker knew that its KV had a place."""
    kv_seconds: float
    """From the end of its prefill until the decode worker had its KV."""
    out_seconds: float
    """From its first token to the client."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """Everything that one part of a recording tells about this machine."""

    calibrated: Calibrated
    ratios: Mapping[Role, Sequence[float]]
    """Measured over predicted, of each step in turn."""
    ways: Sequence[Way]

    def steps(self, log: WorkerLog) -> Roofline:
        return Roofline(find_shape(log.head.model), find_gpu("cpu"), ranks=log.head.ranks, calibrated=self.calibrated)


class DrawnWays:
    """Each request's way is one that was measured."""

    turn_seconds = 0.0

    def __init__(self, ways: Sequence[Way]) -> None:
        self._ways = ways

    def claim_at(self, flight: Flight) -> float:
        return flight.dispatched_at + self._ways[flight.index].claim_seconds

    def kv_at(self, flight: Flight, *, computed_at: float) -> float:
        return computed_at + self._ways[flight.index].kv_seconds


class DrawnSteps:
    """Steps are off the model as measured ones were, run after run."""

    def __init__(self, ratios: Sequence[float], chance: random.Random) -> None:
        self._ratios, self._chance = ratios, chance
        self._factors: list[float] = []
        self._taken = 0

    def take(self, steps: int) -> tuple[list[float], list[float]]:
        while len(self._factors) < self._taken + steps:
            start = self._chance.randrange(max(1, len(self._ratios) - BLOCK_STEPS))
            self._factors += self._ratios[start : start + BLOCK_STEPS]
        self._taken += steps
        return self._factors[self._taken - steps : self._taken], [0.0] * steps

    def give_back(self, steps: int) -> None:
        self._taken -= steps


def fit(recorded: Recorded, *, until: float) -> Model:
    """From what had been sent, and the steps that had begun, before a moment."""
    timed = {
        log.head.role: [
            CalibrationRow(find_shape(log.head.model), log.head.ranks, step.batch, max(seconds, step.seconds))
            for step, seconds in zip(log.steps, durations(log.steps), strict=True)
            if step.started_at_seconds < until
        ]
        for log in recorded.logs.values()
    }
    gpu, rows = find_gpu("cpu"), [row for some in timed.values() for row in some]
    fitted = calibrate(rows, gpu, efficiencies_for(gpu), names=PARAMETERS, source="steps of a tiny model on two cores")
    model = Model(calibrated=fitted.calibrated, ratios={}, ways=_ways(recorded, until=until))
    steps = model.steps(recorded.logs[PREFILL])
    ratios = {role: [row.seconds / steps.step_seconds(row.batch) for row in some] for role, some in timed.items()}
    return replace(model, ratios=ratios)


def _ways(recorded: Recorded, *, until: float) -> list[Way]:
    """Of requests whose whole prompt was one step of the prefill worker, alone: its log tells when that ended."""
    before = recorded.logs[PREFILL]
    ended_at = {
        step.joined[0].rid: step.started_at_seconds + step.seconds
        for step in before.steps
        if step.prefill_rows == len(step.joined) == 1 and step.prefill_tokens == step.joined[0].input_tokens
    }
    first_at = {
        joined.rid: step.started_at_seconds
        for name in recorded.decodes
        for step in recorded.logs[name].steps
        for joined in step.joined
    }
    return [
        _way(recorded, answer, ended_at=ended_at[answer.rid], first_at=first_at[answer.rid])
        for answer in recorded.answers
        if answer.rid in ended_at and answer.sent_at < until
    ]


def _way(recorded: Recorded, answer: Answered, *, ended_at: float, first_at: float) -> Way:
    """A transferred request's first token leaves just before its first decode step begins."""
    there = recorded.logs[answer.decode].joined[answer.rid]
    claimed_at = recorded.logs[PREFILL].joined[answer.rid].ready_at_seconds
    return Way(
        in_seconds=there.received_at_seconds - answer.sent_at,
        claim_seconds=max(0.0, claimed_at - there.received_at_seconds),
        kv_seconds=max(0.0, there.ready_at_seconds - ended_at),
        out_seconds=max(0.0, answer.token_times[0] - first_at),
    )


def predicted(recorded: Recorded, model: Model, *, seed: int) -> list[tuple[float, float]]:
    """TTFT and TPOT of each answer; answers are in the order in which they were sent."""
    chance, names = random.Random(seed), simulated_names(recorded)
    start = recorded.answers[0].sent_at
    drawn = [(each, chance.choice(model.ways)) for each in recorded.answers]
    arrivals = sorted(drawn, key=lambda pair: pair[0].sent_at + pair[1].in_seconds)
    requests = [
        Request(each.sent_at - start + way.in_seconds, each.input_tokens, each.output_tokens) for each, way in arrivals
    ]
    routes = [Route(names[each.decode], each.prefill and names[each.prefill]) for each, _ in arrivals]
    simulation = Simulation(
        routed(scenario(recorded, steps=model.steps(recorded.logs[PREFILL])), routes),
        clock_of=lambda name, _: DrawnSteps(model.ratios[Role(name.split("-")[0])], chance),
        passage=DrawnWays([way for _, way in arrivals]),
    )
    rows = simulation.run(requests).requests
    found = {
        each.rid: (float(ttft) + way.in_seconds + way.out_seconds, float(tpot))
        for (each, way), ttft, tpot in zip(arrivals, rows.ttft_seconds, rows.tpot_seconds, strict=True)
    }
    return [found[each.rid] for each in recorded.answers]
