"""TCP connections passed on byte by byte, with back-pressure, half-close and resets.

Invariant: what one side sends reaches the other in order; a side that ends its sending ends only that direction;
a side that breaks off breaks the other off, so that nobody takes a cut answer for a whole one.
"""

import asyncio
import contextlib
import itertools
import logging
import socket
import struct
from collections.abc import Awaitable, Callable, Sequence
from typing import cast

from duet_dev.services.directory import Address

CONNECT_TIMEOUT_SECONDS = 2.0
RESET_ON_CLOSE = struct.pack("ii", 1, 0)

log = logging.getLogger(__name__)


class Side(asyncio.Protocol):
    """One of the two sockets of a relayed connection."""

    def __init__(self, peer: "Side | None" = None) -> None:
        self.peer = peer
        self.transport: asyncio.Transport
        self.ended = self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    @property
    def _living_peer(self) -> "Side | None":
        return self.peer if self.peer is not None and not self.peer.lost else None

    def data_received(self, data: bytes) -> None:
        if peer := self._living_peer:
            peer.transport.write(data)

    def eof_received(self) -> bool:
        self.ended = True
        if peer := self._living_peer:
            peer.transport.write_eof()
            if peer.ended:
                self.transport.close()
                peer.transport.close()
        return True

    def pause_writing(self) -> None:
        if peer := self._living_peer:
            peer.transport.pause_reading()

    def resume_writing(self) -> None:
        if peer := self._living_peer:
            peer.transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        if peer := self._living_peer:
            if error is None and peer.ended and self.ended:
                peer.transport.close()
            else:
                peer.reset()

    def reset(self) -> None:
        raw: socket.socket = self.transport.get_extra_info("socket")
        with contextlib.suppress(OSError):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self.transport.abort()


class Target(Side):
    """The side that we connected to. It is joined before it can speak: a target may be the first to."""

    def __init__(self, caller: "Caller") -> None:
        super().__init__(caller)
        self._caller = caller

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._caller.join(self)


class Caller(Side):
    """The side that came to us; what it says waits until a target has accepted."""

    def __init__(self, targets: Callable[[], Awaitable[Sequence[Address]]]) -> None:
        super().__init__()
        self._targets = targets
        self._early = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._connecting = asyncio.get_running_loop().create_task(self._connect())

    def data_received(self, data: bytes) -> None:
        if self.peer is not None:
            super().data_received(data)
        else:
            self._early += data
            self.transport.pause_reading()

    async def _connect(self) -> None:
        for target in await self._targets():
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
                    await asyncio.get_running_loop().create_connection(lambda: Target(self), *target)
            except (OSError, TimeoutError) as error:
                log.info("%s:%s: %s", *target, error)
            if self.peer is not None or self.lost:
                return
        if not self.lost:
            self.reset()

    def join(self, target: Target) -> None:
        if self.lost:
            target.reset()
            return
        self.peer = target
        if self._early:
            target.transport.write(self._early)
            self._early = b""
            self.transport.resume_reading()
        if self.ended:
            target.transport.write_eof()


class Route:
    """A listening address and the targets among which its connections go round."""

    def __init__(self, targets: Sequence[Address]) -> None:
        self.targets = targets
        self._turn = itertools.count()
        self._server: asyncio.Server | None = None

    async def listen(self, address: Address) -> None:
        self._server = await asyncio.get_running_loop().create_server(
            lambda: Caller(self._order), *address, backlog=1024
        )

    async def _order(self) -> Sequence[Address]:
        """All targets, each connection beginning with another."""
        first = next(self._turn) % len(self.targets)
        return [*self.targets[first:], *self.targets[:first]]

    def close(self) -> None:
        """Take no more connections; those that stand live on."""
        if self._server:
            self._server.close()


class Relay:
    """Listens on exactly the addresses that have a route."""

    def __init__(self) -> None:
        self._routes: dict[Address, Route] = {}
        self._refused: set[Address] = set()

    async def follow(self, wanted: dict[Address, tuple[Address, ...]]) -> None:
        for address in self._routes.keys() - wanted.keys():
            self._routes.pop(address).close()
        for address, targets in wanted.items():
            if route := self._routes.get(address):
                route.targets = targets
            else:
                await self._open(address, targets)

    async def _open(self, address: Address, targets: tuple[Address, ...]) -> None:
        route = Route(targets)
        try:
            await route.listen(address)
        except OSError as error:
            if address not in self._refused:
                log.error("Service address %s:%s can't be served: %s", *address, error.strerror or error)
            self._refused.add(address)
            return
        self._refused.discard(address)
        self._routes[address] = route

    def close(self) -> None:
        for route in self._routes.values():
            route.close()
