"""A deflected request in the HTTP process: known to the task that serves it, and answered with a refusal if one comes.

Invariant: a deflected request's answer is held back until its first piece, so that a worker's refusal is a 503 with its
reason whether the answer was to be streamed or not. Nothing is held back of any other request.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from duet_engine.protocol import REFUSAL_HEADER, Dispatch, Refusal, RefusalReason, Role

if TYPE_CHECKING:
    from duet_engine.plugin.asgi import Request

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]


@dataclass(slots=True)
class Arrival:
    """A deflected request while it is in the HTTP process."""

    dispatch: Dispatch
    refusal: Refusal | None = None


ARRIVAL: ContextVar[Arrival | None] = ContextVar("duet_arrival", default=None)
"""The deflected dispatch whose request this task serves."""


def watcher(
    role: Callable[[], Role], *, count: Callable[[RefusalReason], None]
) -> Callable[[Request], Awaitable[None]]:
    """Looks at each request before SGLang does, on a worker of this role; `count` hears of the scheduler's refusals."""

    async def watch(request: Request) -> None:
        if request.dispatch is None or not request.dispatch.deflected:
            ARRIVAL.set(None)
            return
        if (present := role()) is not Role.DECODE:
            from duet_engine.plugin.asgi import RefusedError

            message = f"only a decode worker prefills deflected requests, not a {present} one"
            raise RefusedError(Refusal(reason=RefusalReason.WRONG_ROLE, message=message))
        arrival = Arrival(request.dispatch)
        ARRIVAL.set(arrival)
        request.respond_through = lambda send: HeldAnswer(arrival, send, count=count)

    return watch


class HeldAnswer:
    """Holds the head of an answer until its first piece is there; puts the refusal in its place if one has come."""

    def __init__(self, arrival: Arrival, send: Send, *, count: Callable[[RefusalReason], None]) -> None:
        self._arrival = arrival
        self._send = send
        self._count = count
        self._head: Message | None = None
        self._begun = False
        self._refused = False

    async def __call__(self, message: Message) -> None:
        if self._refused:
            return
        if not self._begun:
            if message["type"] == "http.response.start":
                self._head = message
                return
            if self._arrival.refusal is not None:
                self._refused = True
                await self._refuse(self._arrival.refusal)
                return
            self._begun = True
            if self._head is not None:
                await self._send(self._head)
        await self._send(message)

    async def _refuse(self, refusal: Refusal) -> None:
        self._count(refusal.reason)
        body = refusal.write()
        headers = {
            "content-type": "application/json",
            "content-length": str(len(body)),
            REFUSAL_HEADER: refusal.reason.value,
            "retry-after": str(max(1, round(refusal.retry_after_seconds))),
        }
        encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": 503, "headers": encoded})
        await self._send({"type": "http.response.body", "body": body})
