"""What went wrong at an engine: read from its answers and from broken connections.

Invariant: whose fault it is decides the kind. The request's own fault is `Rejected`, a worker that takes nothing now
is `Refused`, everything else is `WorkerFailed`; nothing here retries or counts.
"""

from __future__ import annotations

import json
from typing import Any

import aiohttp

from duet_engine.gateway.errors import error_body
from duet_engine.gateway.events import AnswerFailure, failure_of, payload_of, split
from duet_engine.gateway.workers import Worker
from duet_engine.protocol import REFUSAL_HEADER, ProtocolError, Refusal, RefusalReason

_OWN_FAULT = (400, 413, 422)
"""What an engine answers when the request itself is wrong."""
_CRASH = 500
"""An error that the engine didn't foresee: its own, or provoked by the request."""
_EVENTS_TO_CHECK = 3


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


async def check(worker: Worker, response: aiohttp.ClientResponse) -> None:
    """Raise what an answer's head says."""
    if response.status == 200:
        return
    content = await response.read()
    if response.status in _OWN_FAULT:
        raise Rejected(response.status, content)
    if REFUSAL_HEADER in response.headers:
        raise _refused(worker, response.headers[REFUSAL_HEADER], content)
    said = content[:200].decode(errors="replace")
    raise WorkerFailed(worker, f"answered {response.status}: {said}", crash=said if response.status == _CRASH else None)


def _refused(worker: Worker, header: str, content: bytes) -> Refused:
    try:
        refusal = Refusal.read(content)
    except ProtocolError:
        reason = next((known for known in RefusalReason if known == header), RefusalReason.QUEUE_FULL)
        refusal = Refusal(reason=reason, message="")
    return Refused(worker, refusal.reason, refusal.retry_after_seconds)


def failed(worker: Worker, error: Exception) -> WorkerFailed:
    timed_out = isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ConnectionTimeoutError)
    return WorkerFailed(worker, str(error) or type(error).__name__, lost=not timed_out, timed_out=timed_out)


def raise_failure(worker: Worker, failure: AnswerFailure | None) -> None:
    if failure is None:
        return
    if failure.status in _OWN_FAULT:
        raise Rejected(failure.status, error_body(failure.message, status=failure.status))
    raise WorkerFailed(worker, failure.message, crash=failure.message if failure.status == _CRASH else None)


def failure_in(content: bytes, *, streamed: bool) -> AnswerFailure | None:
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
