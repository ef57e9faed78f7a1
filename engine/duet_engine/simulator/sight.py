"""What the gateway knows of a worker: its last state line that has arrived, and what was sent since.

Invariant: each dispatch is counted exactly once: here until a line that was written after its arrival is visible, by
that line afterwards. A line is visible at the next turn of the stream after what it tells, and never early.
"""

from __future__ import annotations

from abc import ABC
from collections import deque
from math import floor, inf
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from duet_engine.policy.chunks import DecodeBatch
from duet_engine.policy.fleet import DecodeWorker as DecodeView
from duet_engine.policy.fleet import PrefillWorker as PrefillView
from duet_engine.simulator.reports import DecodeReport, PrefillReport

if TYPE_CHECKING:
    from duet_engine.simulator.decoding_worker import DecodingWorker
    from duet_engine.simulator.prefill_worker import PrefillWorker
    from duet_engine.simulator.scenario import GatewayLimits

AnyReport = TypeVar("AnyReport", PrefillReport, DecodeReport)
REVISION = "one"


class _Sent(NamedTuple):
    arrives_at: float
    prompt_tokens: int
    reserve_tokens: int
    local: bool
    seconds: float


class Sight(ABC, Generic[AnyReport]):
    """Of one worker."""

    def __init__(self, first: AnyReport, *, phase: float, limits: GatewayLimits) -> None:
        self._interval, self._age = limits.state_interval_seconds, limits.state_age_seconds
        self._phase = phase * self._interval
        """State streams don't tick together."""
        self._visible: AnyReport = first
        self._coming: deque[tuple[float, AnyReport]] = deque()
        self._sent: deque[_Sent] = deque()
        self._dispatches = 0
        self._changed = True
        self._turn_ends = -inf
        """Of the stream's turn that the last line belongs to; another line before then replaces it."""
        self.due_at = inf
        """When the next line becomes visible."""

    def publish(self, report: AnyReport) -> None:
        """A line of the state stream; one that comes in the same turn replaces it."""
        moment, interval, coming = report.written_at, self._interval, self._coming
        if moment < self._turn_ends and coming:
            coming[-1] = (coming[-1][0], report)
            return
        if interval:
            moment = self._turn_ends = (floor((moment - self._phase) / interval) + 1) * interval + self._phase
        visible_at = moment + self._age
        if not coming:
            self.due_at = visible_at
        coming.append((visible_at, report))

    def _send(self, sent: _Sent) -> None:
        """A dispatch that no line includes yet."""
        self._dispatches += 1
        self._changed = True
        self._sent.append(sent)

    def _look(self, now: float) -> None:
        """At the lines that have become visible."""
        coming, sent = self._coming, self._sent
        while coming and coming[0][0] <= now:
            _, self._visible = coming.popleft()
        while sent and sent[0].arrives_at <= self._visible.written_at:
            sent.popleft()
        self.due_at = coming[0][0] if coming else inf
        self._changed = True


class PrefillSight(Sight[PrefillReport]):
    """Of a prefill worker."""

    def __init__(self, worker: PrefillWorker, *, phase: float, limits: GatewayLimits) -> None:
        super().__init__(worker.report(), phase=phase, limits=limits)
        self.worker = worker
        self._view: PrefillView | None = None
        worker.publish = self.publish

    def sent(self, prompt_tokens: int, *, arrives_at: float) -> None:
        """A prompt that no line includes yet."""
        pool = self.worker.pool
        seconds = pool.policy_steps.prompt_seconds(prompt_tokens, chunk_tokens=pool.limits.chunked_prefill_tokens)
        self._send(_Sent(arrives_at, prompt_tokens, 0, False, seconds))

    def view(self, now: float) -> PrefillView:
        """As the policies take it; what the worker has computed since the line was written is reckoned off."""
        if self.due_at <= now:
            self._look(now)
        report = self._visible
        ahead = report.queued_seconds
        if report.step_started_at is not None:
            ahead = max(0.0, ahead - (now - report.step_started_at))
        for sent in self._sent:
            ahead += sent.seconds
        if self._view is None or self._changed or ahead != self._view.ahead_seconds:
            pool = self.worker.pool
            self._view = PrefillView(
                key=self.worker.name,
                revision=REVISION,
                steps=pool.policy_steps,
                chunk_tokens=pool.limits.chunked_prefill_tokens,
                ahead_seconds=ahead,
                queued_tokens=report.queued_tokens + sum(sent.prompt_tokens for sent in self._sent),
                dispatches=self._dispatches,
            )
            self._changed = False
        return self._view


class DecodeSight(Sight[DecodeReport]):
    """Of a worker that decodes."""

    def __init__(self, worker: DecodingWorker, *, phase: float, limits: GatewayLimits) -> None:
        super().__init__(worker.report(), phase=phase, limits=limits)
        self.worker = worker
        self.current = self._make()
        """As policies take it, until the next line is due."""
        worker.publish = self.publish

    def sent(self, prompt_tokens: int, *, arrives_at: float, reserve_tokens: int, local: bool = False) -> None:
        """A request that no line includes yet."""
        self._send(_Sent(arrives_at, prompt_tokens, reserve_tokens, local, 0.0))
        self.current = self._make()

    def view(self, now: float) -> DecodeView:
        """As policies take it now."""
        if self.due_at <= now:
            self._look(now)
            self.current = self._make()
        return self.current

    def _make(self) -> DecodeView:
        report, worker = self._visible, self.worker
        limits = worker.pool.limits
        joining = joining_tokens = claimed = local_tokens = 0
        for sent in self._sent:
            claimed += sent.prompt_tokens + sent.reserve_tokens
            if sent.local:
                local_tokens += sent.prompt_tokens
            else:
                joining += 1
                joining_tokens += sent.prompt_tokens
        return DecodeView(
            key=worker.name,
            revision=REVISION,
            steps=worker.pool.policy_steps,
            chunk_tokens=limits.chunked_prefill_tokens,
            batch=DecodeBatch(report.requests + joining, report.context_tokens + joining_tokens),
            kv_capacity_tokens=worker.pool.kv_capacity_tokens,
            kv_free_tokens=report.kv_free_tokens - claimed,
            free_slots=limits.max_running_requests - report.requests - report.local_requests - len(self._sent),
            prefills=worker.pool.local_prefill is not None,
            unified=worker.unified,
            local_prefill_tokens=report.local_prefill_tokens + local_tokens,
            dispatches=self._dispatches,
        )
