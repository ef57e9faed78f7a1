"""The step scheduler of one worker: who is computed next, for each of SGLang's modes.

Invariant: no clock and no I/O. Time comes in with each call, what happened goes out through `take_progress`. Between
`start_step` and `finish_step` arrivals, aborts and transfers are noted and take part from the next step on, as in
SGLang, which polls once a loop. Every request that was accepted ends: finished, failed, or aborted.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from duet_engine.perf.interface import StepBatch
from duet_engine.protocol import StepKind, Work
from duet_engine.simulated_engine.kv import KvPool
from duet_engine.simulated_engine.request import Failure, Request, Stage
from duet_engine.simulated_engine.steps import Chunk, Step, pack, with_chunks

if TYPE_CHECKING:
    from duet_engine.perf.interface import StepTimes
    from duet_engine.protocol import Knobs


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What bounds a worker beside its KV."""

    kv_capacity_tokens: int
    max_running_requests: int
    chunked_prefill_tokens: int
    reserved_decode_tokens: int = 512
    max_deflected_requests: int = 16
    deflected_wait_seconds: float = 2.0
    itl_unsafe_seconds: float = 0.5


@dataclass(slots=True)
class Progress:
    """What happened since it was last taken, for whoever talks to clients and peers."""

    tokens: list[Request] = field(default_factory=list)
    finished: list[Request] = field(default_factory=list)
    failed: list[tuple[Request, Failure]] = field(default_factory=list)
    claims: list[Request] = field(default_factory=list)
    """Decode requests that hold KV now and may be sent it."""
    delivered: list[Request] = field(default_factory=list)
    """Prefill requests whose KV has left."""

    def __bool__(self) -> bool:
        return bool(self.tokens or self.finished or self.failed or self.claims or self.delivered)


@dataclass(slots=True)
class Totals:
    """Counters that only grow."""

    prefill_tokens: int = 0
    deflected_tokens: int = 0
    deflected_requests: int = 0
    output_tokens: int = 0
    retracted_requests: int = 0
    busy_seconds: float = 0.0
    prefill_busy_seconds: float = 0.0
    steps: dict[StepKind, int] = field(default_factory=lambda: dict.fromkeys(StepKind, 0))
    step_seconds: dict[StepKind, float] = field(default_factory=lambda: dict.fromkeys(StepKind, 0.0))


