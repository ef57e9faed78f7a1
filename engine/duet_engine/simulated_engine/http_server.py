"""A small HTTP/1.1 server for many cheap streams: one object per connection, no task per request or per token.

Invariant: handlers are plain functions that answer an `Exchange` at once or keep it and answer later; bytes written
to a stream go to the socket in the same call. A client that goes away is told to the exchange's `on_disconnect` in
the same loop iteration.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, cast
from urllib.parse import parse_qsl, unquote, urlsplit

import httptools

MAX_BODY_BYTES = 64 * 1024 * 1024
MAX_UNREAD_BYTES = 32 * 1024 * 1024
"""A client that lets this much of its answer lie unread is taken for gone."""
MAX_PIPELINED = 16
LINGER_POLL_SECONDS = 0.01

Handler = Callable[["Exchange"], None]


class Exchange:
    """One request and its answer."""

    __slots__ = (
        "_connection",
        "_pending_head",
        "body",
        "finished",
        "headers",
        "method",
        "on_disconnect",
        "path",
        "query",
    )

    def __init__(
        self, connection: HttpConnection, *, method: str, target: str, headers: Mapping[str, str], body: bytes
    ) -> None:
        self._connection = connection
        self._pending_head = b""
        parts = urlsplit(target)
        self.method = method
        self.path = unquote(parts.path)
        self.query = dict(parse_qsl(parts.query, keep_blank_values=True))
        self.headers = headers
        self.body = body
        self.on_disconnect: Callable[[], None] | None = None
        self.finished = False

    def respond(
        self,
        status: int,
        body: bytes = b"",
        *,
        content_type: str = "application/json",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """The whole answer at once."""
        if self.finished:
            return
        head = _head(status, content_type=content_type, headers=headers, close=self._connection.closing)
        self._connection.write(head + b"content-length: %d\r\n\r\n" % len(body) + (b"" if self._bodiless else body))
        self._end()

    def respond_json(self, status: int, document: Any, *, headers: Mapping[str, str] | None = None) -> None:  # noqa: ANN401
        self.respond(status, json.dumps(document, separators=(",", ":")).encode(), headers=headers)

    def start_stream(self, content_type: str) -> None:
        """Begin a chunked answer; its head leaves with the first bytes."""
        head = _head(HTTPStatus.OK, content_type=content_type, headers=None, close=self._connection.closing)
        self._pending_head = head + b"transfer-encoding: chunked\r\n\r\n"

    @property
    def streaming(self) -> bool:
        return self._pending_head != b"" or self._connection.stream is self

    def write(self, data: bytes) -> None:
        """Bytes of a chunked answer, sent now."""
        if self.finished:
            return
        head, self._pending_head = self._pending_head, b""
        self._connection.stream = self
        self._connection.write(b"%b%x\r\n%b\r\n" % (head, len(data), data))

    def finish(self, data: bytes = b"") -> None:
        """End a chunked answer, with its last bytes in the same packet."""
        if self.finished:
            return
        head, self._pending_head = self._pending_head, b""
        last = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
        self._connection.write(b"%b%b0\r\n\r\n" % (head, last))
        self._end()

    def disconnected(self) -> None:
        """The client is gone; nothing can be written any more."""
        if self.finished:
            return
        self.finished = True
        if self.on_disconnect is not None:
            self.on_disconnect()

    @property
    def _bodiless(self) -> bool:
        return self.method == "HEAD"

    def _end(self) -> None:
        self.finished = True
        self._connection.exchange_ended()


def _head(status: int, *, content_type: str, headers: Mapping[str, str] | None, close: bool) -> bytes:
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", f"content-type: {content_type}"]
    lines.extend(f"{name}: {value}" for name, value in (headers or {}).items())
    if close:
        lines.append("connection: close")
    return ("\r\n".join(lines) + "\r\n").encode("latin-1")


class HttpConnection(asyncio.Protocol):
    """Parses requests of one connection and hands them to the handler one at a time."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._queue: deque[Exchange] = deque()
        self._current: Exchange | None = None
        self._client_closes = False
        self.stream: Exchange | None = None
        self.idle_since = time.monotonic()
        self._reset()

    def _reset(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._target = b""
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []
        self._body_bytes = 0

    # --- asyncio ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._server.connections.discard(self)
        self._transport = None
        current, self._current = self._current, None
        if current is not None:
            current.disconnected()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse(HTTPStatus.BAD_REQUEST, "protocol upgrades are not served")
        except httptools.HttpParserError as error:
            self._refuse(HTTPStatus.BAD_REQUEST, f"not HTTP: {error}")

    # --- httptools ---

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if self._headers.get("expect", "").lower() == "100-continue":
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        if self._body_bytes > MAX_BODY_BYTES:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body may have {MAX_BODY_BYTES} bytes")
            return
        self._body.append(body)

    def on_message_complete(self) -> None:
        if self._transport is None:
            return
        exchange = Exchange(
            self,
            method=self._parser.get_method().decode(),
            target=self._target.decode("latin-1"),
            headers=self._headers,
            body=b"".join(self._body),
        )
        self._client_closes = not self._parser.should_keep_alive()
        self._target, self._headers, self._body, self._body_bytes = b"", {}, [], 0
        if len(self._queue) >= MAX_PIPELINED:
            self._refuse(HTTPStatus.BAD_REQUEST, f"more than {MAX_PIPELINED} pipelined requests")
            return
        self._queue.append(exchange)
        self._next()

    # --- exchanges ---

    @property
    def closing(self) -> bool:
        """Whether the present answer is the connection's last."""
        return self._client_closes or self._server.draining()

    @property
    def idle(self) -> bool:
        return self._current is None

    def write(self, data: bytes) -> None:
        if self._transport is None:
            return
        self._transport.write(data)
        if self._transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
            self._transport.abort()

    def exchange_ended(self) -> None:
        """The present answer is complete: close, or go on with the next request."""
        self._current = self.stream = None
        self.idle_since = time.monotonic()
        if self.closing and not self._queue:
            self.close()
            return
        self._next()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _next(self) -> None:
        if self._current is None and self._queue:
            self._current = self._queue.popleft()
            self._server.dispatch(self._current)

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        body = json.dumps({"object": "error", "message": message, "code": int(status)}).encode()
        head = _head(status, content_type="application/json", headers=None, close=True)
        self.write(head + b"content-length: %d\r\n\r\n" % len(body) + body)
        self.close()


class HttpServer:
    """A listening socket and its connections."""

    def __init__(self, handler: Handler, *, keep_alive_seconds: float, draining: Callable[[], bool]) -> None:
        self._handler = handler
        self.draining = draining
        """While it says True every answer closes its connection."""
        self._keep_alive_seconds = keep_alive_seconds
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self.connections: set[HttpConnection] = set()

    async def start(self, host: str, port: int) -> int:
        """Listen; the port is the one that was bound."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: HttpConnection(self), host, port, backlog=1024)
        self._sweep()
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self, *, linger_seconds: float = 5.0) -> None:
        """Stop listening and wait, bounded, until written answers have left."""
        if self._server is not None:
            self._server.close()
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in tuple(self.connections):
            if connection.idle:
                connection.close()
        steps = int(linger_seconds / LINGER_POLL_SECONDS)
        for _ in range(steps):
            if not self.connections:
                return
            await asyncio.sleep(LINGER_POLL_SECONDS)

    def dispatch(self, exchange: Exchange) -> None:
        """Give a request to the handler; a bug in it is answered with 500 and told to the loop's exception handler."""
        try:
            self._handler(exchange)
        except Exception as error:
            asyncio.get_running_loop().call_exception_handler(
                {"message": f"{exchange.method} {exchange.path} failed", "exception": error}
            )
            if exchange.streaming:
                exchange.finish()
            else:
                exchange.respond_json(500, {"object": "error", "message": f"internal error: {error!r}", "code": 500})

    def _sweep(self) -> None:
        """Close connections that have been idle for too long."""
        oldest = time.monotonic() - self._keep_alive_seconds
        for connection in tuple(self.connections):
            if connection.idle and connection.idle_since < oldest:
                connection.close()
        self._sweeper = asyncio.get_running_loop().call_later(1.0, self._sweep)
