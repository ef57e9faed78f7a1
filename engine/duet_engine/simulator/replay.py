"""A recorded run played again: the same arrivals and routes, each step as long as it was; how many steps are the same?

This is the evidence for the workers' scheduling: given measured step times, what is computed together, in which order
and with how much KV must come out by itself.

Invariant: nothing of a log but its steps' durations reaches the simulated workers. Steps are compared in order; one
that is missing or too much costs only itself, not those behind it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import TYPE_CHECKING

from duet_engine.policy.dispatch import DeflectReason, Hold, HoldReason, Local, Pair
from duet_engine.protocol import StepKind
from duet_engine.simulator.noise import NoiseStream
from duet_engine.simulator.run import Simulation
from duet_engine.simulator.scenario import NO_NOISE, GatewayLimits, Network
from duet_engine.step_log import LOOP_SECONDS, durations, idle_between

if TYPE_CHECKING:
    from duet_engine.policy.fleet import Fleet, Prompt
    from duet_engine.simulator.flight import Flight
    from duet_engine.simulator.noise import StepClock
    from duet_engine.simulator.scenario import Scenario
    from duet_engine.simulator.workload import Request
    from duet_engine.step_log import StepLogEntry

ORDER_SHARE = 1e-5
"""What is left of the time between moments of one turn, so that their order stays."""
Signature = tuple[StepKind, int, int, int, int, int]


@dataclass(frozen=True, slots=True)
class Route:
    """The way that a recorded request took, by the names of simulated workers: `prefill-0000`, `decode-0000`, …"""

    decode: str
    prefill: str | None = None
    """None: it was prefilled where it was decoded."""
    chunks_tokens: tuple[int, ...] = ()
    """The bounds of its chunks that the gateway sent with it."""


@dataclass(frozen=True, slots=True)
class Handover:
    """When a request that went by way of a prefill worker was free to run, first there and then where it decodes.

    Like steps' durations these are measured: what is between engines isn't what a replay shows.
    """

    claimed_at_seconds: float
    """The prefill worker knew where its KV goes."""
    kv_at_seconds: float
    """The decode worker had its KV."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """Requests as they reached the engines, in order, and each worker's steps. All moments are of one clock."""

    requests: Sequence[Request]
    routes: Sequence[Route]
    logs: Mapping[str, Sequence[StepLogEntry]]
    handovers: Sequence[Handover | None] | None = None
    """Of each request, in the same order; None for what was prefilled where it was decoded. Without them the
    simulated workers hand over by themselves."""

    def __post_init__(self) -> None:
        if self.handovers is not None and len(self.handovers) != len(self.requests):
            raise ValueError(f"handovers: must be as many as requests, got {len(self.handovers)}")
        if len(self.routes) != len(self.requests):
            raise ValueError(f"routes: must be as many as requests, got {len(self.routes)} for {len(self.requests)}")
        for name, log in self.logs.items():
            if any(entry.kind is StepKind.SPLIT for entry in log):
                raise ValueError(f"logs[{name!r}]: has split steps, whose parts' times a log doesn't tell")


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How far the steps of one worker were reproduced."""

    logged: int
    simulated: int
    same_batch: int
    """Kind, rows, chunk and context tokens."""
    same_kv: int
    """And KV, within the tolerance."""
    same_queues: int
    """And as many requests in each queue."""
    first_difference: int | None
    """Index of the first logged step that has no equal."""

    @property
    def share(self) -> float:
        """Of all steps, logged or simulated, whose batch was reproduced; 1 where there is none."""
        most = max(self.logged, self.simulated)
        return self.same_batch / most if most else 1.0


def replay(
    recording: Recording, scenario: Scenario, *, kv_tolerance_tokens: int = 0, loop_seconds: float = LOOP_SECONDS
) -> dict[str, Agreement]:
    """Play a recording with the workers of `scenario`, and compare by worker.

    KV may differ by `kv_tolerance_tokens`, for engines that count pages. The gateway is told every route; noise and
    network aren't wanted, because the durations have them already.
    """
    steps: dict[str, list[StepLogEntry]] = {name: [] for name in recording.logs}
    scenario = replace(routed(scenario, recording.routes), noise=NO_NOISE)

    def clock_of(name: str, number: int) -> StepClock:
        log = recording.logs.get(name)
        return (
            RecordedClock(durations(log, loop_seconds=loop_seconds))
            if log
            else NoiseStream(NO_NOISE, seed=scenario.seed, worker=number)
        )

    simulation = Simulation(
        scenario,
        clock_of=clock_of,
        record=lambda name, entry: steps.setdefault(name, []).append(entry),
        passage=None if recording.handovers is None else AsMeasured(recording.handovers),
    )
    simulation.run(recording.requests)
    return {
        name: compared(log, steps[name], kv_tolerance_tokens=kv_tolerance_tokens)
        for name, log in recording.logs.items()
    }


def routed(scenario: Scenario, routes: Sequence[Route]) -> Scenario:
    """The scenario with requests that come where they go, each by its given way."""
    return replace(
        scenario,
        dispatch=lambda: _AsRecorded(routes),
        network=Network(hop_seconds=0.0),
        gateway=GatewayLimits(
            state_interval_seconds=0.0, state_age_seconds=0.0, pass_interval_seconds=1e-6, queue_timeout_seconds=0.0
        ),
        planner=None,
    )


class AsMeasured:
    """Claims and KV arrive when they did."""

    turn_seconds = 1e-5
    """An engine's idle loop takes in together what came while it turned."""

    def __init__(self, handovers: Sequence[Handover | None]) -> None:
        self._handovers = handovers

    def claim_at(self, flight: Flight) -> float:
        return self._of(flight).claimed_at_seconds

    def kv_at(self, flight: Flight, *, computed_at: float) -> float:  # noqa: ARG002 - it was measured
        return self._of(flight).kv_at_seconds

    def _of(self, flight: Flight) -> Handover:
        handover = self._handovers[flight.index]
        if handover is None:
            raise ValueError(f"handovers[{flight.index}]: is missing, and its route has a prefill worker")
        return handover


