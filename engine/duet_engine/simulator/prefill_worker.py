"""A prefill worker: prompts wait for KV on their decode worker, are computed in chunks, and leave chunk by chunk.

Invariant: prompts are computed in the order in which their decode workers claimed them; at most one is left half
computed by a step. Its KV is held from the first chunk until it has left.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from duet_engine.perf.interface import StepBatch
from duet_engine.protocol import StepKind
from duet_engine.simulator.flight import Flight, Stage
from duet_engine.simulator.network import send
from duet_engine.simulator.noise import next_step
from duet_engine.simulator.reports import PrefillReport
from duet_engine.simulator.worker import Chunk, Place, Worker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from duet_engine.simulator.worker import Passage


class PrefillWorker(Worker[PrefillReport]):
    """SGLang's prefill mode."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.waiting: deque[Flight] = deque()
        self.queued_seconds = 0.0
        self.queued_tokens = 0

    def submit(self, flight: Flight) -> None:
        """A prompt that waits until its decode worker claims it."""
        flight.stage = Stage.BOOTSTRAP
        flight.queued_seconds = self.pool.policy_steps.prompt_seconds(
            flight.input_tokens, chunk_tokens=self._limits.chunked_prefill_tokens
        )
        self.queued_seconds += flight.queued_seconds
        self.queued_tokens += flight.input_tokens
        self.flights[flight] = None

    def claimed(self, flight: Flight) -> None:
        """Its KV has a place on the decode worker, which wakes this one when it has claimed all that it could."""
        flight.stage = Stage.WAITING
        self.waiting.append(flight)

    def report(self) -> PrefillReport:
        return PrefillReport(
            self._agenda.now,
            self.queued_seconds,
            self.queued_tokens,
            None if self._idle else self._step_started_at,
        )

    def _begin(self) -> None:
        chunks = tuple(self._packed())
        if not chunks:
            self._rest()
            return
        batch = StepBatch()
        for flight, tokens in chunks:
            batch = batch.with_chunks(tokens, flight.computed_tokens)
        factor, stall = next_step(self._clock)
        self._compute(chunks)
        end = self._agenda.now + self._pace.prompt_step_seconds(batch) * factor + stall
        if self._passage is not None:
            self._plan_arrivals(self._passage, end)
        self._start(StepKind.PREFILL, batch, end)

    def _queues(self) -> dict[str, int]:
        stages = [flight.stage for flight in self.flights]
        return {
            "running": len(self._chunks),
            "queued": stages.count(Stage.WAITING) - len(self._chunks),
            "prefill_bootstrap": stages.count(Stage.BOOTSTRAP),
            "prefill_inflight": stages.count(Stage.INFLIGHT),
        }

    def _prompts_with_kv(self) -> Iterator[Flight]:
        return (flight for flight in self.waiting if flight.prefill_kv.tokens)

    def _packed(self) -> Iterator[Chunk]:
        budget = self._limits.chunked_prefill_tokens
        for flight in self.waiting:
            if flight.prefill_kv.tokens == 0 and not self._admit_prompt(flight, reserve_tokens=0):
                return
            left = flight.input_tokens - flight.computed_tokens
            tokens = min(left, budget)
            yield Chunk(flight, tokens)
            budget -= tokens
            if budget <= 0 or tokens < left:
                return

    def _account(self) -> None:
        self.steps += 1
        for flight, tokens in self._finish_chunks():
            self._forget_queued(flight, tokens)
            arrives_at = self._send_computed(flight)
            if flight.computed_tokens == flight.input_tokens:
                self._computed(flight, arrives_at)

    def _forget_queued(self, flight: Flight, tokens: int) -> None:
        left = flight.input_tokens - flight.computed_tokens
        spent = flight.queued_seconds * tokens / (left + tokens)
        flight.queued_seconds -= spent
        self.queued_seconds -= spent
        self.queued_tokens -= tokens

    def _send_computed(self, flight: Flight) -> float:
        """What the decode worker lacks of the chunk, and of what was cached before it."""
        assert flight.decode is not None
        start = max(flight.sent_tokens, flight.decode_cached_tokens)
        seconds = self._pace.link_seconds_per_token * max(0, flight.computed_tokens - start)
        flight.sent_tokens = flight.computed_tokens
        return send(self.link, flight.decode.link, now=self._agenda.now, seconds=seconds)

    def _computed(self, flight: Flight, arrives_at: float) -> None:
        flight.prefill_ended_at = self._agenda.now
        self.queued_seconds -= flight.queued_seconds
        self.queued_tokens -= flight.cached_tokens
        flight.queued_seconds = 0.0
        self.waiting.remove(flight)
        self.kv.share(flight.prefill_kv, flight.full_blocks)
        if flight.stage is Stage.WAITING:
            flight.stage = Stage.INFLIGHT
        kv_at = arrives_at + self._pace.handover_seconds
        if self._passage is not None:
            kv_at = self._passage.kv_at(flight, computed_at=self._agenda.now)
        self._agenda.at(kv_at, self._handed_over, flight)

    def _plan_arrivals(self, passage: Passage, end: float) -> None:
        """KV that this step ends is there when it was, which may be before this worker has turned to its next step."""
        for flight, tokens in self._chunks:
            if flight.computed_tokens + tokens == flight.input_tokens and flight.decode is not None:
                self._agenda.at(passage.kv_at(flight, computed_at=end), flight.decode.arrived, flight)

    def _handed_over(self, flight: Flight) -> None:
        if flight not in self.flights:
            return
        assert flight.decode is not None
        self.kv.release(flight.prefill_kv)
        self._leave(flight)
        if self._passage is None:
            flight.decode.arrived(flight)
        if self.waiting:
            self.wake()  # for the KV that came free

    def abort(self, flight: Flight) -> None:
        if flight not in self.flights:
            return
        if flight in self.waiting:
            self.waiting.remove(flight)
        if flight.computed_tokens < flight.input_tokens:
            self.queued_seconds -= flight.queued_seconds
            self.queued_tokens -= flight.input_tokens - flight.computed_tokens + flight.cached_tokens
        self.kv.release(flight.prefill_kv)
        self._leave(flight)
        self.publish(self.report())
