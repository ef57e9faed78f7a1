"""What all simulated workers share: their place in the fleet, their step under way, and what they tell.

Invariant: between two boundaries of steps nothing changes but what arrives, and that is noted: like SGLang, a worker
looks once a loop. Every flight that a worker takes leaves it: handed over, finished, failed, or lost with the worker.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import isnan
from typing import TYPE_CHECKING, Generic, NamedTuple, Protocol, TypeVar

from duet_engine.simulator.flight import Stage
from duet_engine.simulator.kv import BLOCK_TOKENS, KvPool
from duet_engine.step_log import StepLogEntry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from duet_engine.perf.interface import StepBatch
    from duet_engine.protocol import StepKind
    from duet_engine.simulator.agenda import Agenda
    from duet_engine.simulator.flight import Flight
    from duet_engine.simulator.network import Link
    from duet_engine.simulator.noise import StepClock
    from duet_engine.simulator.pace import Pace
    from duet_engine.simulator.running_batch import GapListener
    from duet_engine.simulator.scenario import Pool

Report = TypeVar("Report")


class Chunk(NamedTuple):
    """Part of a prompt that one step computes."""

    flight: Flight
    tokens: int


class Outside(Protocol):
    """Who hears of what happens in a worker."""

    agenda: Agenda
    gaps: GapListener
    """Each of these gaps was seen by so many clients."""

    def finished(self, flight: Flight) -> None: ...
    def failed(self, flight: Flight) -> None: ...
    def refused(self, flight: Flight, worker_name: str) -> None: ...


class Passage(Protocol):
    """When what goes from one worker to another gets there, where that was measured."""

    turn_seconds: float
    """For how long an idle worker goes on taking in what comes before it forms a step."""

    def claim_at(self, flight: Flight) -> float: ...
    def kv_at(self, flight: Flight, *, computed_at: float) -> float: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a worker stands: what it is made of and whom it talks to."""

    outside: Outside
    pool: Pool
    pace: Pace
    clock: StepClock
    link: Link
    name: str
    passage: Passage | None = None


