"""Before SGLang's own HTTP application: who may call, Duet's endpoints, and what is let in.

Invariant: a request reaches SGLang only from a caller who has proven who they are, while the worker takes work, and
without the fields that are ours; an answer that nothing was done says so in `REFUSAL_HEADER`. Everything else passes
through untouched.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from duet_engine.plugin.role_switch import ROLE_SWITCH_PATH, switch
from duet_engine.plugin.server_side import ServerSide
from duet_engine.protocol import (
    DISPATCH_FIELD,
    REFUSAL_HEADER,
    Dispatch,
    ProtocolError,
    Refusal,
    openai_error,
)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
Endpoint = Callable[["Call"], Awaitable[None]]

WORK_PATHS = frozenset(
    (
        *("/generate", "/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages"),
        *("/v1/embeddings", "/v1/classify", "/v1/score", "/v1/rerank", "/v1/systemone", "/v1/audio/transcriptions"),
        *("/encode", "/classify", "/invocations", "/api/chat", "/api/generate", "/vertex_generate"),
    )
)
"""What makes the model compute: refused while draining."""
WARM_UP_PATHS = WORK_PATHS | {"/model_info", "/freeze_gc"}
DISPATCH_PATH = f"/duet/{DISPATCH_FIELD}"
"""Who sends our field must be a gateway also where requests are open to all: it is guarded as this path."""
MAX_BODY_BYTES = 64 * 1024 * 1024
FAKE_BOOTSTRAP_HOST = "2.2.2.2"
"""SGLang takes it for a check of its own health and decodes from KV that nobody filled."""


@dataclass(slots=True)
class Call:
    """One HTTP request and its answer."""

    scope: Scope
    receive: Receive
    send: Send
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, scope: Scope, receive: Receive, send: Send) -> Call:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        return cls(scope, receive, send, headers)

    @property
    def path(self) -> str:
        return str(self.scope["path"])

    @property
    def method(self) -> str:
        return str(self.scope["method"])

    @property
    def query(self) -> bytes:
        return bytes(self.scope.get("query_string", b""))

    async def body(self) -> bytes | None:
        """All of it; None where the client left or sends too much."""
        parts: list[bytes] = []
        size = 0
        while True:
            message = await self.receive()
            if message["type"] != "http.request":
                return None
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > MAX_BODY_BYTES:
                await self.error(413, f"a body may have {MAX_BODY_BYTES} bytes", kind="RequestEntityTooLarge")
                return None
            if not message.get("more_body"):
                return b"".join(parts)

    async def respond(
        self,
        status: int,
        body: bytes,
        *,
        content_type: str = "application/json",
        headers: dict[str, str] | None = None,
    ) -> None:
        lines = {"content-type": content_type, "content-length": str(len(body)), **(headers or {})}
        encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in lines.items()]
        await self.send({"type": "http.response.start", "status": status, "headers": encoded})
        await self.send({"type": "http.response.body", "body": b"" if self.method == "HEAD" else body})

    async def json(self, status: int, document: Any) -> None:  # noqa: ANN401
        await self.respond(status, json.dumps(document, separators=(",", ":")).encode())

    async def error(self, status: int, message: str, *, kind: str) -> None:
        await self.json(status, openai_error(message, kind=kind, code=status))

    async def refuse(self, refusal: Refusal) -> None:
        """Tell a gateway that nothing was done and that it may go elsewhere."""
        await self.respond(503, refusal.write(), headers=refusal_headers(refusal))


def refusal_headers(refusal: Refusal) -> dict[str, str]:
    return {REFUSAL_HEADER: refusal.reason.value, "retry-after": str(max(1, round(refusal.retry_after_seconds)))}


@dataclass(slots=True)
class Request:
    """A request for the model on its way in. Modules of the plugin may change `body` and `respond_through`."""

    path: str
    body: dict[str, Any] | None
    """None where it isn't a JSON object: SGLang says what is wrong with it."""
    dispatch: Dispatch | None
    respond_through: Callable[[Send], Send] | None = None
    """Sees the answer before the client does."""


class RefusedError(Exception):
    """A module takes no part of a request."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


class BadFieldError(Exception):
    """A request has a field that can't be used: answered with 400."""


Module = Callable[[Request], Awaitable[None]]
"""Looks at a request before SGLang does; raises RefusedError or BadFieldError where it must not go on."""


