"""One request and its answer.

Invariant: an answer is written at most once, whole or as a stream, and nothing of it after the client has gone.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING

from duet_engine.gateway.errors import error_body
from duet_engine.gateway.wire.chunks import framed
from duet_engine.gateway.wire.messages import JSON, Head, HeaderItems, Refusal, response_head, stream_head

if TYPE_CHECKING:
    from duet_engine.gateway.wire.server_connection import ServerConnection

_LAST_CHUNK = b"0\r\n\r\n"
_NO_HEAD = Head("GET", "", {})


class Exchange:
    """What a handler gets. It answers at once, or keeps it and answers later."""

    __slots__ = (
        "_connection",
        "_keep_alive",
        "accept_wait_seconds",
        "arrived_at",
        "body",
        "chunked",
        "head",
        "on_flow",
        "on_gone",
        "on_overdue",
        "over",
    )

    def __init__(
        self,
        connection: ServerConnection,
        head: Head | None,
        body: bytes,
        *,
        keep_alive: bool,
        chunked: bool,
        accept_wait_seconds: float = 0.0,
    ) -> None:
        self._connection = connection
        self._keep_alive = keep_alive
        self.chunked = chunked
        """How a stream is framed; else its end is that of the connection."""
        self.over = False
        """Answered, or nobody waits for the answer any more."""
        self.accept_wait_seconds = accept_wait_seconds
        """What of the time before it was read its connection waited to be accepted."""
        self.arrived_at = monotonic() - accept_wait_seconds
        self.head = head or _NO_HEAD
        self.body = body
        self.on_gone: Callable[[], None] | None = None
        """Told once when the client leaves before its answer is complete."""
        self.on_overdue: Callable[[], None] | None = None
        """Told when its whole time is over, again and again until it is answered."""
        self.on_flow: Callable[[bool], None] | None = None
        """Told False when the client doesn't keep up with a stream, True when it has caught up."""

    @property
    def client_address(self) -> str:
        transport = self._connection.transport
        peer = transport.get_extra_info("peername") if transport is not None else None
        return str(peer[0]) if peer else ""

    def respond(self, status: int, body: bytes = b"", *, content_type: str = JSON, headers: HeaderItems = ()) -> None:
        """The whole answer."""
        if self.over:
            return
        sent = [
            ("content-type", content_type),
            ("content-length", str(len(body))),
            *headers,
            *self._connection_header(),
        ]
        content = b"" if self.head.method == "HEAD" else body
        self._connection.write(response_head(status, sent) + content)
        self._end()

    def respond_json(self, status: int, document: object, *, headers: HeaderItems = ()) -> None:
        self.respond(status, json.dumps(document, separators=(",", ":")).encode(), headers=headers)

    def refuse(self, refusal: Refusal) -> None:
        """An error as JSON."""
        self.respond(refusal.status, error_body(refusal.message, status=refusal.status), headers=refusal.headers)

    def begin(self, first: bytes, *, content_type: str, headers: HeaderItems = ()) -> None:
        """Head and first bytes of a stream, in one packet."""
        if self.over:
            return
        if not self.chunked:
            self._keep_alive = False
        framing = (("transfer-encoding", "chunked"),) if self.chunked else ()
        head = stream_head((("content-type", content_type), *framing, *headers, *self._connection_header()))
        self._connection.write(head + (framed(first) if self.chunked else first))

    def write(self, data: bytes) -> None:
        """Bytes of a stream; never none."""
        transport = self._connection.transport
        if not self.over and transport is not None:  # for each token, so without a further call
            transport.write(framed(data) if self.chunked else data)

    def write_chunk(self, chunk: bytes) -> None:
        """A chunk of a chunked stream that is framed already."""
        transport = self._connection.transport
        if not self.over and transport is not None:
            transport.write(chunk)

    def finish(self) -> None:
        """End of a stream."""
        if self.over:
            return
        if self.chunked:
            self._connection.write(_LAST_CHUNK)
        self._end()

    def gone(self) -> None:
        """The client left."""
        if self.over:
            return
        self.over = True
        if self.on_gone is not None:
            self.on_gone()

    def _connection_header(self) -> tuple[tuple[str, str], ...]:
        if self._keep_alive and self._connection.listener.draining():
            self._keep_alive = False
        return () if self._keep_alive else (("connection", "close"),)

    def _end(self) -> None:
        self.over = True
        self._connection.exchange_ended(keep_alive=self._keep_alive)
