"""The relay between a port outside and an address inside: bytes, half-close, back-pressure, failures."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from duet_dev import forward
from duet_dev.errors import DevError
from duet_dev.services.directory import Address

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def no_descriptor_left() -> AsyncIterator[None]:
    """Whatever is opened inside is closed soon after."""
    before = open_descriptors()
    yield
    for _ in range(1000):
        if open_descriptors() <= before:
            return
        await asyncio.sleep(0.01)
    pytest.fail(f"{open_descriptors() - before} descriptors are left open")


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@asynccontextmanager
async def relayed(target: Serve) -> AsyncIterator[tuple[str, int]]:
    """The address of a relay in front of this server."""

    async def closing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await target(reader, writer)
        finally:
            writer.close()

    async with no_descriptor_left(), await asyncio.start_server(closing, "127.0.0.1", 0) as server:
        address: Address = server.sockets[0].getsockname()

        async def resolve() -> list[Address]:
            return [address]

        async with await forward.serve(listening_socket(), resolve) as relay:
            host, port = relay.sockets[0].getsockname()
            yield host, port


def break_off(writer: asyncio.StreamWriter) -> None:
    """End the connection with a reset."""
    linger_for_no_time = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_for_no_time)
    writer.transport.abort()


def listening_socket() -> socket.socket:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.setblocking(False)
    return listener


async def test_bytes_and_half_close_pass_in_both_directions() -> None:
    async def reverse_after_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # An answer that needs the request's end: it comes only if the half-close was passed on.
        writer.write((await reader.read())[::-1])
        await writer.drain()

    async with relayed(reverse_after_end) as address:
        reader, writer = await asyncio.open_connection(*address)
        payload = bytes(range(256)) * 4096
        writer.write(payload)
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(), 10) == payload[::-1]
        writer.close()


async def test_a_slow_reader_slows_the_sender_down() -> None:
    sent = 0
    full = asyncio.Event()

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        chunk = bytes(1024 * 1024)
        while sent < 256:
            writer.write(chunk)
            try:
                await asyncio.wait_for(writer.drain(), 1)
            except TimeoutError:
                full.set()
                return
            sent += 1

    async with relayed(flood) as address:
        _, writer = await asyncio.open_connection(*address, limit=1024)
        await asyncio.wait_for(full.wait(), 30)
        assert sent < 64
        break_off(writer)


async def test_a_refused_target_is_a_reset_not_an_empty_answer() -> None:
    async def nowhere() -> list[Address]:
        return []

    async with no_descriptor_left(), await forward.serve(listening_socket(), nowhere) as relay:
        reader, writer = await asyncio.open_connection(*relay.sockets[0].getsockname())
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), 10)
        writer.close()


async def test_an_aborted_answer_is_not_passed_on_as_complete() -> None:
    async def abort(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"half an ans")
        await writer.drain()
        await reader.readexactly(1)
        break_off(writer)

    async with relayed(abort) as address:
        reader, writer = await asyncio.open_connection(*address)
        assert await asyncio.wait_for(reader.readexactly(11), 10) == b"half an ans"
        writer.write(b"x")
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), 10)
        writer.close()


def test_targets() -> None:
    assert forward.Target.parse("service/default/web:http") == forward.Target("service", "default", "web", "http")
    assert forward.Target.parse("pod/default/web-0:8000").port == "8000"


@pytest.mark.parametrize("text", ["web:80", "service/web:80", "service/default/web", "pod/default/web:http", ""])
def test_a_malformed_target_says_the_form(text: str) -> None:
    with pytest.raises(DevError, match="write service/NAMESPACE/NAME:PORT"):
        forward.Target.parse(text)