class Worker(ABC, Generic[Report]):
    """One engine."""

    def __init__(self, place: Place) -> None:
        pool = place.pool
        self.name, self.pool, self.link = place.name, pool, place.link
        self.kv = KvPool(pool.kv_capacity_tokens, caches=pool.limits.prefix_cache)
        self.flights: dict[Flight, None] = {}
        self.draining = False
        self.dead = False
        self.scheduled_at = 0.0
        self.ready_at: float | None = None
        self.gone_at: float | None = None
        self.steps = self.prefill_tokens = self.output_tokens = self.deflected_tokens = self.retractions = 0
        self.publish: Callable[[Report], None] = lambda _: None
        self.emptied: Callable[[], None] = lambda: None
        """Called when a draining worker holds nothing any more."""
        self.record: Callable[[StepLogEntry], None] | None = None
        """Hears of each step when it starts; whoever listens lets the worker take them one by one."""
        self._outside, self._agenda = place.outside, place.outside.agenda
        self._pace, self._clock, self._limits = place.pace, place.clock, pool.limits
        self._passage = place.passage
        self._chunks: tuple[Chunk, ...] = ()
        self._idle = True
        self._busy_since, self._busy_before = 0.0, 0.0
        self._news = False
        """Whether more has happened than decode steps since the last line of the state stream."""
        self._step_started_at = 0.0
        self._version = 0
        """Of the step under way: an end that was planned for an earlier one is no more."""

    # --- what each kind does ---

    @abstractmethod
    def _begin(self) -> None:
        """At a boundary: form the next step, or none."""

    @abstractmethod
    def _account(self) -> None:
        """The step that was under way is done."""

    @abstractmethod
    def report(self) -> Report:
        """What the state stream says now."""

    @abstractmethod
    def _queues(self) -> dict[str, int]:
        """Requests by place as the step begins, as `duet_engine.protocol.Work` names them."""

    @abstractmethod
    def _prompts_with_kv(self) -> Iterable[Flight]:
        """Whose KV was set aside as a whole, and is written chunk by chunk."""

    @abstractmethod
    def abort(self, flight: Flight) -> None:
        """Forget a flight wherever it is."""

    # --- steps ---

    def wake(self) -> None:
        """Something arrived: an idle worker looks at once, a busy one at the next boundary."""
        self._news = True
        if self._idle and not self.dead:
            self._idle, self._busy_since = False, self._agenda.now
            if self._passage is None:
                self._look()
            else:
                self._agenda.at(self._agenda.now + self._passage.turn_seconds, self._take_in)

    def _take_in(self, _: object) -> None:
        """The turn of the idle loop is over."""
        if not self.dead:
            self._look()

    def _rest(self) -> None:
        """There is nothing to compute."""
        self._idle = True
        self._busy_before += self._agenda.now - self._busy_since

    @property
    def busy_seconds(self) -> float:
        """Time in which steps ran, up to now."""
        until = self._agenda.now if self.gone_at is None else self.gone_at
        return self._busy_before + (0.0 if self._idle else until - self._busy_since)

    def _unwritten_tokens(self) -> int:
        """KV set aside for chunks after this step's: an engine counts it once they are computed."""
        chunks = sum(tokens for _, tokens in self._chunks)
        return sum(flight.context_tokens - flight.computed_tokens for flight in self._prompts_with_kv()) - chunks

    def _plan_end(self, end: float) -> None:
        self._version += 1
        self._agenda.at(end, self._end, self._version)

    def _start(self, kind: StepKind, batch: StepBatch, end: float) -> None:
        """A step is under way until `end`."""
        if self.record is not None:
            self.record(
                StepLogEntry(
                    kind=kind,
                    started_at_seconds=self._agenda.now,
                    seconds=end - self._agenda.now,
                    decode_rows=int(batch.decode_requests),
                    decode_context_tokens=int(batch.decode_context_tokens),
                    prefill_rows=int(batch.prefill_requests),
                    prefill_tokens=int(batch.prefill_tokens),
                    prefill_context_tokens=int(batch.prefill_context_tokens),
                    prefill_pairs=int(batch.prefill_pairs),
                    kv_used_tokens=self.kv.used_tokens - self._unwritten_tokens() + int(batch.decode_requests),
                    queues=self._queues(),
                )
            )
        self._plan_end(end)

    def _end(self, version: int) -> None:
        if version != self._version or self.dead:
            return
        self._account()
        self._look()

    def _look(self) -> None:
        self._step_started_at = self._agenda.now
        self._begin()
        if self._news:
            self._news = False
            self.publish(self.report())
        if self.draining and not self.flights:
            self.emptied()

    def _finish_chunks(self) -> tuple[Chunk, ...]:
        """Count the chunks of the step that ended; those of flights that were lost meanwhile are left out."""
        self._news = self._news or bool(self._chunks)
        chunks = tuple(chunk for chunk in self._chunks if chunk.flight in self.flights)
        for flight, tokens in chunks:
            flight.computed_tokens += tokens
            flight.chunks_done += 1
            flight.progressed_at = self._agenda.now
            self.prefill_tokens += tokens
        self._chunks = ()
        return chunks

    def _compute(self, chunks: tuple[Chunk, ...]) -> None:
        """These chunks are what the step under way computes."""
        self._chunks, self._news = chunks, True
        for flight, _ in chunks:
            if isnan(flight.prefill_started_at):
                flight.prefill_started_at = self._agenda.now

    def _admit_prompt(self, flight: Flight, *, reserve_tokens: int) -> bool:
        """KV for a whole prompt, what is cached shared."""
        matched = self.kv.matched_tokens(flight.full_blocks)
        holding = flight.kv if self is flight.decode else flight.prefill_kv
        blocks = flight.full_blocks[: matched // BLOCK_TOKENS]
        if not self.kv.admit(
            holding, tokens=flight.context_tokens, reserve_tokens=reserve_tokens, cached_blocks=blocks
        ):
            return False
        flight.computed_tokens = flight.cached_tokens = matched
        return True

    # --- leaving ---

    def _leave(self, flight: Flight) -> None:
        del self.flights[flight]
        self._news = True
        if self.draining and not self.flights and self._idle:
            self.emptied()

    def _fail(self, flight: Flight) -> None:
        """A flight that holds nothing here can't be served at all."""
        self._leave(flight)
        flight.stage = Stage.OVER
        self._outside.failed(flight)
