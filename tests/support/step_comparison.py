"""A recording of real SGLang workers against the simulator: as it was, and as the calibrated model would have it.

Invariant: pure. What is measured and given to the simulator is named: arrivals, routes, when KV was free to go and when
it came, and either each step's duration or nothing of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tests.support.step_recording import Answered, read_answers

from duet_engine.perf.replica import replica_from_document
from duet_engine.perf.roofline import Roofline
from duet_engine.policy.deflect import DeflectionRule
from duet_engine.protocol import Role, WorkerProfile
from duet_engine.simulator.replay import Handover, Recording, Route, noticed
from duet_engine.simulator.scenario import NO_NOISE, EngineLimits, LocalPrefill, Pool, Scenario
from duet_engine.simulator.workload import Request
from duet_engine.slo import Objective
from duet_engine.step_log import Joined, StepLogEntry, StepLogHead, read_step_log

PREFILL = "prefill"
ITL_SECONDS = 0.05
"""What the plugin's workers begin with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLog:
    """One worker's steps from the first of ours on."""

    head: StepLogHead
    steps: tuple[StepLogEntry, ...]
    joined: Mapping[str, Joined]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """Everything in a folder of `step_recording.record`."""

    answers: tuple[Answered, ...]
    logs: Mapping[str, WorkerLog]
    profiles: Mapping[str, WorkerProfile]

    @property
    def decodes(self) -> tuple[str, ...]:
        return tuple(sorted(name for name in self.logs if name != PREFILL))


def read(folder: Path) -> Recorded:
    answers = tuple(sorted(read_answers(folder), key=lambda each: each.sent_at))
    ours = {each.rid for each in answers}
    names = [path.stem for path in folder.glob("*.steps")]
    return Recorded(
        answers=answers,
        logs={name: _log(folder / f"{name}.steps", ours) for name in names},
        profiles={
            name: WorkerProfile.model_validate_json((folder / f"{name}.profile.json").read_bytes()) for name in names
        },
    )


def _log(path: Path, ours: set[str]) -> WorkerLog:
    with path.open() as lines:
        head, entries = read_step_log(lines, name=path.name)
        steps = list(entries)
    first = next(index for index, step in enumerate(steps) if any(each.rid in ours for each in step.joined))
    kept = tuple(steps[first:])
    return WorkerLog(head=head, steps=kept, joined={each.rid: each for step in kept for each in step.joined})


def simulated_names(recorded: Recorded) -> dict[str, str]:
    """Workers of the simulator, by the names of those that were recorded."""
    return {PREFILL: "prefill-0000"} | {name: f"decode-{index:04}" for index, name in enumerate(recorded.decodes)}


def recording(recorded: Recorded) -> Recording:
    """In the terms of `duet_engine.simulator.replay`; its clock begins a second before the first request."""
    simulated = simulated_names(recorded)
    rows = sorted(
        (_row(recorded, each, simulated) for each in recorded.answers), key=lambda row: row[0].arrival_seconds
    )
    start = rows[0][0].arrival_seconds - 1.0
    return Recording(
        requests=[replace(request, arrival_seconds=request.arrival_seconds - start) for request, _, _ in rows],
        routes=[route for _, route, _ in rows],
        handovers=[handover and _shifted(handover, start) for _, _, handover in rows],
        logs={
            simulated[name]: [_shifted_step(step, start) for step in log.steps] for name, log in recorded.logs.items()
        },
    )


def _row(recorded: Recorded, answer: Answered, simulated: Mapping[str, str]) -> tuple[Request, Route, Handover | None]:
    log = recorded.logs[answer.decode]
    there = log.joined[answer.rid]
    if answer.prefill is None:
        request = Request(noticed(there.ready_at_seconds, log.steps), answer.input_tokens, answer.output_tokens)
        return request, Route(simulated[answer.decode]), None
    before = recorded.logs[answer.prefill]
    claimed = noticed(before.joined[answer.rid].ready_at_seconds, before.steps)
    kv_at = noticed(there.ready_at_seconds, log.steps)
    request = Request(there.received_at_seconds, answer.input_tokens, answer.output_tokens)
    route = Route(simulated[answer.decode], simulated[answer.prefill])
    return request, route, Handover(claimed_at_seconds=claimed, kv_at_seconds=kv_at)


def _shifted_step(step: StepLogEntry, start: float) -> StepLogEntry:
    joined = tuple(replace(each, ready_at_seconds=each.ready_at_seconds - start) for each in step.joined)
    return replace(step, started_at_seconds=step.started_at_seconds - start, joined=joined)


def _shifted(handover: Handover, start: float) -> Handover:
    return Handover(handover.claimed_at_seconds - start, handover.kv_at_seconds - start)


def scenario(recorded: Recorded, *, steps: Roofline | None = None) -> Scenario:
    """The same fleet in the simulator; `steps` is the truth of its step times, what workers believe is their own."""

    def pool(role: Role, name: str, replicas: int) -> Pool:
        profile = recorded.profiles[name]
        believed = replica_from_document(profile.replica)
        return Pool(
            role=role,
            replicas=replicas,
            steps=steps or believed,
            believed_steps=believed,
            kv_capacity_tokens=profile.kv_capacity_tokens,
            limits=EngineLimits(
                max_running_requests=profile.max_running_requests,
                chunked_prefill_tokens=profile.chunked_prefill_tokens,
                graph_batch_sizes=(),
            ),
            local_prefill=None if role is Role.PREFILL else LocalPrefill.SAFE,
        )

    return Scenario(
        prefill=pool(Role.PREFILL, PREFILL, 1),
        decode=pool(Role.DECODE, recorded.decodes[0], len(recorded.decodes)),
        objective=Objective(ttft_seconds=600.0, itl_seconds=ITL_SECONDS),
        rule=DeflectionRule(itl_seconds=ITL_SECONDS),
        noise=NO_NOISE,
    )
