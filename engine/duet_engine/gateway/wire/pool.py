"""Connections to engines, kept open between requests.

Invariant: a request goes out once; only when a kept connection turns out to have been closed by the engine, without a
byte of an answer, it goes out once more on a new one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from time import monotonic

from duet_engine.gateway.wire.client_connection import AnswerSink, ChunkTap, ClientConnection

Address = tuple[str, int]

IDLE_SECONDS = 3.0
"""Shorter than the 5 s after which engines close idle connections, so that none is closed under a request."""
MOST_IDLE = 512
"""For each engine."""


class ConnectError(ConnectionError):
    """An engine can't be reached."""


class Call:
    """One request to one engine, cancellable from the start."""

    __slots__ = ("_address", "_connection", "_message", "_pool", "_sink", "_task")

    def __init__(self, pool: ConnectionPool, address: Address, message: bytes, sink: AnswerSink) -> None:
        self._pool = pool
        self._address = address
        self._message = message
        self._sink = sink
        self._task: asyncio.Task[None] | None = None
        self._connection = pool.take(address)
        if self._connection is not None:
            self._connection.send(message, sink, unanswered=self._connect)
        else:
            self._connect()

    def cancel(self) -> None:
        """Nobody wants the answer any more. Safe to call twice, and after the end."""
        if self._task is not None:
            self._task.cancel()
        if self._connection is not None and self._connection.sink is self._sink:
            self._connection.abort()

    def flow(self, running: bool) -> None:
        """Stop reading the answer, or go on."""
        if self._connection is not None and self._connection.sink is self._sink:
            self._connection.flow(running)

    def tap(self, tap: ChunkTap) -> None:
        """Give whole chunks to it first, framing and all, from the next read on."""
        if self._connection is not None and self._connection.sink is self._sink:
            self._connection.tap = tap

    def _connect(self) -> None:
        self._connection = None
        self._task = asyncio.get_running_loop().create_task(self._connected())

    async def _connected(self) -> None:
        try:
            connection = await self._pool.connect(self._address)
        except (OSError, TimeoutError) as error:
            host, port = self._address
            said = str(error) or "it took too long"
            self._sink.answer_broke(ConnectError(f"no connection to {host}:{port}: {said}"))
            return
        self._connection = connection
        connection.send(self._message, self._sink)


class ConnectionPool:
    """Idle connections by address; the one that was used last is taken first."""

    def __init__(self, *, connect_timeout_seconds: float) -> None:
        self._connect_timeout_seconds = connect_timeout_seconds
        self._idle: dict[Address, deque[ClientConnection]] = {}
        self._pruning: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    def call(self, address: Address, message: bytes, sink: AnswerSink) -> Call:
        """Send a request; everything that comes of it is told to the sink."""
        return Call(self, address, message, sink)

    def take(self, address: Address) -> ClientConnection | None:
        """A connection that waits, if there is one worth using."""
        idle = self._idle.get(address)
        oldest = monotonic() - IDLE_SECONDS
        while idle:
            connection = idle.pop()
            if connection.idle_since >= oldest and connection.usable:
                return connection
            connection.abort()
        return None

    async def connect(self, address: Address) -> ClientConnection:
        """A new one.

        Raises:
            OSError, TimeoutError: the engine can't be reached.
        """

        def released(connection: ClientConnection) -> None:
            idle = self._idle.setdefault(address, deque())
            idle.append(connection)
            if len(idle) > MOST_IDLE:
                idle.popleft().abort()
            if self._pruning is None:
                self._pruning = self._loop.call_later(IDLE_SECONDS, self._prune)

        async with asyncio.timeout(self._connect_timeout_seconds):
            _, made = await self._loop.create_connection(lambda: ClientConnection(released), *address)
        return made

    def forget(self, address: Address) -> None:
        """The engine is gone."""
        for connection in self._idle.pop(address, ()):
            connection.abort()

    def _prune(self) -> None:
        """Close those that have waited for too long; come back while any waits."""
        oldest = monotonic() - IDLE_SECONDS
        for idle in self._idle.values():
            while idle and idle[0].idle_since < oldest:
                idle.popleft().abort()
        waiting = any(self._idle.values())
        self._pruning = self._loop.call_later(IDLE_SECONDS, self._prune) if waiting else None

    def close(self) -> None:
        if self._pruning is not None:
            self._pruning.cancel()
        for address in tuple(self._idle):
            self.forget(address)
