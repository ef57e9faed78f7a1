"""A listening socket and its connections.

Invariant: the number of connections is bounded, and each has a time for what it does; one sweep looks after all.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING

from duet_engine.distribution import Distribution
from duet_engine.gateway.wire.accept_queue import BOUNDS_SECONDS
from duet_engine.gateway.wire.messages import Head, Refusal
from duet_engine.gateway.wire.server_connection import ServerConnection

if TYPE_CHECKING:
    from duet_engine.gateway.settings import Limits
    from duet_engine.gateway.wire.exchange import Exchange

SWEEP_SECONDS = 0.25
MOST_SURPLUS = 1000
"""Connections over the limit that are told so; further ones are closed without a word."""
BACKLOG = 2048
FLUSH_SECONDS = 5.0
"""For last answers to leave towards slow clients."""
_POLL_SECONDS = 0.04
_POLLS_TO_BELIEVE = 5

Handler = Callable[["Exchange"], None]
HeadCheck = Callable[[Head], Refusal | None]


class Listener:
    """Accepts on one port. `handler` may keep an exchange and answer it later."""

    def __init__(self, handler: Handler, *, check: HeadCheck, limits: Limits, draining: Callable[[], bool]) -> None:
        self.check = check
        """Says of a head whether its body is worth reading."""
        self.limits = limits
        self.draining = draining
        """While it says True every answer closes its connection."""
        self.connections: set[ServerConnection] = set()
        self.accept_waits = Distribution(BOUNDS_SECONDS)
        """Of all connections so far."""
        self._handler = handler
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    async def start(self, host: str, port: int, *, tls: ssl.SSLContext | None = None, shared: bool = False) -> int:
        """Listen; returns the port. `shared`: with other processes that listen on it too."""
        self._server = await self._loop.create_server(
            lambda: ServerConnection(self), host, port, backlog=BACKLOG, ssl=tls, reuse_port=shared or None
        )
        self._sweep()
        return int(self._server.sockets[0].getsockname()[1])

    def close(self) -> None:
        """Accept no more; connections that wait for their next request end."""
        if self._server is not None:
            self._server.close()
        for connection in tuple(self.connections):
            connection.close_if_idle()

    async def drained(self, grace_seconds: float) -> bool:
        """Wait until what was accepted is answered, then end all connections; False when some were cut off."""
        in_time = await _until(
            lambda: not any(each.busy for each in self.connections), grace_seconds, polls=_POLLS_TO_BELIEVE
        )
        for connection in tuple(self.connections):
            connection.close_if_idle()
        await _until(lambda: not self.connections, FLUSH_SECONDS)
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in tuple(self.connections):
            if connection.transport is not None:
                connection.transport.abort()
        return in_time

    def opened(self, connection: ServerConnection, accept_wait_seconds: float) -> None:
        """A connection was accepted, so long after what it sent first had come."""
        self.accept_waits.observe(accept_wait_seconds)
        surplus = len(self.connections) - self.limits.connections
        self.connections.add(connection)
        if surplus >= 0:
            connection.surplus = True
            if surplus >= MOST_SURPLUS and connection.transport is not None:
                connection.transport.abort()

    def dispatch(self, exchange: Exchange) -> None:
        """To the handler; a bug in it is answered with 500 and told to the loop's exception handler."""
        try:
            self._handler(exchange)
        except Exception as error:
            head = exchange.head
            self._loop.call_exception_handler({"message": f"{head.method} {head.path} failed", "exception": error})
            exchange.refuse(Refusal(500, "internal error of the gateway"))

    def _sweep(self) -> None:
        now = monotonic()
        for connection in [each for each in self.connections if each.deadline < now]:
            connection.expire()
        self._sweeper = self._loop.call_later(SWEEP_SECONDS, self._sweep)


async def _until(condition: Callable[[], bool], seconds: float, *, polls: int = 1) -> bool:
    """Whether it came to hold, at so many polls in a row: what was accepted last may not have been read yet."""
    held = 0
    for _ in range(int(seconds / _POLL_SECONDS) + polls):
        held = held + 1 if condition() else 0
        if held == polls:
            return True
        await asyncio.sleep(_POLL_SECONDS)
    return False
