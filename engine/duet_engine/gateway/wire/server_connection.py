"""One client's connection: requests parsed strictly, handled one at a time, answered in order.

Invariant: what could be read in two ways is refused with a reason and ends the connection; nothing after it is read.
Everything that a client may cost is bounded: its head, its body, its pipelined requests, and its time for each.
"""

from __future__ import annotations

import asyncio
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

import httptools

from duet_engine.gateway.wire.accept_queue import waited_seconds
from duet_engine.gateway.wire.exchange import Exchange
from duet_engine.gateway.wire.framing import COMMON_NAMES, check_framing
from duet_engine.gateway.wire.messages import Head, Headers, Refusal

if TYPE_CHECKING:
    from duet_engine.gateway.wire.listener import Listener

LINGER_SECONDS = 2.0
"""How long a refused client may go on sending: a socket closed in its face would take the answer with it."""
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class ServerConnection(asyncio.Protocol):
    """Parses, queues, and hands one exchange after the other to the listener's handler."""

    _target: bytes
    _headers: Headers
    _head: Head | None
    _head_bytes: int
    _head_complete: bool
    _body: list[bytes]
    _body_bytes: int
    _in_message: bool
    _began_now: bool

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.transport: asyncio.Transport | None = None
        self.deadline = monotonic() + listener.limits.keep_alive_seconds
        """When the sweep calls `expire`."""
        self.surplus = False
        """It came when there were too many."""
        self._accept_wait_seconds = 0.0
        """Counted into its first request's time."""
        self._parser = httptools.HttpRequestParser(self)
        self._queue: deque[Exchange | Refusal] = deque()
        self._current: Exchange | None = None
        self._paused = False
        """The client hasn't read what was sent."""
        self._closing = False
        self._begin_message()
        self._in_message = False

    @property
    def busy(self) -> bool:
        """Between the first byte of a request and the last of its answer."""
        return self._current is not None or self._in_message

    # --- asyncio ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._accept_wait_seconds = waited_seconds(transport)
        self.listener.opened(self, self._accept_wait_seconds)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - whatever the reason, it is gone
        self.transport = None
        self.listener.connections.discard(self)
        self._queue.clear()
        current, self._current = self._current, None
        if current is not None:
            current.gone()

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        self._began_now = False
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:
            self._refuse(_cause(error))
        except httptools.HttpParserError as error:
            self._refuse(Refusal(400, f"not HTTP/1.1: {error}"))
        else:
            if self._in_message and not self._head_complete and not self._began_now:
                self._head_bytes += len(data)
                if self._head_bytes > self.listener.limits.header_bytes:
                    self._refuse(self._head_too_large())

    def pause_writing(self) -> None:
        self._paused = True
        self._rearm()
        if self._current is not None and self._current.on_flow is not None:
            self._current.on_flow(False)

    def resume_writing(self) -> None:
        self._paused = False
        self._rearm()
        if self._current is not None and self._current.on_flow is not None:
            self._current.on_flow(True)

    # --- httptools ---

    def on_message_begin(self) -> None:
        self._begin_message()
        self._rearm()

    def on_url(self, url: bytes) -> None:
        self._target += url
        most_bytes = self.listener.limits.target_bytes
        if len(self._target) > most_bytes:
            raise Refusal(414, f"target: longer than {most_bytes} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value) + 4
        limits = self.listener.limits
        if self._head_bytes > limits.header_bytes:
            raise self._head_too_large()
        if self._head_complete:
            raise Refusal(400, "trailers after a chunked body aren't served")
        if len(self._headers) >= limits.header_fields:
            raise Refusal(431, f"headers: more than {limits.header_fields} fields")
        key, text = COMMON_NAMES.get(name) or name.decode("latin-1").lower(), value.decode("latin-1")
        known = self._headers.get(key)
        if known is not None:
            if key in ("host", "content-length", "transfer-encoding", "authorization"):
                raise Refusal(400, f"{key}: given twice")
            text = f"{known}, {text}"
        self._headers[key] = text

    def on_headers_complete(self) -> None:
        self._head_complete = True
        self._rearm()
        limits = self.listener.limits
        headers, version = self._headers, self._parser.get_http_version()
        check_framing(headers, version)
        if int(headers.get("content-length", "0")) > limits.body_bytes:
            raise self._body_too_large()
        if self.surplus:
            raise Refusal(503, "too many connections at this gateway", (("retry-after", "1"),))
        method, path = self._parser.get_method().decode("ascii"), self._target.partition(b"?")[0].decode("ascii")
        self._head = Head(method, path, headers)
        refusal = self.listener.check(self._head)
        if refusal is not None:
            raise refusal
        if headers.get("expect", "").lower() == "100-continue" and self._current is None:
            self.write(_CONTINUE)

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        if self._body_bytes > self.listener.limits.body_bytes:
            raise self._body_too_large()
        self._body.append(body)

    def on_message_complete(self) -> None:
        self._in_message = False
        exchange = Exchange(
            self,
            self._head,
            b"".join(self._body),
            keep_alive=self._parser.should_keep_alive(),
            chunked=self._parser.get_http_version() == "1.1",
            accept_wait_seconds=self._accept_wait_seconds,
        )
        self._accept_wait_seconds = 0.0
        self._body = []
        if self._current is not None and self._body_bytes > 0:
            raise Refusal(400, "a further request with a body was sent before the answer to the one before it")
        most = self.listener.limits.pipelined_requests
        if len(self._queue) >= most:
            raise Refusal(400, f"more than {most} requests were sent before the answer to the first")
        self._queue.append(exchange)
        self._next()

    # --- exchanges ---

    def write(self, data: bytes) -> None:
        if self.transport is not None:
            self.transport.write(data)

    def exchange_ended(self, *, keep_alive: bool) -> None:
        """The present answer is complete."""
        self._current = None
        if self.transport is None:
            return
        if not keep_alive:
            self._closing = True
            self._queue.clear()
            self.transport.close()
        self._rearm()
        self._next()

    def expire(self) -> None:
        """A time is over: which one depends on what it waits for."""
        if self.transport is None:
            return
        limits = self.listener.limits
        if self._closing or self._paused:
            self.transport.abort()
        elif self._current is not None:
            if self._current.on_overdue is not None:
                self._current.on_overdue()
        elif not self._in_message:
            self.transport.close()
        elif self._head_complete:
            self._refuse(Refusal(408, f"body: not complete within {limits.body_timeout_seconds:g} s"))
        else:
            self._refuse(Refusal(408, f"headers: not complete within {limits.header_timeout_seconds:g} s"))

    def close_if_idle(self) -> None:
        if not self.busy and self.transport is not None:
            self.transport.close()

    def _next(self) -> None:
        while self._current is None and self._queue:
            following = self._queue.popleft()
            if isinstance(following, Refusal):
                self._answer_refusal(following)
            else:
                self._current = following
                self._rearm()
                self.listener.dispatch(following)

    def _refuse(self, refusal: Refusal) -> None:
        """After what was asked before it."""
        self._closing, self._in_message = True, False
        self._queue.append(refusal)
        self._next()

    def _answer_refusal(self, refusal: Refusal) -> None:
        if self.transport is None:
            return
        self.write(refusal.answer())
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self.deadline = monotonic() + LINGER_SECONDS
        else:
            self.transport.close()

    def _rearm(self) -> None:
        """The time for what it waits for now."""
        limits = self.listener.limits
        if self._current is not None and not self._paused:
            self.deadline = self._current.arrived_at + limits.total_timeout_seconds
            return
        if self._paused or self._closing:
            seconds = limits.client_stall_seconds
        elif not self._in_message:
            seconds = limits.keep_alive_seconds
        else:
            seconds = limits.body_timeout_seconds if self._head_complete else limits.header_timeout_seconds
        self.deadline = monotonic() + seconds

    def _begin_message(self) -> None:
        self._target = b""
        self._headers = {}
        self._head = None
        self._head_bytes = 0
        self._head_complete = False
        self._body = []
        self._body_bytes = 0
        self._in_message = self._began_now = True

    def _head_too_large(self) -> Refusal:
        return Refusal(431, f"headers: larger than {self.listener.limits.header_bytes} bytes")

    def _body_too_large(self) -> Refusal:
        return Refusal(413, f"body: larger than this gateway accepts, {self.listener.limits.body_bytes} bytes")


def _cause(error: Any) -> Refusal:  # noqa: ANN401 - httptools keeps what a callback raised as its context
    cause = error.__context__
    if isinstance(cause, Refusal):
        return cause
    raise cause if cause is not None else error
