"""A worker that decodes: the decode side of a pair with local prefill, or a unified worker that does everything.

Invariant: KV for a transferred prompt is reserved before its prefill starts, first come first served, and the first
that doesn't fit holds back those behind it. Steps without prompts are taken many at once: a leap ends where the batch
changes, memory ends, or something arrives, and gives what single steps would, to the last bit.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from itertools import accumulate
from typing import TYPE_CHECKING

from duet_engine.perf.interface import StepBatch
from duet_engine.policy.partition import Partitioner
from duet_engine.protocol import Role, StepKind
from duet_engine.simulator.flight import Flight, Stage
from duet_engine.simulator.kv import BLOCK_TOKENS
from duet_engine.simulator.local_prefill import (
    Choice,
    OnePass,
    Rules,
    SplitStep,
    choose,
    has_safe_chunk,
    with_chunks,
)
from duet_engine.simulator.noise import next_step
from duet_engine.simulator.reports import DecodeReport
from duet_engine.simulator.running_batch import RunningBatch
from duet_engine.simulator.worker import Place, Worker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from duet_engine.simulator.prefill_worker import PrefillWorker

LONGEST_LEAP_STEPS = 64
"""Bounds what is drawn in vain when something arrives early."""


class DecodingWorker(Worker[DecodeReport]):
    """SGLang's decode mode with Duet's local prefill, or its null mode."""

    def __init__(self, place: Place, *, rules: Rules, longest_leap: int = LONGEST_LEAP_STEPS) -> None:
        super().__init__(place)
        self.rules = rules
        self.partitioner = Partitioner(place.pool.policy_steps)
        self.unified = self.pool.role is Role.UNIFIED
        self.batch = RunningBatch(self.kv, itl_limits=rules.itl_limits, gaps=place.outside.gaps)
        self.prealloc: deque[Flight] = deque()
        self.transferred: deque[Flight] = deque()
        self.prompts: deque[Flight] = deque()
        """Deflected ones, which hold KV; on a unified worker all, and they get it when their turn comes."""
        self.retracted: deque[Flight] = deque()
        self.local_prefill_tokens = 0
        self.unsafe_since: float | None = None
        """Since when no chunk has been safe, as far as anybody asked."""
        self._arriving = self._arriving_tokens = self._preallocated_tokens = 0
        self._longest_leap, self._reach = longest_leap, 8
        self._ends: list[float] = []
        """When each decode step of the present step or leap ends."""
        self._leaping = False

    # --- arrivals ---

    def submit(self, flight: Flight) -> None:
        """A request to decode here; a local one is prefilled here too."""
        if flight.local and not self.unified and not self._accepts(flight):
            self.publish(self.report())
            self._outside.refused(flight, self.name)
            return
        self.flights[flight] = None
        if flight.input_tokens >= self.kv.capacity_tokens:
            self.publish(self.report())
            self._fail(flight)
        elif flight.local:
            flight.stage = Stage.PROMPT
            flight.progressed_at = self._agenda.now
            self.local_prefill_tokens += flight.uncomputed_tokens
            self.prompts.append(flight)
            self.wake()
        else:
            flight.decode_cached_tokens = self.kv.matched_tokens(flight.full_blocks)
            self._arriving += 1
            self._arriving_tokens += flight.input_tokens
            self._preallocated_tokens += flight.input_tokens + self._reserve(flight)
            self.prealloc.append(flight)
            if self._passage is not None:
                self._agenda.at(self._passage.claim_at(flight), self._claim, flight)
            self.wake()

    def wake(self) -> None:
        if self._leaping:
            self._cut()
        super().wake()

    def arrived(self, flight: Flight) -> None:
        """Its KV is here."""
        flight.kv_arrived_at = self._agenda.now
        flight.stage = Stage.TRANSFERRED
        self.transferred.append(flight)
        self.wake()

    def admit_local(self, flight: Flight) -> bool:
        """KV for a unified worker's prompt whose turn it is."""
        if not self._admit_prompt(flight, reserve_tokens=self._reserve(flight)):
            return False
        self.local_prefill_tokens -= flight.cached_tokens
        return True

    def _accepts(self, flight: Flight) -> bool:
        """A deflected prompt is taken if it fits now, or not at all."""
        if self._leaping:
            self._cut()
        limits = self._limits
        if self.pool.local_prefill is None or len(self.prompts) >= limits.max_deflected_requests or self.slots <= 0:
            return False
        if self._unsafe_for_long():
            return False
        reserve = self._reserve(flight)
        growth = self.kv.growth_tokens if self._ends else 0
        room = self.kv.free_tokens - growth - self._preallocated_tokens
        fits = not self.retracted and flight.context_tokens + reserve <= room
        return fits and self._admit_prompt(flight, reserve_tokens=reserve)

    def _unsafe_for_long(self) -> bool:
        """Whether no chunk has been safe for a while, and still none is."""
        if self.unsafe_since is None or self._agenda.now - self.unsafe_since <= self._limits.itl_unsafe_seconds:
            return False
        if has_safe_chunk(self):
            self.unsafe_since = None
        return self.unsafe_since is not None

    @property
    def slots(self) -> int:
        """Requests that may still be given KV."""
        taken = len(self.batch) + self._arriving - len(self.prealloc)
        return self._limits.max_running_requests - taken - (0 if self.unified else len(self.prompts))

    def _reserve(self, flight: Flight) -> int:
        return min(self._limits.reserved_decode_tokens, max(0, self.kv.capacity_tokens - flight.context_tokens))

    def report(self) -> DecodeReport:
        return DecodeReport(
            self._agenda.now,
            len(self.batch) + self._arriving + len(self.retracted),
            self.batch.context_tokens + self._arriving_tokens,
            self.kv.free_tokens - self._preallocated_tokens,
            len(self.prompts),
            self.local_prefill_tokens,
            len(self.batch),
        )

    # --- boundaries ---

    def _begin(self) -> None:
        if self.retracted:
            self._restore()
        if self.prealloc:
            self._preallocate()
        if self.transferred:
            self._join_transferred()
        if self.kv.full:
            self._retract()
        if not self.prompts:
            self._decode_alone(most=self._longest_leap)
            return
        choice: Choice = choose(self, self._agenda.now)
        if self.kv.full:
            self._retract()  # what was admitted just now took the last room
        if isinstance(choice, SplitStep):
            self._start_split(choice)
        elif choice.chunks:
            self._start_pass(choice)
        else:
            self._decode_alone(most=1 if self.prompts else self._longest_leap)

    def _decode_alone(self, *, most: int) -> None:
        if self.batch:
            self._start_leap(most=most)
        else:
            self._rest()

    def _preallocate(self) -> None:
        """In order of arrival; the first that doesn't fit holds back the rest."""
        claimed: dict[PrefillWorker, None] = {}
        while self.prealloc and not self.retracted and self.slots > 0 and self._place(self.prealloc[0]):
            flight = self.prealloc.popleft()
            self._preallocated_tokens -= flight.input_tokens + self._reserve(flight)
            assert flight.prefill is not None
            if self._passage is None:
                flight.prefill.claimed(flight)
                claimed[flight.prefill] = None
        for prefill in claimed:
            prefill.wake()

    def _claim(self, flight: Flight) -> None:
        """The prefill worker hears that there is a place for its KV."""
        if flight.prefill is not None and flight.stage is Stage.BOOTSTRAP:
            flight.prefill.claimed(flight)
            flight.prefill.wake()

    def _place(self, flight: Flight) -> bool:
        blocks = flight.full_blocks[: flight.decode_cached_tokens // BLOCK_TOKENS]
        if self.kv.matched_tokens(blocks) < flight.decode_cached_tokens:
            flight.decode_cached_tokens, blocks = 0, ()  # evicted while it waited
        reserve = self._reserve(flight)
        return self.kv.admit(flight.kv, tokens=flight.input_tokens, reserve_tokens=reserve, cached_blocks=blocks)

    def _join_transferred(self) -> None:
        """Their first token leaves at once, and they take part in the next step."""
        for flight in self.transferred:
            self._forget_arriving(flight)
            self.kv.share(flight.kv, flight.full_blocks)
            self._prompt_token(flight)
        self.transferred.clear()

    def _prompt_token(self, flight: Flight) -> None:
        """The token that a prompt ends with: the first, or the next of a request that was computed again."""
        now = self._agenda.now
        flight.generated_tokens += 1
        self.output_tokens += 1
        if flight.generated_tokens == 1:
            flight.first_token_at = now
        else:
            self.batch.own_gap(flight, now)
        flight.last_token_at = now
        if flight.generated_tokens >= flight.output_tokens:
            self._finish(flight)
        else:
            self.batch.join(flight)

    # --- steps ---

    def _start_leap(self, *, most: int) -> None:
        """Decode steps of the present batch, one after the other."""
        requests, context = len(self.batch), self.batch.context_tokens
        steps = min(self.batch.steps_to_finish(), self.kv.room_steps, self._reach, most)
        line = self._pace.decode_line(requests)
        if line is None:
            steps, line = 1, (self._pace.decode_seconds(requests, context), 0.0)
        base, slope = line
        factors, stalls = self._clock.take(steps)
        contexts = range(context, context + requests * steps, requests)
        seconds = [(base + slope * tokens) * factor for tokens, factor in zip(contexts, factors, strict=True)]
        if stalls is not None:
            seconds = [each + stall for each, stall in zip(seconds, stalls, strict=True)]
        seconds[0] += self._agenda.now
        self._ends = ends = list(accumulate(seconds))
        end, self._leaping = ends[-1], steps > 1
        self._reach = min(self._reach * 2, self._longest_leap)
        if self.record is None:
            self._plan_end(end)
        else:
            self._start(StepKind.DECODE, StepBatch.decode(requests, self.batch.context_tokens), end)

    def _cut(self) -> None:
        """End a leap with the step that runs now; those before it are done."""
        ends = self._ends
        done = min(bisect_right(ends, self._agenda.now), len(ends) - 1)
        unneeded = len(ends) - 1 - done
        self._leaping, self._ends = False, ends[done : done + 1]
        if done:
            self.steps += done
            self._decoded(ends[:done])
        if unneeded:
            self._reach = max(2 * done, 4)
            self._clock.give_back(unneeded)
            self._plan_end(self._ends[0])

    def _start_pass(self, choice: OnePass) -> None:
        """One forward pass with chunks in it."""
        factor, stall = next_step(self._clock)
        decodes = choice.decodes and bool(self.batch)
        batch = choice.batch(len(self.batch), self.batch.context_tokens) if decodes else choice.batch(0, 0)
        end = self._agenda.now + self._pace.prompt_step_seconds(batch, sm_share=choice.sm_share) * factor + stall
        self._ends = [end] if decodes else []
        self._compute(choice.chunks)
        self._start(StepKind.MIXED if decodes else StepKind.PREFILL, batch, end)

    def _start_split(self, choice: SplitStep) -> None:
        """The window of a split step: look-ahead decode steps on some SMs, the chunks on the others."""
        steps = 1 + min(choice.look_ahead, self.kv.room_steps)
        factors, stalls = self._clock.take(steps)
        stalls = stalls or [0.0] * steps
        seconds = self._pace.decode_seconds(len(self.batch), self.batch.context_tokens, sm_share=choice.decode_share)
        start = end = self._agenda.now
        self._ends = []
        for factor, stall in zip(factors[1:], stalls[1:], strict=True):
            end += seconds * factor + stall
            self._ends.append(end)
        prefill_seconds = self._pace.prompt_step_seconds(choice.batch(), sm_share=choice.prefill_share)
        self._compute(choice.chunks)
        end = max(end, start + prefill_seconds * factors[0] + stalls[0]) + choice.join_seconds
        batch = with_chunks(StepBatch.decode(len(self.batch), self.batch.context_tokens), choice.chunks)
        self._start(StepKind.SPLIT, batch, end)

    def _account(self) -> None:
        self.steps += max(1, len(self._ends))
        self._leaping = False
        if self._ends:
            ends, self._ends = self._ends, []
            self._decoded(ends)
        if self._chunks:
            self._chunks_done()

    def _queues(self) -> dict[str, int]:
        left = len(self.prompts) - sum(flight.uncomputed_tokens == tokens for flight, tokens in self._chunks)
        return {
            "running": len(self.batch) + len(self._chunks),
            "queued": len(self.retracted) + (left if self.unified else 0),
            "deflected": 0 if self.unified else left,
            "decode_prealloc": len(self.prealloc),
            "decode_transfer": self._arriving - len(self.prealloc),
        }

    def _prompts_with_kv(self) -> Iterator[Flight]:
        return (flight for flight in self.prompts if flight.kv.tokens)

    def _decoded(self, ends: list[float]) -> None:
        """These decode steps are over."""
        before = self.batch.output_tokens
        for flight in self.batch.decode(ends):
            self._finish(flight)
        self.output_tokens += self.batch.output_tokens - before

    def _chunks_done(self) -> None:
        for flight, tokens in self._finish_chunks():
            self.local_prefill_tokens -= tokens
            if not self.unified:
                self.deflected_tokens += tokens
            if flight.uncomputed_tokens == 0:
                self.prompts.remove(flight)
                flight.prefill_ended_at = flight.kv_arrived_at = self._agenda.now
                self.kv.share(flight.kv, flight.full_blocks)
                self._prompt_token(flight)

    # --- memory ---

    def _retract(self) -> None:
        """Take those with the least output off the batch until each of the rest can get one token."""
        while self.batch and self.kv.full:
            victim = self.batch.least_advanced()
            alone = len(self.batch) == 1 and not self._arriving and not self.prompts
            self.batch.leave(victim)
            self.kv.release(victim.kv)
            if alone:
                self._fail(victim)
                return
            self._news = True
            self.retractions += 1
            victim.retractions += 1
            if self.unified:
                self._compute_again(victim)
            else:
                victim.stage = Stage.RETRACTED
                self.retracted.append(victim)

    def _compute_again(self, flight: Flight) -> None:
        flight.stage = Stage.PROMPT
        flight.computed_tokens = flight.cached_tokens = 0
        self.local_prefill_tokens += flight.context_tokens
        self.prompts.appendleft(flight)

    def _restore(self) -> None:
        """KV comes back from the host's memory unchanged."""
        while self.retracted and self.slots > 0:
            flight = self.retracted[0]
            if not self.kv.admit(flight.kv, tokens=flight.context_tokens, reserve_tokens=self._reserve(flight)):
                return
            self.batch.join(self.retracted.popleft())

    # --- leaving ---

    def _finish(self, flight: Flight) -> None:
        self.kv.release(flight.kv)
        flight.stage = Stage.OVER
        self._leave(flight)
        self._outside.finished(flight)

    def refuse(self, flight: Flight) -> None:
        """A prompt of which no chunk was computed goes back."""
        self.abort(flight)
        self._outside.refused(flight, self.name)

    def abort(self, flight: Flight) -> None:
        if flight not in self.flights:
            return
        if flight in self.batch.flights:
            self.batch.leave(flight)
        elif flight in self.retracted:
            self.retracted.remove(flight)
        elif flight.local:
            self.prompts.remove(flight)
            self.local_prefill_tokens -= flight.uncomputed_tokens
        else:
            self._forget_transfer(flight)
        self.kv.release(flight.kv)
        self._leave(flight)
        self.publish(self.report())

    def _forget_transfer(self, flight: Flight) -> None:
        self._forget_arriving(flight)
        if flight in self.transferred:
            self.transferred.remove(flight)
        elif flight in self.prealloc:
            self.prealloc.remove(flight)
            self._preallocated_tokens -= flight.input_tokens + self._reserve(flight)

    def _forget_arriving(self, flight: Flight) -> None:
        self._arriving -= 1
        self._arriving_tokens -= flight.input_tokens