def noticed(moment_seconds: float, log: Sequence[StepLogEntry]) -> float:
    """When an engine took in what came at a moment: with the step that it then began if it was idle, else at once.

    A simulated worker takes in, forms a step and begins it in one instant; a real one needs a turn of its loop. The log
    must tell who joins each step.
    """
    place = bisect_right(log, moment_seconds, key=lambda entry: entry.started_at_seconds)
    if place == len(log):
        return moment_seconds
    ended_at = log[place - 1].started_at_seconds + log[place - 1].seconds if place else moment_seconds
    idle = moment_seconds >= ended_at and (place == 0 or idle_between(log[place - 1], log[place]))
    begins = log[place].started_at_seconds
    return begins - ORDER_SHARE * (begins - moment_seconds) if idle else moment_seconds


class RecordedClock:
    """Steps take what they took; those beyond the log what the model says."""

    def __init__(self, seconds: Sequence[float]) -> None:
        self._seconds, self._next = seconds, 0

    def take(self, steps: int) -> tuple[list[float], list[float]]:
        taken = list(self._seconds[self._next : self._next + steps])
        self._next += steps
        beyond = steps - len(taken)
        return [0.0] * len(taken) + [1.0] * beyond, taken + [0.0] * beyond

    def give_back(self, steps: int) -> None:
        self._next -= steps


def compared(log: Sequence[StepLogEntry], steps: Sequence[StepLogEntry], *, kv_tolerance_tokens: int = 0) -> Agreement:
    """Logged and simulated steps side by side, matched in order."""
    logged, simulated = [_signature(entry) for entry in log], [_signature(entry) for entry in steps]
    blocks = SequenceMatcher(None, logged, simulated, autojunk=False).get_matching_blocks()
    pairs = [(block.a + index, block.b + index) for block in blocks for index in range(block.size)]
    same_kv = [
        (log[left], steps[right])
        for left, right in pairs
        if abs(log[left].kv_used_tokens - steps[right].kv_used_tokens) <= kv_tolerance_tokens
    ]
    matched = {left for left, _ in pairs}
    return Agreement(
        logged=len(log),
        simulated=len(steps),
        same_batch=len(pairs),
        same_kv=len(same_kv),
        same_queues=sum(_queues(left) == _queues(right) for left, right in same_kv),
        first_difference=next((index for index in range(len(log)) if index not in matched), None),
    )


def _signature(entry: StepLogEntry) -> Signature:
    return (
        entry.kind,
        entry.decode_rows,
        entry.decode_context_tokens,
        entry.prefill_rows,
        entry.prefill_tokens,
        entry.prefill_context_tokens,
    )


def _queues(entry: StepLogEntry) -> dict[str, int]:
    return {name: count for name, count in entry.queues.items() if count}


class _AsRecorded:
    """A dispatch policy that was told. A prompt that comes back was refused, which the recording knows nothing of: it
    is dropped."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self._routes = iter(routes)

    def dispatch(self, waiting: Sequence[Prompt], fleet: Fleet) -> Sequence[Pair | Local | Hold]:  # noqa: ARG002
        return [
            Hold(HoldReason.TRIED_ALL) if prompt.excluded or prompt.waited_seconds > 0 else self._next()
            for prompt in waiting
        ]

    def _next(self) -> Pair | Local:
        route = next(self._routes)
        if route.prefill is None:
            return Local(route.decode, route.chunks_tokens, DeflectReason.TTFT_ENDANGERED, 0.0, 0.0)
        return Pair(route.prefill, route.decode, 0.0, 0.0)
