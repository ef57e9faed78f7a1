"""Sends hostile requests to a gateway and watches what becomes of it."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.support.hostile import Hostile, hostile

SILENCE_SECONDS = 1.0
"""After which a client that sent only a part ends its sending."""
HANG_SECONDS = 30.0


@dataclass
class Seen:
    """What clients saw."""

    statuses: Counter[str] = field(default_factory=Counter)
    """By first status; `-` where the connection ended without one."""
    hung: list[int] = field(default_factory=list)
    """Seeds whose connection wasn't ended by the gateway."""

    @property
    def total(self) -> int:
        return self.statuses.total()


async def fuzz(port: int, seeds: Iterable[int], *, concurrent: int = 32) -> Seen:
    """Send the request of each seed on a connection of its own, so many at once."""
    seen, left = Seen(), iter(seeds)

    async def client() -> None:
        for seed in left:
            try:
                async with asyncio.timeout(HANG_SECONDS):
                    seen.statuses[await _sent(port, hostile(seed))] += 1
            except TimeoutError:
                seen.hung.append(seed)

    await asyncio.gather(*(client() for _ in range(concurrent)))
    return seen


async def _sent(port: int, request: Hostile) -> str:
    """The first status of what is answered until the gateway ends the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for piece in request.pieces:
            writer.write(piece)
            await asyncio.sleep(0)
        if request.leaves:
            opened: socket.socket = writer.get_extra_info("socket")
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return "left"
        return await _read(reader, writer)
    except ConnectionError:
        return "-"
    finally:
        writer.close()


async def _read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
    answer = b""
    try:
        async with asyncio.timeout(SILENCE_SECONDS):
            while piece := await reader.read(65_536):
                answer = answer or piece
                if b"\r\n\r\n" in piece and (piece.endswith((b"0\r\n\r\n", b"}"))):
                    return _status(answer)  # one whole answer; what may follow it is nobody's
    except TimeoutError:
        writer.write_eof()
        while piece := await reader.read(65_536):
            answer = answer or piece
    return _status(answer)


def _status(answer: bytes) -> str:
    return answer[9:12].decode("latin-1") if answer.startswith(b"HTTP/1.1 ") else "-"
