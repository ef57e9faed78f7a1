"""What went wrong at an engine: read from its answers and from broken connections.

Invariant: whose fault it is decides the kind. The request's own fault is `Rejected`, a worker that takes nothing now
is `Refused`, everything else is `WorkerFailed`; nothing here retries or counts.
"""

from __future__ import annotations

import json
from typing import Any

from duet_engine.gateway.errors import error_body
from duet_engine.gateway.events import AnswerFailure, failure_of, payload_of, split
from duet_engine.gateway.wire.messages import Headers
from duet_engine.gateway.workers import Worker
from duet_engine.protocol import REFUSAL_HEADER, ProtocolError, Refusal, RefusalReason

_OWN_FAULT = (400, 413, 422)
"""What an engine answers when the request itself is wrong."""
_CRASH = 500
"""An error that the engine didn't foresee: its own, or provoked by the request."""
_EVENTS_TO_CHECK = 3
_ERROR_MARK, _ABORT_MARK = b'"error"', b'"abort"'
"""Without one of these an answer reports no failure, so that it needn't be parsed."""


class Refused(Exception):
    """A worker took nothing; another may."""

    def __init__(self, worker: Worker, reason: RefusalReason, retry_after_seconds: float) -> None:
        super().__init__(f"{worker.name} refused: {reason}")
        self.worker, self.reason, self.retry_after_seconds = worker, reason, retry_after_seconds


class WorkerFailed(Exception):
    """A worker broke a request off. `lost`: it can't be reached any more. `crash`: what its answer 500 said."""

    def __init__(
        self, worker: Worker, message: str, *, lost: bool = False, timed_out: bool = False, crash: str | None = None
    ) -> None:
        super().__init__(f"{worker.name}: {message}")
        self.worker, self.lost, self.timed_out, self.crash = worker, lost, timed_out, crash

    @property
    def blames_worker(self) -> bool:
        """One that works on in sight is only slow: the answer may be long."""
        return not (self.timed_out and self.worker.connected)


class Rejected(Exception):
    """An engine's final answer to a request that is wrong in itself."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"engine answered {status}")
        self.status, self.body = status, body


def answer_failure(worker: Worker, status: int, headers: Headers, content: bytes) -> Exception | None:
    """What an answer's status says."""
    if status == 200:
        return None
    if status in _OWN_FAULT:
        return Rejected(status, content)
    if REFUSAL_HEADER in headers:
        return _refused(worker, headers[REFUSAL_HEADER], content)
    said = content[:200].decode(errors="replace")
    return WorkerFailed(worker, f"answered {status}: {said}", crash=said if status == _CRASH else None)


def content_failure(worker: Worker, content: bytes, *, streamed: bool) -> Exception | None:
    """What an answer with status 200 says inside."""
    failure = failure_in(content, streamed=streamed)
    if failure is None:
        return None
    if failure.status in _OWN_FAULT:
        return Rejected(failure.status, error_body(failure.message, status=failure.status))
    return WorkerFailed(worker, failure.message, crash=failure.message if failure.status == _CRASH else None)


def broken(worker: Worker, error: Exception) -> WorkerFailed:
    """A connection that couldn't be made, broke off, or said what isn't HTTP."""
    return WorkerFailed(worker, str(error) or type(error).__name__, lost=True)


def _refused(worker: Worker, header: str, content: bytes) -> Refused:
    try:
        refusal = Refusal.read(content)
    except ProtocolError:
        reason = next((known for known in RefusalReason if known == header), RefusalReason.QUEUE_FULL)
        refusal = Refusal(reason=reason, message="")
    return Refused(worker, refusal.reason, refusal.retry_after_seconds)


def failure_in(content: bytes, *, streamed: bool) -> AnswerFailure | None:
    if _ERROR_MARK not in content and _ABORT_MARK not in content:
        return None
    if not streamed:
        return failure_of(json_object(content))
    for event in split(content)[:_EVENTS_TO_CHECK]:
        payload = payload_of(event)
        if payload is not None and (failure := failure_of(payload)) is not None:
            return failure
    return None


def json_object(content: bytes) -> dict[str, Any]:
    try:
        payload = json.loads(content)
    except ValueError:
        return {}
    return payload if isinstance(payload, dict) else {}
