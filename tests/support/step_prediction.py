"""Latencies of a recorded run as the calibrated model and the simulator predict them, from nothing but the arrivals.

Invariant: pure. What is fitted (efficiencies, the noise of steps, what a request's way takes beside steps) comes from
one part of a recording and is tried on another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
from tests.support.step_comparison import PREFILL, Recorded, WorkerLog, scenario, simulated_names

from duet_engine.perf.calibrate import CalibrationRow, calibrate
from duet_engine.perf.efficiencies import Calibrated, efficiencies_for
from duet_engine.perf.hardware import find_gpu
from duet_engine.perf.models import find_shape
from duet_engine.perf.roofline import Roofline
from duet_engine.simulator.replay import Route, routed
from duet_engine.simulator.run import Simulation
from duet_engine.simulator.scenario import StepNoise
from duet_engine.simulator.workload import Request
from duet_engine.step_log import StepLogEntry, durations

if TYPE_CHECKING:
    from duet_engine.simulator.flight import Flight

PARAMETERS = ("linear_compute", "attention_compute", "attention_bandwidth", "linear_launch_seconds")
"""What steps of a tiny model tell: most of each is the interpreter between its products."""
STALL = 4.0
"""A step that takes so many times what it should was held up by something else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Links:
    """What a request's way takes beside steps."""

    in_seconds: float
    """From the client to the decode worker's scheduler."""
    claim_seconds: float
    """From there until the prefill worker knows that its KV has a place."""
    kv_seconds: float
    """From the end of its prefill until the decode worker has its KV."""
    out_seconds: float = 0.0
    """From a token to the client."""
    turn_seconds: float = 0.0

    def claim_at(self, flight: Flight) -> float:
        return flight.dispatched_at + self.claim_seconds

    def kv_at(self, flight: Flight, *, computed_at: float) -> float:
        return computed_at + self.kv_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """Everything that one part of a recording tells about this machine."""

    calibrated: Calibrated
    noise: StepNoise
    links: Links

    def steps(self, log: WorkerLog) -> Roofline:
        return Roofline(find_shape(log.head.model), find_gpu("cpu"), ranks=log.head.ranks, calibrated=self.calibrated)


def timed_steps(logs: Sequence[WorkerLog], *, until: float) -> list[tuple[WorkerLog, StepLogEntry, float]]:
    """Steps that began before a moment, each with how long the next one had to wait for it."""
    return [
        (log, step, max(seconds, step.seconds))
        for log in logs
        for step, seconds in zip(log.steps, durations(log.steps), strict=True)
        if step.started_at_seconds < until
    ]


def fit(recorded: Recorded, *, until: float) -> Model:
    """From what had been sent, and the steps that had begun, before a moment."""
    timed = timed_steps(list(recorded.logs.values()), until=until)
    rows = [
        CalibrationRow(find_shape(log.head.model), log.head.ranks, step.batch, seconds) for log, step, seconds in timed
    ]
    gpu = find_gpu("cpu")
    fitted = calibrate(rows, gpu, efficiencies_for(gpu), names=PARAMETERS, source="steps of a tiny model on two cores")
    model = Model(calibrated=fitted.calibrated, noise=StepNoise(), links=_links(recorded, until=until))
    model = replace(model, noise=_noise(model, timed))
    early = replace(recorded, answers=tuple(each for each in recorded.answers if each.sent_at < until))
    found = predicted(early, model, seed=0)
    left = [each.ttft_seconds - ours for each, (ours, _) in zip(early.answers, found, strict=True)]
    return replace(model, links=replace(model.links, out_seconds=max(0.0, median(left))))


def _noise(model: Model, timed: Sequence[tuple[WorkerLog, StepLogEntry, float]]) -> StepNoise:
    """What is left of the steps' times, with those that something else held up apart."""
    expected = np.array([model.steps(log).step_seconds(step.batch) for log, step, _ in timed])
    ratios = np.array([seconds for _, _, seconds in timed]) / expected
    stalled = ratios >= STALL
    return StepNoise(
        relative_spread=float(np.std(np.log(ratios[~stalled]))),
        stall_probability=float(np.mean(stalled)),
        stall_seconds=float(np.mean(((ratios - 1) * expected)[stalled])) if stalled.any() else 0.0,
    )


def _links(recorded: Recorded, *, until: float) -> Links:
    answers = [each for each in recorded.answers if each.sent_at < until]
    there = {each.rid: recorded.logs[each.decode].joined[each.rid] for each in answers}
    pairs = [each for each in answers if each.prefill is not None]
    before = recorded.logs[PREFILL]
    alone = {
        step.joined[0].rid: step.started_at_seconds + step.seconds
        for step in before.steps
        if step.prefill_rows == len(step.joined) == 1 and step.prefill_tokens == step.joined[0].input_tokens
    }
    return Links(
        in_seconds=median(there[each.rid].received_at_seconds - each.sent_at for each in answers),
        claim_seconds=median(
            before.joined[each.rid].ready_at_seconds - there[each.rid].received_at_seconds for each in pairs
        ),
        kv_seconds=median(there[each.rid].ready_at_seconds - alone[each.rid] for each in pairs if each.rid in alone),
    )


def predicted(recorded: Recorded, model: Model, *, seed: int) -> list[tuple[float, float]]:
    """TTFT and TPOT of each answer, in order."""
    names, links = simulated_names(recorded), model.links
    order = sorted(range(len(recorded.answers)), key=lambda index: recorded.answers[index].sent_at)
    answers = [recorded.answers[index] for index in order]
    start = answers[0].sent_at
    requests = [
        Request(each.sent_at - start + links.in_seconds, each.input_tokens, each.output_tokens) for each in answers
    ]
    routes = [Route(names[each.decode], each.prefill and names[each.prefill]) for each in answers]
    fleet = scenario(recorded, steps=model.steps(recorded.logs[PREFILL]))
    simulation = Simulation(replace(routed(fleet, routes), noise=model.noise, seed=seed), passage=links)
    rows = simulation.run(requests).requests
    found = [
        (float(ttft) + links.in_seconds + links.out_seconds, float(tpot))
        for ttft, tpot in zip(rows.ttft_seconds, rows.tpot_seconds, strict=True)
    ]
    return [found[place] for place in np.argsort(order)]
