"""The state stream: a JSON line each 100 ms, or at once on a big change.

Invariant: a line is made once for all readers, at most every 10 ms, and not at all while nobody reads.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from duet_engine.simulated_engine.engine import Engine
    from duet_engine.simulated_engine.http_server import Exchange

PERIOD_SECONDS = 0.1
SHORTEST_GAP_SECONDS = 0.01
CONTENT_TYPE = "application/x-ndjson"


class StateStream:
    """All readers of one worker's state."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._readers: set[Exchange] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._due_at = 0.0
        self._last_at = 0.0

    def add(self, exchange: Exchange) -> None:
        """A new reader; it gets the present state at once."""
        exchange.start_stream(CONTENT_TYPE)
        exchange.write(self._line())
        exchange.on_disconnect = lambda: self._readers.discard(exchange)
        self._readers.add(exchange)
        self._schedule(PERIOD_SECONDS)

    def changed(self) -> None:
        """Something happened that readers want to know before the next period."""
        if self._readers:
            self._schedule(max(0.0, self._last_at + SHORTEST_GAP_SECONDS - self._loop.time()))

    def close(self) -> None:
        """End all streams; the last line tells what there is now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        readers, self._readers = self._readers, set()
        line = self._line() if readers else b""
        for exchange in readers:
            exchange.finish(line)

    def _schedule(self, delay_seconds: float) -> None:
        due_at = self._loop.time() + delay_seconds
        if self._timer is not None:
            if due_at >= self._due_at:
                return
            self._timer.cancel()
        self._due_at = due_at
        self._timer = self._loop.call_later(delay_seconds, self._publish)

    def _publish(self) -> None:
        self._timer = None
        self._last_at = self._loop.time()
        if not self._readers:
            return
        line = self._line()
        for exchange in self._readers:
            exchange.write(line)
        self._schedule(PERIOD_SECONDS)

    def _line(self) -> bytes:
        return self._engine.state().write() + b"\n"
