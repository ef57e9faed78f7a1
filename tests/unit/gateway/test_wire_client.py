"""Connections to engines: when they are kept, what is taken for a whole answer, and what a closed one costs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from duet_engine.gateway.wire.messages import Headers
from duet_engine.gateway.wire.pool import Address, ConnectError, ConnectionPool

REQUEST = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
Answering = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Start = Callable[[Answering], Awaitable[Address]]


class Answer:
    """Gathers one."""

    def __init__(self) -> None:
        self.status = 0
        self.body = b""
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def answer_began(self, status: int, headers: Headers) -> None:
        self.status = status

    def answer_data(self, data: bytes) -> None:
        self.body += data

    def answer_ended(self) -> None:
        self.over.set_result(None)

    def answer_broke(self, error: Exception) -> None:
        self.over.set_exception(error)

    async def ended(self) -> tuple[int, bytes]:
        async with asyncio.timeout(10):
            await self.over
        return self.status, self.body


@pytest.fixture
async def engine() -> AsyncIterator[Start]:
    servers: list[asyncio.Server] = []

    async def start(answering: Answering) -> Address:
        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await answering(reader, writer)
            finally:
                writer.close()

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        servers.append(server)
        return ("127.0.0.1", server.sockets[0].getsockname()[1])

    yield start
    for server in servers:
        server.close()


@pytest.fixture
async def pool() -> AsyncIterator[ConnectionPool]:
    made = ConnectionPool(connect_timeout_seconds=2.0)
    yield made
    made.close()


async def asked(pool: ConnectionPool, address: Address) -> tuple[int, bytes]:
    answer = Answer()
    pool.call(address, REQUEST, answer)
    return await answer.ended()


def in_turn(*answers: bytes, connections: list[int] | None = None) -> Answering:
    """Answers one request after the other on each connection, then closes it."""

    async def answering(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if connections is not None:
            connections.append(1)
        for answer in answers:
            if not await reader.readuntil(b"\r\n\r\n"):
                return
            writer.write(answer)
            await writer.drain()

    return answering


async def test_a_connection_is_kept_for_the_next_request(engine: Start, pool: ConnectionPool) -> None:
    connections: list[int] = []
    address = await engine(in_turn(OK, OK, OK, connections=connections))
    for _ in range(3):
        assert await asked(pool, address) == (200, b"ok")
    assert len(connections) == 1


async def test_a_kept_connection_that_was_closed_costs_no_request(engine: Start, pool: ConnectionPool) -> None:
    """An engine may close one just when it is taken."""
    connections: list[int] = []

    async def answers_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(1)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        if len(connections) == 1:
            await reader.readuntil(b"\r\n\r\n")  # and closes without an answer

    address = await engine(answers_once)
    assert await asked(pool, address) == (200, b"ok")
    assert await asked(pool, address) == (200, b"ok")
    assert len(connections) == 2


async def test_a_new_connection_that_closes_without_an_answer_is_a_failure(engine: Start, pool: ConnectionPool) -> None:
    address = await engine(in_turn(b""))
    with pytest.raises(ConnectionError, match="closed the connection"):
        await asked(pool, address)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nokk",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n\r\n",
    ],
    ids=["short", "no last chunk", "two framings", "two lengths", "not HTTP", "two answers"],
)
async def test_a_broken_answer_is_never_taken_for_whole(engine: Start, pool: ConnectionPool, answer: bytes) -> None:
    address = await engine(in_turn(answer))
    with pytest.raises(ConnectionError):
        await asked(pool, address)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\n\r\nok",
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK,
        b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok",
    ],
    ids=["until it closes", "after 100", "HTTP/1.0", "closing"],
)
async def test_other_ways_to_end_an_answer(engine: Start, pool: ConnectionPool, answer: bytes) -> None:
    connections: list[int] = []
    address = await engine(in_turn(answer, connections=connections))
    assert await asked(pool, address) == (200, b"ok")
    assert await asked(pool, address) == (200, b"ok")
    if b"100" not in answer:
        assert len(connections) == 2, "none of these is kept"


async def test_bytes_on_a_waiting_connection_end_it(engine: Start, pool: ConnectionPool) -> None:
    """Else they would be taken for the next request's answer."""
    said_more = asyncio.Event()

    async def says_more(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        await asyncio.sleep(0.05)
        writer.write(OK.replace(b"ok", b"no"))
        assert await reader.read() == b""
        said_more.set()

    address = await engine(says_more)
    assert await asked(pool, address) == (200, b"ok")
    async with asyncio.timeout(10):
        await said_more.wait()
    assert pool.take(address) is None


async def test_a_cancelled_call_closes_its_connection_and_no_other(engine: Start, pool: ConnectionPool) -> None:
    closed = asyncio.Event()

    async def waits(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.read() == b""
        closed.set()

    answer = Answer()
    call = pool.call(await engine(waits), REQUEST, answer)
    await asyncio.sleep(0.05)
    call.cancel()
    async with asyncio.timeout(10):
        await closed.wait()
    assert not answer.over.done(), "whoever cancels is told nothing"
    address = await engine(in_turn(OK, OK))
    finished = Answer()
    over = pool.call(address, REQUEST, finished)
    await finished.ended()
    over.cancel()
    assert await asked(pool, address) == (200, b"ok"), "the kept connection is another request's by now"


async def test_an_engine_that_is_not_there_is_named(pool: ConnectionPool) -> None:
    with pytest.raises(ConnectError, match=r"no connection to 127\.0\.0\.1:1"):
        await asked(pool, ("127.0.0.1", 1))
