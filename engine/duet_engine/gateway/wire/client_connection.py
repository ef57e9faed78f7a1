"""One connection to an engine: a request goes out, its answer's bytes come in as they are.

Invariant: one request at a time. A connection goes back to the pool only when its answer was complete, nothing came
after it, and the engine keeps it open; an answer that never ends is never taken for whole. Bytes pass by the parser
only as whole chunks between two chunks, framed as they would be framed here, so that it never knows the difference.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Protocol, cast

import httptools

from duet_engine.gateway.wire.chunks import CHUNK_END, CHUNK_HEADS
from duet_engine.gateway.wire.messages import Headers

_FIRST_FINAL_STATUS = 200
_HEADS_KNOWN = len(CHUNK_HEADS)
ChunkTap = Callable[[bytes, int], bool]
"""Gets a whole chunk, framing and all, and where its content begins; says whether it took it."""


class AnswerSink(Protocol):
    """Who gets an answer: its head, its body in pieces, then either its end or what broke it off."""

    def answer_began(self, status: int, headers: Headers) -> None: ...

    def answer_data(self, data: bytes) -> None: ...

    def answer_ended(self) -> None: ...

    def answer_broke(self, error: Exception) -> None: ...


class ClientConnection(asyncio.Protocol):
    """Parses answers. All bodies of one read reach the sink in one piece."""

    _headers: Headers
    _status: int
    """0 before the head of the final answer."""
    _told: bool
    _complete: bool
    _keep: bool
    _until_close: bool
    _chunk_complete: bool
    _between_chunks: bool
    tap: ChunkTap | None
    """Asked first when a read is exactly one chunk."""

    def __init__(self, released: Callable[[ClientConnection], None]) -> None:
        self.transport: asyncio.Transport | None = None
        self.idle_since = 0.0
        self._running = True
        self.sink: AnswerSink | None = None
        """Whose answer comes."""
        self._released = released
        """Told when the connection waits for its next request."""
        self._unanswered: Callable[[], None] | None = None
        """Told, instead of the sink, when the connection closes without a byte of an answer."""
        self._parts: list[bytes] = []
        self.on_body = self._parts.append
        self._new_answer()

    @property
    def usable(self) -> bool:
        return self.transport is not None and not self.transport.is_closing()

    def send(self, message: bytes, sink: AnswerSink, *, unanswered: Callable[[], None] | None = None) -> None:
        """A whole request; only on a usable connection that waits for one."""
        assert self.transport is not None and self.sink is None
        self.sink = sink
        self._unanswered = unanswered
        self.transport.write(message)

    def flow(self, running: bool) -> None:
        """Stop reading, or go on."""
        if self.transport is not None and self._running is not running:
            self._running = running
            if running:
                self.transport.resume_reading()
            else:
                self.transport.pause_reading()

    def abort(self) -> None:
        """Nobody wants the rest."""
        self.sink = self.tap = None
        if self.transport is not None:
            self.transport.abort()

    # --- asyncio ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = self.tap = None
        sink, self.sink = self.sink, None
        if sink is None:
            return
        if self._unanswered is not None:
            self._unanswered()
        elif self._until_close and exc is None:
            sink.answer_ended()
        else:
            sink.answer_broke(exc or ConnectionResetError("the engine closed the connection"))

    def data_received(self, data: bytes) -> None:
        tap = self.tap
        if tap is not None and self._between_chunks and len(data) < _HEADS_KNOWN:
            head = CHUNK_HEADS[len(data)]
            if data.startswith(head) and data.endswith(CHUNK_END) and tap(data, len(head)):
                return
        sink = self.sink
        if sink is None:  # nothing was asked, so whatever it is, it answers nothing
            self.abort()
            return
        self._unanswered = None
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.abort()
            sink.answer_broke(ConnectionResetError(f"its answer is not HTTP/1.1: {error.__context__ or error}"))
            return
        # Behind a chunk that was the last thing understood there is no whole line: it would have been understood.
        self._between_chunks = self._chunk_complete and data.endswith(CHUNK_END)
        if self._status and not self._told:
            self._told = True
            sink.answer_began(self._status, self._headers)
        if self.sink is not sink:  # it wants no more
            return
        parts = self._parts
        if parts:
            body = parts[0] if len(parts) == 1 else b"".join(parts)
            parts.clear()
            sink.answer_data(body)
        if self._complete:
            self._ended()

    # --- httptools ---

    def on_message_begin(self) -> None:
        if self._complete:
            raise ConnectionResetError("more than one answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < _FIRST_FINAL_STATUS:
            return
        self._status = status
        self._until_close = not {"content-length", "transfer-encoding"} & self._headers.keys()

    def on_chunk_header(self) -> None:
        self._chunk_complete = False

    def on_chunk_complete(self) -> None:
        self._chunk_complete = True

    def on_message_complete(self) -> None:
        if self._status:
            self._complete = True
            self._keep = self._parser.should_keep_alive()
        else:
            self._headers = {}

    # --- what follows ---

    def _ended(self) -> None:
        sink, self.sink = self.sink, None
        self.flow(True)
        keep = self._keep and self.usable
        self._new_answer()
        if keep:
            self.idle_since = monotonic()
            self._released(self)
        elif self.transport is not None:
            self.transport.close()
        if sink is not None:
            sink.answer_ended()

    def _new_answer(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._headers = {}
        self._status = 0
        self._told = False
        self._complete = False
        self._keep = False
        self._until_close = False
        self._chunk_complete = self._between_chunks = False
        self.tap = None
