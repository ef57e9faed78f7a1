"""The state stream: a JSON line each 100 ms, or within 10 ms of a big change.

Invariant: a line is made once for all readers, and not at all while nobody reads; a reader that doesn't keep up misses
lines and holds up nobody.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from duet_engine.plugin.asgi import Call
    from duet_engine.plugin.server_side import ServerSide

PERIOD_SECONDS = 0.1
SHORTEST_GAP_SECONDS = 0.01
CONTENT_TYPE = b"application/x-ndjson"


class StateStream:
    """All readers of one worker's state."""

    def __init__(self, side: ServerSide) -> None:
        self._side = side
        self._line = b""
        self._published = asyncio.Event()
        self._readers = 0
        self._publisher: asyncio.Task[None] | None = None

    async def serve(self, call: Call) -> None:
        """Lines until the reader leaves; the present state at once."""
        head = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", CONTENT_TYPE)]}
        await call.send(head)
        await call.send(_part(self._side.state().write() + b"\n"))
        self._readers += 1
        if self._publisher is None:
            self._publisher = asyncio.create_task(self._publish())
        lines = asyncio.create_task(self._relay(call))
        leaving = asyncio.create_task(_until_left(call))
        try:
            await asyncio.wait((lines, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            lines.cancel()
            leaving.cancel()
            self._readers -= 1

    async def _relay(self, call: Call) -> None:
        while not self._side.closing:
            await self._published.wait()
            await call.send(_part(self._line))
        # A server that ends waits for its open answers.
        await call.send({"type": "http.response.body", "body": b""})

    async def _publish(self) -> None:
        shape, last_at = self._side.shape(), time.monotonic()
        while self._readers:
            await asyncio.sleep(SHORTEST_GAP_SECONDS)
            present, now = self._side.shape(), time.monotonic()
            if present == shape and now - last_at < PERIOD_SECONDS and not self._side.closing:
                continue
            shape, last_at = present, now
            self._line = self._side.state().write() + b"\n"
            waiting, self._published = self._published, asyncio.Event()
            waiting.set()
        self._publisher = None


async def _until_left(call: Call) -> None:
    while (await call.receive())["type"] != "http.disconnect":
        pass


def _part(line: bytes) -> dict[str, object]:
    return {"type": "http.response.body", "body": line, "more_body": True}
