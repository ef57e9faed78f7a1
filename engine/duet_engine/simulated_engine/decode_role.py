"""The decode side of a P/D pair, with deflected prefill.

Invariant: KV for a transferred prompt is reserved before its prefill starts, first come first served, and the first
that doesn't fit holds back those behind it. A mixed step never exceeds the ITL budget while some candidate chunk is
safe. Requests whose KV has arrived join between chunks. A deflected request is taken only if its KV is free now, and
once a chunk of it has run it is never refused.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from duet_engine.perf.interface import StepTimes
from duet_engine.policy.chunks import DecodeBatch, headroom_tokens_per_second
from duet_engine.protocol import Knobs, Refusal, RefusalReason, Work
from duet_engine.simulated_engine.request import Failure, Refused, Request, Stage
from duet_engine.simulated_engine.scheduler import Limits, Scheduler
from duet_engine.simulated_engine.steps import Chunk, Step, pack, safe_chunks


class DecodeScheduler(Scheduler):
    """SGLang's decode mode with Duet's local prefill."""

    def __init__(self, *, model: StepTimes, limits: Limits, knobs: Knobs) -> None:
        super().__init__(model=model, limits=limits)
        self.knobs = knobs
        self.prealloc: deque[Request] = deque()
        self.transfer: deque[Request] = deque()
        self.transferred: deque[Request] = deque()
        self.deflected: deque[Request] = deque()
        self.retracted: deque[Request] = deque()
        self._unsafe_since: float | None = None

    def submit(self, request: Request, now: float) -> None:
        request.arrived_at = request.queued_at = request.progressed_at = now
        if request.deflected:
            self._accept_deflected(request, now)
            return
        request.stage = Stage.PREALLOC
        self.prealloc.append(request)

    def arrived(self, request: Request, now: float) -> None:
        """The KV and first token of a claimed room are here: the request joins before the next step."""
        if request.stage is not Stage.TRANSFER:
            return
        self.transfer.remove(request)
        request.stage = Stage.TRANSFERRED
        request.transferred_at = now
        self.transferred.append(request)

    def start_step(self, now: float) -> Step | None:
        self._restore_retracted()
        self._preallocate(now)
        self._join_transferred(now)
        self._retract_until_decode_fits()
        chunks = self._deflected_chunks(now)
        self._refuse_those_who_waited_too_long(now)
        return self._step(chunks, self.running, now)

    def work(self) -> Work:
        return Work(
            running=len(self.running),
            queued=len(self.retracted),
            deflected=len(self.deflected),
            decode_prealloc=len(self.prealloc),
            decode_transfer=len(self.transfer) + len(self.transferred),
        )

    def queued_deflected_tokens(self) -> int:
        return sum(request.uncomputed_tokens for request in self.deflected)

    def apply_knobs(self, knobs: Knobs) -> None:
        self.knobs = knobs

    def headroom_tokens_per_second(self) -> float:
        if not self.knobs.deflection_enabled:
            return 0.0
        return headroom_tokens_per_second(
            self.model,
            self._batch,
            candidates_tokens=self._sizes,
            step_budget_seconds=self.budget_seconds,
            full_chunk_tokens=self.limits.chunked_prefill_tokens,
        )

    @property
    def budget_seconds(self) -> float:
        """How long a mixed step may take: the ITL objective less the margin for prediction errors."""
        return self.knobs.itl_milliseconds / 1e3 * self.knobs.beta_percent / 100

    @property
    def _sizes(self) -> tuple[int, ...]:
        """Chunk sizes to try, largest first."""
        return tuple(sorted(set(self.knobs.chunk_candidates_tokens), reverse=True))

    @property
    def _batch(self) -> DecodeBatch:
        return DecodeBatch(len(self.running), self.context_tokens)

    def _queues(self) -> Iterable[deque[Request]]:
        return (self.prealloc, self.transfer, self.transferred, self.deflected, self.retracted)

    def _queue_of(self, request: Request) -> deque[Request]:  # noqa: ARG002 - only deflected prompts are computed here
        return self.deflected

    @property
    def _slots(self) -> int:
        taken = len(self.running) + len(self.transfer) + len(self.transferred) + len(self.deflected)
        return self.limits.max_running_requests - taken

    # --- deflected prefill ---

    def _accept_deflected(self, request: Request, now: float) -> None:
        if not self.knobs.deflection_enabled:
            raise Refused(RefusalReason.DEFLECTION_OFF, "deflection is off on this worker (knob deflection_enabled)")
        if len(self.deflected) >= self.limits.max_deflected_requests or self._slots <= 0:
            raise Refused(
                RefusalReason.QUEUE_FULL, f"{len(self.deflected)} deflected and {len(self.running)} running requests"
            )
        if self._unsafe_since is not None and now - self._unsafe_since > self.limits.itl_unsafe_seconds:
            raise Refused(
                RefusalReason.ITL_UNSAFE,
                f"no chunk fits beside {len(self.running)} decoding requests in {self.budget_seconds * 1e3:.1f} ms",
            )
        needed = request.context_tokens + self._reserve_tokens(request)
        awaited = sum(waiting.context_tokens + self._reserve_tokens(waiting) for waiting in self.prealloc)
        if self.retracted or needed + awaited > self.kv.free_tokens or not self._admit(request):
            raise Refused(
                RefusalReason.NO_KV,
                f"{needed} KV tokens needed, {max(0, self.kv.free_tokens)} free, {awaited} awaited by earlier requests",
            )
        request.stage = Stage.DEFLECTED
        self.deflected.append(request)
        self.totals.deflected_requests += 1

    def _deflected_chunks(self, now: float) -> tuple[Chunk, ...]:
        if not self.running:
            self._unsafe_since = None
            return pack(self.deflected, self.limits.chunked_prefill_tokens, bounded=False)
        self._note_safety(now)
        if not self.deflected:
            return ()
        chunks = safe_chunks(
            self.model,
            self.deflected,
            self._batch,
            candidates_tokens=self._sizes,
            budget_seconds=self.budget_seconds,
            most_step_tokens=self.limits.chunked_prefill_tokens,
        )
        head = self.deflected[0]
        starved = head.chunks_done > 0 and now - head.progressed_at > self.limits.deflected_wait_seconds
        if chunks or not starved:
            return chunks
        return pack(self.deflected, self._sizes[-1], bounded=True)

    def _note_safety(self, now: float) -> None:
        """Since when not even the smallest chunk of a fresh prompt is safe."""
        if self.headroom_tokens_per_second() > 0 or not self.knobs.deflection_enabled:
            self._unsafe_since = None
        elif self._unsafe_since is None:
            self._unsafe_since = now

    def _refuse_those_who_waited_too_long(self, now: float) -> None:
        if self._unsafe_since is None:
            return
        for request in list(self.deflected):
            if request.chunks_done == 0 and now - request.arrived_at > self.limits.deflected_wait_seconds:
                refusal = Refusal(
                    reason=RefusalReason.ITL_UNSAFE,
                    message=f"no safe chunk within {self.limits.deflected_wait_seconds:g} s",
                )
                self.fail(request, Failure(message=refusal.message, status=503, refusal=refusal))

    def finish_step(self, step: Step, now: float, seconds: float) -> None:
        self.totals.deflected_tokens += step.prefill_tokens
        super().finish_step(step, now, seconds)

    # --- transferred requests ---

    def _preallocate(self, now: float) -> None:
        """Reserve KV in order of arrival; the first that doesn't fit holds back the rest."""
        while self.prealloc and not self.retracted and self._slots > 0 and self._admit(self.prealloc[0]):
            request = self.prealloc.popleft()
            request.stage = Stage.TRANSFER
            request.queued_at = now
            request.claimed = True
            self.transfer.append(request)
            self._progress.claims.append(request)

    def _join_transferred(self, now: float) -> None:
        while self.transferred:
            request = self.transferred.popleft()
            request.started_at = now
            self._emit_token(request, now)
            if not request.done:
                self._join(request)

    # --- retraction: KV goes to host memory and comes back unchanged, as SGLang's decode mode does by default ---

    def _requeue(self, request: Request) -> None:
        request.stage = Stage.RETRACTED
        self.retracted.append(request)

    def _restore_retracted(self) -> None:
        while self.retracted and self._slots > 0 and self._admit(self.retracted[0]):
            self._join(self.retracted.popleft())
