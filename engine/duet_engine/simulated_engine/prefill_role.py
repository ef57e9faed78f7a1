"""The prefill side of a P/D pair: bootstrap queue, chunked prefill, transfer.

Invariant: a prompt's KV is held from its first chunk until it has left, and a request leaves only after the decode
side has claimed its room. Chunks are sent as they are computed, one after the other over one link, so that mostly the
last chunk's transfer is exposed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from duet_engine.perf.interface import StepTimes
from duet_engine.protocol import Work
from duet_engine.simulated_engine.request import Finish, Request, Stage
from duet_engine.simulated_engine.scheduler import Limits, Scheduler
from duet_engine.simulated_engine.steps import Chunk, Step, pack


class PrefillScheduler(Scheduler):
    """SGLang's prefill mode."""

    def __init__(self, *, model: StepTimes, limits: Limits) -> None:
        super().__init__(model=model, limits=limits)
        self.bootstrap: deque[Request] = deque()
        self.inflight: deque[Request] = deque()
        self._link_free_at = 0.0

    def submit(self, request: Request, now: float) -> None:
        """A request waits in the bootstrap queue until its decode worker has claimed the room."""
        request.stage = Stage.BOOTSTRAP
        request.arrived_at = request.queued_at = request.progressed_at = now
        self.bootstrap.append(request)

    def claimed(self, request: Request, now: float) -> None:
        """The decode worker has KV for this request: it may be computed."""
        if request.stage is not Stage.BOOTSTRAP:
            return
        self.bootstrap.remove(request)
        request.stage = Stage.WAITING
        request.queued_at = now
        self.waiting.append(request)

    def start_step(self, now: float) -> Step | None:
        return self._step(pack(self._admitted(), self.limits.chunked_prefill_tokens, bounded=False), (), now)

    def next_event_at(self) -> float | None:
        return self.inflight[0].transferred_at if self.inflight else None

    def work(self) -> Work:
        return Work(
            queued=len(self.waiting), prefill_bootstrap=len(self.bootstrap), prefill_inflight=len(self.inflight)
        )

    def queued_prefill_tokens(self) -> int:
        return super().queued_prefill_tokens() + sum(request.uncomputed_tokens for request in self.bootstrap)

    def _queues(self) -> Iterable[deque[Request]]:
        return (self.waiting, self.bootstrap, self.inflight)

    def _admitted(self) -> Iterator[Request]:
        for request in self.waiting:
            if not request.kv_tokens and not self.kv.admit(request, tokens=request.prompt_tokens, reserve_tokens=0):
                return
            yield request

    def _finish_chunk(self, chunk: Chunk, now: float) -> None:
        link_seconds = self.model.transfer_seconds(chunk.tokens) - self.model.transfer_seconds(0)
        self._link_free_at = max(self._link_free_at, now) + link_seconds
        super()._finish_chunk(chunk, now)

    def _prompt_computed(self, request: Request, now: float) -> None:  # noqa: ARG002
        request.stage = Stage.INFLIGHT
        request.transferred_at = self._link_free_at + self.model.transfer_seconds(0)
        self.inflight.append(request)

    def poll(self, now: float) -> None:
        """Hand over what has left by now."""
        while self.inflight and self.inflight[0].transferred_at <= now:
            request = self.inflight.popleft()
            self._progress.delivered.append(request)
            request.output_tokens, request.finish = 1, Finish.LENGTH
            self._emit_token(request, now)
