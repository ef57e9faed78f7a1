"""Attempts until one brings a first token.

Invariant: until the first token has come, a failure is answered by another attempt elsewhere, bounded in number and
time; from then on the client gets what that one decode worker sends. No attempt outlives its request. A request that
makes two workers crash alike is itself the cause: it gets no further attempt, and no worker is blamed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic

from duet_engine.gateway.assignment import Assignment
from duet_engine.gateway.attempt import Answer, Attempt
from duet_engine.gateway.errors import GatewayError
from duet_engine.gateway.failures import Refused, WorkerFailed
from duet_engine.gateway.record import RequestRecord
from duet_engine.gateway.requests import ClientRequest
from duet_engine.gateway.routing import Dispatcher
from duet_engine.gateway.settings import Limits
from duet_engine.gateway.upstream import Upstream

log = logging.getLogger(__name__)

FAILURE_PAUSE_SECONDS = 1.0
"""A worker that failed a request isn't asked again for the same one before this."""
SHORTEST_REFUSAL_PAUSE_SECONDS = 0.1
"""A worker that refuses without a pause would be asked as fast as it answers."""


class Relay:
    """Sends requests to workers, attempt by attempt."""

    def __init__(self, upstream: Upstream, dispatcher: Dispatcher, limits: Limits) -> None:
        self._upstream = upstream
        self._dispatcher = dispatcher
        self._limits = limits

    async def answer(self, request: ClientRequest, record: RequestRecord, *, on_retry: Callable[[str], None]) -> Answer:
        """The first attempt that brings a first token.

        Raises:
            GatewayError: no worker could be found, or too many failed.
            Rejected: an engine found the request wrong.
        """
        excluded_until: dict[str, float] = {}
        failures = 0
        crashes: list[WorkerFailed] = []
        """Nobody is blamed for them before it is clear that it wasn't the request."""
        while True:
            assignment = await self._dispatcher.assign(
                request,
                prompt_tokens=record.prompt_tokens,
                arrived_at=record.arrived_at,
                excluded_until=excluded_until,
            )
            self._note(record, assignment)
            traceparent = record.trace.header() if record.trace is not None else ""
            attempt = Attempt(self._upstream, request, assignment, traceparent=traceparent)
            record.rid = attempt.rid
            try:
                answer = await attempt.open()
            except Refused as refused:
                refused.worker.refused(refused.reason)
                excluded_until[refused.worker.key] = monotonic() + max(
                    SHORTEST_REFUSAL_PAUSE_SECONDS, refused.retry_after_seconds
                )
                if self._age_seconds(record) > self._limits.queue_timeout_seconds:
                    _blame(crashes)
                    raise GatewayError(503, f"no worker took the request: {refused}", retry_after_seconds=5.0) from None
                on_retry(f"refused-{refused.reason}")
            except WorkerFailed as failed:
                failures += 1
                if any(_alike(failed, crash) for crash in crashes):
                    raise GatewayError(502, f"the request makes workers fail: {failed}") from failed
                if failed.crash is not None:
                    crashes.append(failed)
                elif failed.blames_worker:
                    failed.worker.failed(monotonic())
                excluded_until[failed.worker.key] = monotonic() + FAILURE_PAUSE_SECONDS
                log.info("attempt %d failed: %s", failures, failed)
                too_late = self._age_seconds(record) > self._limits.retry_seconds
                if failures >= self._limits.failed_attempts or too_late:
                    _blame(crashes)
                    status = 504 if failed.timed_out else 502
                    raise GatewayError(status, f"attempt {failures} failed: {failed}") from failed
                on_retry("failed")
            else:
                _blame(crashes)
                record.first_at = attempt.first_token_at
                return answer
            record.retries += 1

    def _age_seconds(self, record: RequestRecord) -> float:
        return monotonic() - record.arrived_at

    def _note(self, record: RequestRecord, assignment: Assignment) -> None:
        record.dispatched_at = monotonic()
        record.predicted_ttft_seconds = assignment.route.ttft_seconds
        record.predicted_queue_seconds = assignment.route.ahead_seconds
        record.unloaded_ttft_seconds = assignment.unloaded_ttft_seconds
        record.deflected = assignment.deflected
        record.route = assignment.explanation()


def _alike(one: WorkerFailed, other: WorkerFailed) -> bool:
    return one.worker is not other.worker and one.crash is not None and one.crash == other.crash


def _blame(crashes: list[WorkerFailed]) -> None:
    for crash in crashes:
        crash.worker.failed(monotonic())