class Scheduler(ABC):
    """What all modes share: KV, the running batch, the waiting queue, and what a finished step means."""

    def __init__(self, *, model: StepTimes, limits: Limits) -> None:
        self.model = model
        self.limits = limits
        self.kv = KvPool(limits.kv_capacity_tokens)
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.context_tokens = 0
        self.totals = Totals()
        self._progress = Progress()

    # --- what each mode decides ---

    @abstractmethod
    def submit(self, request: Request, now: float) -> None:
        """Accept a request into its first queue."""

    @abstractmethod
    def start_step(self, now: float) -> Step | None:
        """Form the next batch; None when there is nothing to compute."""

    @abstractmethod
    def work(self) -> Work:
        """Requests by place."""

    @abstractmethod
    def _queues(self) -> Iterable[deque[Request]]:
        """All queues but the running batch, for aborts and counts."""

    def _prompt_computed(self, request: Request, now: float) -> None:
        """The last chunk of a prompt is done: by default the request decodes here."""
        self._emit_token(request, now)
        if not request.done:
            self._join(request)

    def poll(self, now: float) -> None:  # noqa: B027 - only prefill workers have anything under way beside steps
        """Note what has happened by now without a step."""

    def next_event_at(self) -> float | None:
        """When `poll` will have something to note; None when nothing is pending."""
        return None

    # --- shared ---

    def take_progress(self) -> Progress:
        """What happened since the last call."""
        progress, self._progress = self._progress, Progress()
        return progress

    def requests(self) -> Iterator[Request]:
        """Every request that this worker holds."""
        yield from self.running
        for queue in self._queues():
            yield from queue

    def abort(self, request: Request) -> bool:
        """Forget a request wherever it is; False if it has ended already."""
        if request.done:
            return False
        if request.stage is Stage.RUNNING:
            self._leave(request)
        else:
            for queue in self._queues():
                if request in queue:
                    queue.remove(request)
        self._end(request)
        return True

    def fail(self, request: Request, failure: Failure) -> None:
        """Abort a request and tell its listener why."""
        if self.abort(request):
            self._progress.failed.append((request, failure))

    def finish_step(self, step: Step, now: float, seconds: float) -> None:
        """Account for a step that took `seconds` and ended at `now`."""
        totals = self.totals
        totals.steps[step.kind] += 1
        totals.step_seconds[step.kind] += seconds
        totals.busy_seconds += seconds
        totals.prefill_tokens += step.prefill_tokens
        totals.prefill_busy_seconds += seconds if step.chunks else 0.0
        for request in step.decoding:
            if not request.done:
                self._emit_token(request, now)
        for chunk in step.chunks:
            if not chunk.request.done:
                self._finish_chunk(chunk, now)

    def queued_prefill_tokens(self) -> int:
        """Prompt tokens that wait for this worker's prefill, deflected ones aside."""
        return sum(request.uncomputed_tokens for request in self.waiting)

    def queued_deflected_tokens(self) -> int:
        """Deflected prompt tokens that this worker must still compute."""
        return 0

    def apply_knobs(self, knobs: Knobs) -> None:  # noqa: B027 - only decode workers have anything to set
        """Take over live settings."""

    def headroom_tokens_per_second(self) -> float:
        """Deflected prefill tokens per second that still fit; 0 where none are taken."""
        return 0.0

    def _finish_chunk(self, chunk: Chunk, now: float) -> None:
        request = chunk.request
        request.computed_tokens += chunk.tokens
        request.chunks_done += 1
        request.progressed_at = now
        if request.uncomputed_tokens == 0:
            self._queue_of(request).remove(request)
            self._prompt_computed(request, now)

    def _queue_of(self, request: Request) -> deque[Request]:  # noqa: ARG002 - decode workers have two
        return self.waiting

    def _emit_token(self, request: Request, now: float) -> None:
        """One output token; it ends the request when it is the last."""
        request.generated_tokens += 1
        request.computed_tokens = request.context_tokens
        if request.first_token_at is None:
            request.first_token_at = now
        request.gap_seconds = now - request.last_token_at
        request.last_token_at = now
        self.totals.output_tokens += 1
        self._progress.tokens.append(request)
        if request.stage is Stage.RUNNING:
            self.context_tokens += 1
        if request.generated_tokens >= request.output_tokens:
            self._finish(request)

    def _finish(self, request: Request) -> None:
        if request.stage is Stage.RUNNING:
            self._leave(request)
        self._end(request)
        self._progress.finished.append(request)

    def _end(self, request: Request) -> None:
        self.kv.release(request)
        request.stage = Stage.DONE

    def _join(self, request: Request) -> None:
        request.stage = Stage.RUNNING
        self.running.append(request)
        self.context_tokens += request.context_tokens

    def _leave(self, request: Request) -> None:
        self.running.remove(request)
        self.context_tokens -= request.context_tokens

    def _reserve_tokens(self, request: Request) -> int:
        left = request.max_new_tokens - request.generated_tokens
        return max(0, min(self.limits.reserved_decode_tokens, left))

    def _admit(self, request: Request) -> bool:
        return self.kv.admit(request, tokens=request.context_tokens, reserve_tokens=self._reserve_tokens(request))

    def _retract_until_decode_fits(self) -> None:
        """Take the requests with the least output off the batch until each of the rest can get one token's KV."""
        while self.running and self.kv.used_tokens + len(self.running) > self.kv.capacity_tokens:
            victim = min(self.running, key=lambda request: request.generated_tokens)
            self._leave(victim)
            self.kv.release(victim)
            victim.retractions += 1
            self.totals.retracted_requests += 1
            self._requeue(victim)

    def _requeue(self, request: Request) -> None:
        """Where a retracted request waits: here it computes everything again, before any new request.

        No prompt is half computed then: one that is gets its next chunk before anything is decoded or retracted.
        """
        request.stage = Stage.WAITING
        request.computed_tokens = 0
        self.waiting.appendleft(request)

    def _step(self, chunks: tuple[Chunk, ...], decoding: Iterable[Request], now: float) -> Step | None:
        """A step of these chunks and these running requests, KV for the new tokens taken."""
        batch = tuple(decoding)
        if not batch and not chunks:
            return None
        decoded = StepBatch.decode(len(batch), self.context_tokens if batch else 0)
        seconds = self.model.step_seconds(with_chunks(decoded, chunks))
        for request in batch:
            self.kv.grow(request)
        for chunk in chunks:
            if chunk.request.started_at is None:
                chunk.request.started_at = now
        kind = StepKind.DECODE if not chunks else StepKind.MIXED if batch else StepKind.PREFILL
        return Step(kind=kind, chunks=chunks, decoding=batch, predicted_seconds=seconds)


class UnifiedScheduler(Scheduler):
    """SGLang's null mode: prompts first, in steps of their own, then decode."""

    def submit(self, request: Request, now: float) -> None:
        request.stage = Stage.WAITING
        request.arrived_at = request.queued_at = request.progressed_at = now
        self.waiting.append(request)

    def start_step(self, now: float) -> Step | None:
        chunks = pack(self._admitted(), self.limits.chunked_prefill_tokens, bounded=False)
        if chunks:
            return self._step(chunks, (), now)
        self._retract_until_decode_fits()
        return self._step((), self.running, now)

    def work(self) -> Work:
        return Work(running=len(self.running), queued=len(self.waiting))

    def _queues(self) -> Iterable[deque[Request]]:
        return (self.waiting,)

    def _admitted(self) -> Iterator[Request]:
        """Waiting requests in order, each given its KV as it is reached, up to the first that gets none."""
        slots = self.limits.max_running_requests - len(self.running)
        for request in self.waiting:
            if slots <= 0 or not (request.kv_tokens or self._admit(request)):
                return
            slots -= 1
            yield request
