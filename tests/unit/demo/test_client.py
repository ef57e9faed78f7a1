"""What counts as a whole answer, and how its times are taken: cheap on the token path, strict at the end."""

import asyncio
import json
from collections.abc import Awaitable, Callable

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from duet_dev.demo.client import COMPLETIONS, Ask, StreamReader, answer_failure, send, stream_failure
from duet_dev.demo.records import Record

TOKEN = b'data: {"choices": [{"text": " the"}]}\n\n'
DONE = b"data: [DONE]\n\n"


def usage(tokens: int) -> bytes:
    return b"data: " + json.dumps({"choices": [], "usage": {"completion_tokens": tokens}}).encode() + b"\n\n"


@given(st.integers(1, 40), st.data())
def test_events_are_counted_however_the_bytes_are_cut(tokens: int, data: st.DataObject) -> None:
    stream = TOKEN * tokens + usage(tokens) + DONE
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    reader = StreamReader(sent_at=0.0)
    for now, (start, end) in enumerate(zip([0, *cuts], [*cuts, len(stream)], strict=True)):
        reader.feed(stream[start:end], float(now))
    assert 1 + len(reader.gaps_seconds) == tokens + 2
    assert stream_failure(reader.tail, tokens) is None


def test_events_of_one_read_came_at_once() -> None:
    reader = StreamReader(sent_at=0.0)
    reader.feed(TOKEN, 1.0)
    reader.feed(TOKEN * 3, 1.5)
    assert reader.first_event_at == 1.0
    assert reader.gaps_seconds == [0.5, 0.0, 0.0]


@pytest.mark.parametrize(
    ("tail", "message"),
    [
        (b"", "the stream ended without its last event"),
        (TOKEN * 3, "the stream ended without its last event"),
        (TOKEN * 3 + usage(3), "the stream ended without its last event"),
        (TOKEN * 3 + DONE, "the stream had no usage"),
        (TOKEN * 3 + usage(2) + DONE, "2 output tokens, asked for 3"),
        (TOKEN + b'data: {"error": {"message": "worker lost"}}\n\n' + DONE, "error event: {'message': 'worker lost'}"),
    ],
)
def test_anything_but_a_whole_stream_is_a_failure(tail: bytes, message: str) -> None:
    assert stream_failure(tail, 3) == message


def test_a_word_is_no_error() -> None:
    text = b'data: {"choices": [{"text": "\\"error\\": 1"}]}\n\n'
    assert stream_failure(text + usage(1) + DONE, 1) is None


@given(st.binary(max_size=200))
def test_no_answer_is_taken_for_one(body: bytes) -> None:
    assert answer_failure(body, 3) is not None


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def sent(handler: Handler, *, streamed: bool, timeout_seconds: float = 10.0) -> Record:
    """One request for three tokens to a server with this handler."""
    application = web.Application()
    application.router.add_post(COMPLETIONS, handler)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        address = f"http://127.0.0.1:{runner.addresses[0][1]}"
        timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        async with aiohttp.ClientSession(address, timeout=timeout) as session:
            return await send(
                session,
                Ask(index=7, endpoint=COMPLETIONS, streamed=streamed, body=b"{}", input_tokens=5, output_tokens=3),
            )
    finally:
        await runner.cleanup()


async def stream(request: web.Request, *parts: bytes) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "x-duet-route": "deflect=decode-0"})
    await response.prepare(request)
    for part in parts:
        await response.write(part)
    return response


async def test_a_whole_stream_is_a_record_with_its_times() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return await stream(request, TOKEN, TOKEN, TOKEN, usage(3), DONE)

    record = await sent(answer, streamed=True)
    assert record.failure is None
    assert record.index == 7
    assert record.ttft_seconds is not None
    assert 0 < record.ttft_seconds <= record.duration_seconds
    assert len(record.gaps_milliseconds) == 2


async def test_an_answer_in_one_piece_has_no_first_token() -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.json_response({"usage": {"completion_tokens": 3}})

    record = await sent(answer, streamed=False)
    assert record.failure is None
    assert record.ttft_seconds is None


async def test_a_refusal_is_a_failure_with_its_words() -> None:
    async def refuse(_: web.Request) -> web.StreamResponse:
        return web.json_response({"message": "too many requests"}, status=429)

    record = await sent(refuse, streamed=True)
    assert record.failure is not None
    assert record.failure.startswith("HTTP 429: ")
    assert "too many requests" in record.failure


async def test_a_cut_stream_is_a_failure() -> None:
    async def cut(request: web.Request) -> web.StreamResponse:
        response = await stream(request, TOKEN)
        assert request.transport is not None
        request.transport.close()
        return response

    record = await sent(cut, streamed=True)
    assert record.failure is not None


async def test_a_server_that_hangs_is_a_failure_in_bounded_time() -> None:
    async def hang(request: web.Request) -> web.StreamResponse:
        response = await stream(request, TOKEN)
        await asyncio.sleep(30)
        return response

    record = await sent(hang, streamed=True, timeout_seconds=0.3)
    assert record.failure is not None
    assert "Timeout" in record.failure
