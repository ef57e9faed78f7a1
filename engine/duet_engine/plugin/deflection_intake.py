"""Requests at the door: the gateway's own field is taken out of the body, believed or refused, and a refusal answered.

Invariant: `duet` never reaches SGLang's own parsing, and counts only from a caller who has proven to be a gateway. A
deflected request's answer is held back until its first piece, so that a worker's refusal is a 503 with its reason
whether the answer was to be streamed or not. Nothing is held back of any other request.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from duet_engine.protocol import DISPATCH_FIELD, REFUSAL_HEADER, Dispatch, Refusal, openai_error

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

PATHS = frozenset({"/generate", "/v1/completions", "/v1/chat/completions"})
GUARDED_AS = "/duet/dispatch"
"""Path under which a guard is asked about the field: guarded also where requests are open to all."""
_FAKE_HOST = b"2.2.2.2"
_FIELD = f'"{DISPATCH_FIELD}"'.encode()


class BadDispatch(ValueError):
    """A body or field that can't be read; the message names it."""


@dataclass(slots=True)
class Arrival:
    """A dispatched request while it is in the HTTP process."""

    dispatch: Dispatch
    refusal: Refusal | None = None


ARRIVAL: ContextVar[Arrival | None] = ContextVar("duet_arrival", default=None)
"""The dispatch whose request this task serves."""


class DispatchIntake:
    """ASGI middleware, inside whatever authenticates requests as such."""

    def __init__(
        self,
        application: Application,
        *,
        proven: Callable[[str | None], bool],
        dispatched: Callable[[Dispatch], None] = lambda _: None,
    ) -> None:
        self._application = application
        self._proven = proven
        """Whether a caller with this `Authorization` may speak for a gateway."""
        self._dispatched = dispatched

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in PATHS:
            await self._application(scope, receive, send)
            return
        body = await _whole(receive)
        if body is None:
            return
        try:
            kept, dispatch = _taken_out(body)
        except BadDispatch as error:
            await _answer(send, 400, openai_error(str(error), kind="BadRequestError", code=400))
            return
        if dispatch is None:
            await self._application(scope, _replayed(body, receive), send)
        elif not self._proven(_authorization(scope)):
            message = f"{DISPATCH_FIELD}: only a gateway may send this field, with its token"
            await _answer(send, 403, openai_error(message, kind="Forbidden", code=403))
        else:
            self._dispatched(dispatch)
            await self._serve(Arrival(dispatch), _with_length(scope, len(kept)), _replayed(kept, receive), send)

    async def _serve(self, arrival: Arrival, scope: Message, receive: Receive, send: Send) -> None:
        token = ARRIVAL.set(arrival)
        held = _HeldAnswer(arrival, send) if arrival.dispatch.deflected else None
        try:
            await self._application(scope, receive, send if held is None else held)
        except Exception:
            if held is None or not await held.refused():
                raise
        finally:
            ARRIVAL.reset(token)


class _HeldAnswer:
    """Holds the head of an answer until its first piece is there; puts the refusal in its place if one has come."""

    def __init__(self, arrival: Arrival, send: Send) -> None:
        self._arrival = arrival
        self._send = send
        self._head: Message | None = None
        self._decided = False
        self._answered = False

    async def __call__(self, message: Message) -> None:
        if not self._decided and message["type"] == "http.response.start":
            self._head = message
            return
        if not self._decided and not await self.refused():
            self._decided = True
            if self._head is not None:
                await self._send(self._head)
        if not self._answered:
            await self._send(message)

    async def refused(self) -> bool:
        """Answer with the refusal, if there is one and nothing else has been sent."""
        if self._answered:
            return True
        refusal = self._arrival.refusal
        if self._decided or refusal is None:
            return False
        self._decided = self._answered = True
        headers = {REFUSAL_HEADER: refusal.reason.value, "retry-after": f"{max(1, round(refusal.retry_after_seconds))}"}
        await _answer(self._send, 503, refusal.write(), headers)
        return True


def _taken_out(body: bytes) -> tuple[bytes, Dispatch | None]:
    """The body without the field, and what the field said."""
    if _FIELD not in body and _FAKE_HOST not in body:
        return body, None
    try:
        fields = json.loads(body)
    except ValueError:
        return body, None  # SGLang says so itself.
    if not isinstance(fields, dict):
        return body, None
    if fields.get("bootstrap_host") == _FAKE_HOST.decode():
        # SGLang's health checks use it: a request with it decodes from KV that nobody has filled.
        raise BadDispatch("bootstrap_host: 2.2.2.2 is SGLang's own and no address of a prefill worker")
    if DISPATCH_FIELD not in fields:
        return body, None
    try:
        dispatch = Dispatch.model_validate(fields.pop(DISPATCH_FIELD))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise BadDispatch(
            f"{'.'.join(str(part) for part in (DISPATCH_FIELD, *first['loc']))}: {first['msg']}"
        ) from error
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode(), dispatch


async def _whole(receive: Receive) -> bytes | None:
    """A request's body; None when its client has gone."""
    pieces: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        pieces.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(pieces)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Give a body that has been read, then whatever comes next."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _with_length(scope: Message, length: int) -> Message:
    headers = [(name, value) for name, value in scope["headers"] if name != b"content-length"]
    return {**scope, "headers": [*headers, (b"content-length", str(length).encode())]}


def _authorization(scope: Message) -> str | None:
    return next((value.decode("latin-1") for name, value in scope["headers"] if name == b"authorization"), None)


async def _answer(
    send: Send, status: int, content: bytes | dict[str, Any], headers: dict[str, str] | None = None
) -> None:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    named = {"content-type": "application/json", "content-length": str(len(body)), **(headers or {})}
    encoded = [(name.encode(), value.encode()) for name, value in named.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})
