"""A client's connection, byte by byte: what is understood, what is refused and how, and what a client may cost."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from tests.support.fleet import eventually

from duet_engine.gateway.settings import Limits
from duet_engine.gateway.wire.exchange import Exchange
from duet_engine.gateway.wire.listener import Listener
from duet_engine.gateway.wire.messages import Head, Refusal

HEAD = b"POST /echo HTTP/1.1\r\nHost: x\r\n"
HELLO = HEAD + b"Content-Length: 5\r\n\r\nhello"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;extension=1\r\nllo\r\n0\r\n\r\n"


@dataclass
class Served:
    """A listener and what reached its handler."""

    listener: Listener
    port: int
    bodies: list[bytes] = field(default_factory=list)
    kept: list[Exchange] = field(default_factory=list)

    async def said(self, sent: bytes) -> bytes:
        """Everything that is answered to these bytes until the connection closes, or falls silent."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(sent)
        answer, patience_seconds = b"", 10.0
        try:
            while piece := await asyncio.wait_for(reader.read(65_536), patience_seconds):
                answer += piece
                patience_seconds = 0.25
        except (TimeoutError, ConnectionError):
            pass
        writer.close()
        return answer


Serve = Callable[..., Awaitable[Served]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    started: list[Served] = []

    async def start(**limits: Any) -> Served:
        def handle(exchange: Exchange) -> None:
            served.bodies.append(exchange.body)
            if exchange.head.path == "/kept":
                served.kept.append(exchange)
            else:
                exchange.respond(200, exchange.body)

        def check(head: Head) -> Refusal | None:
            return None if head.path in ("/echo", "/kept") else Refusal(404, f"no {head.path}")

        listener = Listener(handle, check=check, limits=Limits(**limits), draining=lambda: False)
        served = Served(listener, await listener.start("127.0.0.1", 0))
        started.append(served)
        return served

    yield start
    for served in started:
        served.listener.close()
        await served.listener.drained(0.0)


@pytest.mark.parametrize("request_bytes", [HELLO, CHUNKED], ids=["content-length", "chunked"])
async def test_a_request_is_understood_wherever_its_bytes_are_split(serve: Serve, request_bytes: bytes) -> None:
    served = await serve()
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    for cut in range(1, len(request_bytes), 7):
        writer.write(request_bytes[:cut])
        await asyncio.sleep(0)
        writer.write(request_bytes[cut:])
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ") and await reader.readexactly(5) == b"hello"
    writer.close()


async def test_pipelined_requests_are_answered_in_order(serve: Serve) -> None:
    served = await serve()
    get = b"GET /kept HTTP/1.1\r\nHost: x\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(get + b"HEAD /echo HTTP/1.1\r\nHost: x\r\n\r\n")

    async def arrived() -> bool:
        return len(served.kept) == 1

    await eventually(arrived, "the first request")
    assert len(served.bodies) == 1, "the second one waits"
    served.kept[0].respond(200, b"first")
    answers = await reader.readuntil(b"first") + await reader.readuntil(b"\r\n\r\n")
    assert answers.count(b"HTTP/1.1 200 ") == 2 and answers.endswith(b"\r\n\r\n")
    writer.close()


HOSTILE = {
    "two lengths": (HEAD + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello", 400),
    "a list of lengths": (HEAD + b"Content-Length: 5, 5\r\n\r\nhello", 400),
    "length and encoding": (HEAD + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "encoding and length": (HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n", 400),
    "two encodings": (HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
    "encoding twice": (HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "unknown encoding": (HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501),
    "encoding under 1.0": (b"POST /echo HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "folded header": (HEAD + b"X: a\r\n b\r\nContent-Length: 5\r\n\r\nhello", 400),
    "bare line feeds": (HELLO.replace(b"\r\n", b"\n"), 400),
    "bare carriage return": (HEAD + b"X: a\rContent-Length: 5\r\n\r\nhello", 400),
    "zero byte": (HEAD + b"X: a\0b\r\n\r\n", 400),
    "space before colon": (HEAD + b"Content-Length : 5\r\n\r\nhello", 400),
    "signed length": (HEAD + b"Content-Length: +5\r\n\r\nhello", 400),
    "endless length": (HEAD + b"Content-Length: 99999999999999999999\r\n\r\n", 400),
    "two hosts": (HEAD + b"Host: y\r\n\r\n", 400),
    "no host": (b"GET /echo HTTP/1.1\r\n\r\n", 400),
    "two authorizations": (HEAD + b"Authorization: a\r\nAuthorization: b\r\n\r\n", 400),
    "chunk without end": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nheX0\r\n\r\n", 400),
    "negative chunk": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n-2\r\nhe\r\n", 400),
    "endless chunk": (HEAD + b"Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\n", 400),
    "trailer": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: y\r\n\r\n", 400),
    "packed body": (HEAD + b"Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello", 415),
    "strange expectation": (HEAD + b"Expect: magic\r\nContent-Length: 5\r\n\r\nhello", 417),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "upgrade": (HEAD + b"Connection: upgrade\r\nUpgrade: websocket\r\n\r\n", 400),
    "tunnel": (b"CONNECT other:1 HTTP/1.1\r\nHost: x\r\n\r\n", 404),
    "foreign target": (b"GET http://other/echo HTTP/1.1\r\nHost: x\r\n\r\n", 404),
    "not HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "unknown path": (HELLO.replace(b"/echo", b"/other"), 404),
    "long target": (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
    "many headers": (HEAD + b"".join(b"X-%d: a\r\n" % number for number in range(120)) + b"\r\n", 431),
    "one large header": (HEAD + b"X: " + b"a" * 40_000 + b"\r\n\r\n", 431),
    "an endless header": (HEAD + b"X: " + b"a" * 600_000, 431),
    "announced body": (HEAD + b"Content-Length: 2000\r\n\r\n", 413),
    "chunked body": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n7d0\r\n" + b"a" * 2000, 413),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_what_could_be_read_in_two_ways_is_refused(serve: Serve, name: str) -> None:
    sent, status = HOSTILE[name]
    served = await serve(body_bytes=1000)
    answer = await served.said(sent + HELLO)
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer
    assert answer.count(b"HTTP/1.1 ") == 1, "nothing after it is read"
    assert b"connection: close" in answer and b'"message"' in answer
    assert served.bodies == [], "no part of it is handled"


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (HEAD + b"X: a\r\nY: b\r\nContent-Length: 0\r\n\r\n", 431),
        (b"GET /echo/echo/ HTTP/1.1\r\nHost: x\r\n\r\n", 414),
        (3 * b"GET /kept HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ],
    ids=["fields", "target", "pipelined"],
)
async def test_bounds_of_heads_are_settings(serve: Serve, sent: bytes, status: int) -> None:
    served = await serve(header_fields=3, target_bytes=10, pipelined_requests=1)
    answer = asyncio.create_task(served.said(sent))

    async def read() -> bool:
        for exchange in served.kept:
            exchange.respond(200)
        return answer.done()

    await eventually(read, "the answer")
    assert b"HTTP/1.1 %d " % status in await answer


async def test_a_refusal_waits_for_the_answer_before_it(serve: Serve) -> None:
    served = await serve()
    answer = await served.said(HELLO + b"nonsense\r\n\r\n")
    assert answer.index(b"hello") < answer.index(b"HTTP/1.1 400 ")


async def test_a_second_body_before_the_first_answer_is_refused(serve: Serve) -> None:
    served = await serve()
    answer = asyncio.create_task(served.said(HELLO.replace(b"/echo", b"/kept") + HELLO))

    async def arrived() -> bool:
        return len(served.kept) == 1

    await eventually(arrived, "the first request")
    served.kept[0].respond(200, b"done")
    assert b" 400 " in (await answer).split(b"done")[1]


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        (b"POST /echo HT", b" 408 Request Timeout"),
        (HEAD + b"Content-Length: 5\r\n\r\nhe", b" 408 Request Timeout"),
        (HEAD + b"Content-Length: 5\r\nExpect: 100-continue\r\n\r\n", b" 100 Continue"),
    ],
    ids=["headers", "body", "expected body"],
)
async def test_slow_senders_are_told(serve: Serve, sent: bytes, says: bytes) -> None:
    served = await serve(header_timeout_seconds=0.1, body_timeout_seconds=0.1)
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(sent)
    async with asyncio.timeout(10):
        answer = await reader.read()
    assert says in answer and b" 408 " in answer
    writer.close()


async def test_an_idle_connection_ends_without_a_word(serve: Serve) -> None:
    served = await serve(keep_alive_seconds=0.1)
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    async with asyncio.timeout(10):
        assert await reader.read() == b""
    writer.close()


async def test_connections_over_the_limit_are_told_to_come_back(serve: Serve) -> None:
    served = await serve(connections=1)
    _, first = await asyncio.open_connection("127.0.0.1", served.port)

    async def connected() -> bool:
        return len(served.listener.connections) == 1

    await eventually(connected, "the first connection")
    answer = await served.said(HELLO)
    assert answer.startswith(b"HTTP/1.1 503 ") and b"retry-after: 1" in answer
    first.close()


async def test_a_client_that_leaves_is_told_of_at_once(serve: Serve) -> None:
    served = await serve()
    gone = asyncio.Event()
    _, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(HELLO.replace(b"/echo", b"/kept"))

    async def arrived() -> bool:
        return len(served.kept) == 1

    await eventually(arrived, "the request")
    served.kept[0].on_gone = gone.set
    writer.close()
    async with asyncio.timeout(10):
        await gone.wait()
    assert served.kept[0].over


async def test_a_client_that_does_not_read_holds_back_its_stream_and_then_ends_it(serve: Serve) -> None:
    served = await serve(client_stall_seconds=0.3)
    flows: list[bool] = []
    gone = asyncio.Event()
    with socket.create_connection(("127.0.0.1", served.port)) as client:
        client.sendall(HELLO.replace(b"/echo", b"/kept"))

        async def arrived() -> bool:
            return len(served.kept) == 1

        await eventually(arrived, "the request")
        exchange = served.kept[0]
        exchange.on_flow, exchange.on_gone = flows.append, gone.set
        exchange.begin(b"a" * 65_536, content_type="text/plain")

        async def held_back() -> bool:
            exchange.write(b"a" * 65_536)
            return bool(flows)

        await eventually(held_back, "the socket to be full")
        assert flows == [False]
        async with asyncio.timeout(10):
            await gone.wait()


async def test_http_1_0_gets_a_plain_stream_and_a_closed_connection(serve: Serve) -> None:
    served = await serve()
    answer = asyncio.create_task(served.said(b"GET /kept HTTP/1.0\r\n\r\n"))

    async def arrived() -> bool:
        return len(served.kept) == 1

    await eventually(arrived, "the request")
    exchange = served.kept[0]
    exchange.begin(b"one", content_type="text/plain")
    exchange.write(b"two")
    exchange.finish()
    assert (await answer).endswith(b"connection: close\r\n\r\nonetwo")


async def test_small_packets_leave_at_once(serve: Serve) -> None:
    """Nagle's algorithm and delayed acknowledgements would add 40 ms to a first token."""
    served = await serve()
    _, writer = await asyncio.open_connection("127.0.0.1", served.port)

    async def connected() -> bool:
        return len(served.listener.connections) == 1

    await eventually(connected, "the connection")
    transport = next(iter(served.listener.connections)).transport
    assert transport is not None
    accepted = transport.get_extra_info("socket")
    assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
    writer.close()


async def test_what_a_connection_waited_to_be_accepted_counts_into_its_first_request(serve: Serve) -> None:
    served = await serve()

    async def arrived() -> bool:
        return bool(served.kept)

    with socket.create_connection(("127.0.0.1", served.port)) as client:
        client.sendall(HELLO.replace(b"/echo", b"/kept"))
        time.sleep(0.1)  # noqa: ASYNC251 - the loop is late
        await eventually(arrived, "the first request")
        first = served.kept.pop()
        assert first.accept_wait_seconds >= 0.05
        assert first.arrived_at <= time.monotonic() - first.accept_wait_seconds
        first.respond(200)
        client.sendall(HELLO.replace(b"/echo", b"/kept"))
        await eventually(arrived, "the second request")
        assert served.kept[0].accept_wait_seconds == 0.0
    assert sum(served.listener.accept_waits.counts[1:]) == 1