class DuetApplication:
    """ASGI middleware around SGLang's application."""

    def __init__(
        self,
        app: Application,
        *,
        side: ServerSide,
        endpoints: dict[tuple[str, str], Endpoint],
        modules: list[Module],
    ) -> None:
        self._app = app
        self._side = side
        self._endpoints = endpoints
        self._modules = modules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket" and self._side.guard.enforcing:
                await send({"type": "websocket.close", "code": 1008})
                return
            await self._app(scope, receive, send)
            return
        call = Call.of(scope, receive, send)
        own_warm_up = call.path in WARM_UP_PATHS and self._side.warm_up.proven(call.headers)
        if not own_warm_up and await self._denied(call, call.path):
            return
        endpoint = self._endpoints.get(("GET" if call.method == "HEAD" else call.method, call.path))
        if endpoint is not None:
            await endpoint(call)
        elif call.path.startswith("/duet/"):
            await self._no_endpoint(call)
        elif call.path == ROLE_SWITCH_PATH and call.method == "POST":
            await switch(call, self._side, self._app)
        elif call.path in WORK_PATHS and call.method in ("POST", "PUT"):
            await self._work(call, own_warm_up=own_warm_up)
        else:
            await self._app(scope, receive, send)

    async def _denied(self, call: Call, path: str) -> bool:
        """Whether its caller may not use this path, and has been told."""
        denial = self._side.guard.denial(path, call.headers.get("authorization"))
        if denial is not None:
            await call.respond(denial.status, denial.body(), headers=denial.headers)
        return denial is not None

    async def _no_endpoint(self, call: Call) -> None:
        others = sorted(method for method, path in self._endpoints if path == call.path)
        if others:
            body = json.dumps({"detail": "Method Not Allowed"}).encode()
            await call.respond(405, body, headers={"allow": ", ".join(others)})
        else:
            await call.json(404, {"detail": "Not Found"})

    async def _work(self, call: Call, *, own_warm_up: bool) -> None:
        side = self._side
        refused = None if own_warm_up else side.refusal_reason()
        if refused is not None:
            await self._refuse(call, Refusal(reason=refused[0], message=refused[1]))
            return
        body = await call.body()
        if body is None:
            return
        try:
            request = read_request(call.path, body, own_warm_up=own_warm_up)
            if request.dispatch is not None and await self._denied(call, DISPATCH_PATH):
                return
            for module in self._modules:
                await module(request)
        except RefusedError as error:
            await self._refuse(call, error.refusal)
            return
        except BadFieldError as error:
            await call.error(400, str(error), kind="BadRequestError")
            return
        changed = body if request.body is None else json.dumps(request.body).encode()
        side.let_in(request.dispatch)
        try:
            send = call.send if request.respond_through is None else request.respond_through(call.send)
            await self._app(with_length(call.scope, len(changed)), replayed(changed, call.receive), send)
        finally:
            side.answered()

    async def _refuse(self, call: Call, refusal: Refusal) -> None:
        self._side.refusals[refusal.reason] += 1
        await call.refuse(refusal)


def read_request(path: str, body: bytes, *, own_warm_up: bool) -> Request:
    """What of a body concerns us. It is parsed only where one of our fields may be in it.

    Raises:
        BadFieldError: a field of ours, or one that only SGLang itself may use, can't be used.
    """
    if f'"{DISPATCH_FIELD}"'.encode() not in body and FAKE_BOOTSTRAP_HOST.encode() not in body:
        return Request(path, None, None)
    try:
        document = json.loads(body)
    except ValueError:
        return Request(path, None, None)
    if not isinstance(document, dict):
        return Request(path, None, None)
    if not own_warm_up and FAKE_BOOTSTRAP_HOST in _each(document.get("bootstrap_host")):
        raise BadFieldError(f"bootstrap_host: {FAKE_BOOTSTRAP_HOST} is SGLang's own, for its health check")
    ours = document.pop(DISPATCH_FIELD, None)
    if ours is None:
        return Request(path, document, None)
    try:
        return Request(path, document, Dispatch.read(json.dumps(ours)))
    except ProtocolError as error:
        raise BadFieldError(f"{DISPATCH_FIELD}: {error}") from error


def _each(value: object) -> list[object]:
    return list(value) if isinstance(value, list) else [value]


def with_length(scope: Scope, length: int) -> Scope:
    """The scope of a request whose body was changed."""
    headers = [
        (name, value) for name, value in scope["headers"] if name not in (b"content-length", b"transfer-encoding")
    ]
    return {**scope, "headers": [*headers, (b"content-length", str(length).encode())]}


def replayed(body: bytes, receive: Receive) -> Receive:
    """What SGLang receives: the body once, then whatever else happens to the connection."""
    pending = [body]

    async def next_message() -> Message:
        if pending:
            return {"type": "http.request", "body": pending.pop(), "more_body": False}
        return await receive()

    return next_message
