"""A DNS server for one zone: the messages (RFC 1035), and the server over UDP and TCP.

Invariant: every well-formed query gets an answer at once; a name outside the zone doesn't exist, because nothing
outside can be reached from where this server runs.
"""

import asyncio
import ipaddress
import logging
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from duet_dev.services.names import Records

TYPE_A, TYPE_CNAME, TYPE_SRV, TYPE_ANY, CLASS_IN = 1, 5, 33, 255, 1
NO_ERROR, FORMAT_ERROR, NO_SUCH_NAME, NOT_IMPLEMENTED = 0, 1, 3, 4
RESPONSE, AUTHORITATIVE, TRUNCATED, RECURSION_DESIRED, RECURSION_AVAILABLE = 0x8000, 0x0400, 0x0200, 0x0100, 0x0080
TIME_TO_LIVE_SECONDS = 5
LONGEST_UDP_BYTES = 512
NAME_OF_QUESTION = struct.pack("!H", 0xC000 | 12)  # a pointer to the question's name

LookUp = Callable[[str], Records | None]

log = logging.getLogger(__name__)


class FormatError(Exception):
    """The query can't be read."""


@dataclass(frozen=True, slots=True)
class Query:
    identifier: int
    flags: int
    name: str
    kind: int
    question: bytes  # as it came, to be repeated in the answer

    @classmethod
    def parse(cls, message: bytes) -> "Query":
        try:
            identifier, flags, questions = struct.unpack_from("!HHH", message)
            if questions != 1 or flags & RESPONSE:
                raise FormatError
            labels, position = [], 12
            while length := message[position]:
                if length > 63 or position + 1 + length >= len(message):
                    raise FormatError
                labels.append(message[position + 1 : position + 1 + length].decode("ascii"))
                position += 1 + length
            kind, _ = struct.unpack_from("!HH", message, position + 1)
        except (struct.error, IndexError, UnicodeDecodeError):
            raise FormatError from None
        return cls(identifier, flags, ".".join(labels), kind, message[12 : position + 5])


def encoded_name(name: str) -> bytes:
    labels = [label.encode("ascii") for label in name.strip(".").split(".")]
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def _record(kind: int, data: bytes) -> bytes:
    header = struct.pack("!HHIH", kind, CLASS_IN, TIME_TO_LIVE_SECONDS, len(data))
    return NAME_OF_QUESTION + header + data


def _answers(kind: int, records: Records) -> list[bytes]:
    if records.alias:
        return [_record(TYPE_CNAME, encoded_name(records.alias))]
    found = []
    if kind in (TYPE_A, TYPE_ANY):
        found += [_record(TYPE_A, ipaddress.IPv4Address(address).packed) for address in records.addresses]
    if kind in (TYPE_SRV, TYPE_ANY):
        for service in records.services:
            data = struct.pack("!HHH", 0, 100, service.port) + encoded_name(service.target)
            found.append(_record(TYPE_SRV, data))
    return found


def answer(message: bytes, look_up: LookUp, *, longest_bytes: int = 2**16 - 1) -> bytes | None:
    """The reply to a message; None to what is no query at all."""
    if len(message) < 12 or message[2] & 0x80:
        return None
    identifier = struct.unpack_from("!H", message)[0]
    try:
        query = Query.parse(message)
    except FormatError:
        return struct.pack("!HHHHHH", identifier, RESPONSE | FORMAT_ERROR, 0, 0, 0, 0)
    flags = RESPONSE | AUTHORITATIVE | RECURSION_AVAILABLE | (query.flags & RECURSION_DESIRED)
    if query.flags & 0x7800:
        return _message(query, flags | NOT_IMPLEMENTED, [])
    records = look_up(query.name)
    if records is None:
        return _message(query, flags | NO_SUCH_NAME, [])
    reply = _message(query, flags | NO_ERROR, _answers(query.kind, records))
    if len(reply) > longest_bytes:
        return _message(query, flags | TRUNCATED, [])
    return reply


def _message(query: Query, flags: int, answers: list[bytes]) -> bytes:
    header = struct.pack("!HHHHHH", query.identifier, flags, 1, len(answers), 0, 0)
    return header + query.question + b"".join(answers)


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, look_up: LookUp) -> None:
        self._look_up = look_up

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        if reply := answer(data, self._look_up, longest_bytes=LONGEST_UDP_BYTES):
            self._transport.sendto(reply, address)


async def _serve_stream(look_up: LookUp, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            (length,) = struct.unpack("!H", await reader.readexactly(2))
            if reply := answer(await reader.readexactly(length), look_up):
                writer.write(struct.pack("!H", len(reply)) + reply)
                await writer.drain()
    except (asyncio.IncompleteReadError, OSError):
        pass
    finally:
        writer.close()


async def serve(host: str, port: int, look_up: LookUp) -> None:
    """Answer on this address until cancelled."""
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(look_up), (host, port))
    server = await asyncio.start_server(lambda r, w: _serve_stream(look_up, r, w), host, port)
    try:
        await asyncio.Event().wait()
    finally:
        transport.close()
        server.close()
