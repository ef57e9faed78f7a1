"""One attempt at an engine that misbehaves in every way that a connection allows."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from time import monotonic

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from duet_engine.gateway import upstream as upstream_module
from duet_engine.gateway.discovery import Member
from duet_engine.gateway.failures import Rejected, WorkerFailed
from duet_engine.gateway.requests import COMPLETIONS, parse
from duet_engine.gateway.routing import Assignment
from duet_engine.gateway.settings import Limits
from duet_engine.gateway.upstream import ABORT_PATH, Attempt, Upstream
from duet_engine.gateway.workers import Worker
from duet_engine.policy.dispatch import DeflectReason, Local, Pair
from duet_engine.protocol import Role, WorkerState

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Engines = Callable[[Role, Handler], Awaitable[Worker]]


@pytest.fixture
async def engine() -> AsyncIterator[Engines]:
    """Starts an engine whose completions one handler answers."""
    servers: list[TestServer] = []

    async def start(role: Role, handler: Handler) -> Worker:
        async def aborted(_: web.Request) -> web.Response:
            return web.Response()

        app = web.Application()
        app.router.add_post(COMPLETIONS, handler)
        app.router.add_post(ABORT_PATH, aborted)
        server = TestServer(app)
        await server.start_server()
        servers.append(server)
        url = str(server.make_url("")).rstrip("/")
        worker = Worker(Member(uid=url, name=role, url=url, role=role), gateway_id="g")
        worker.heard(WorkerState(worker=role, role=role, ready=True), monotonic())
        return worker

    yield start
    for server in servers:
        await server.close()


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with aiohttp.ClientSession() as session:
        made = Upstream(session, limits=Limits(), gateway_id="g", changed=lambda: None)
        yield made
        await made.close()


def attempt(upstream: Upstream, decode: Worker, prefill: Worker | None = None) -> Attempt:
    work = decode.send(prompt_tokens=1, output_reserve_tokens=1, local=prefill is None)
    return Attempt(
        upstream,
        parse(COMPLETIONS, json.dumps({"prompt": [1], "stream": True}).encode(), model_names=()),
        Assignment(
            route=Pair(prefill.key, decode.key, 0.0, 0.0)
            if prefill
            else Local(decode.key, (1,), DeflectReason.NO_PREFILL_WORKER, 0.0, 0.0),
            decode=decode,
            decode_work=work,
            prefill=prefill,
            prefill_work=prefill.send(prompt_tokens=1, output_reserve_tokens=0, local=False) if prefill else None,
            unloaded_ttft_seconds=0.0,
        ),
    )


async def one_event_then_silence(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b'data: {"choices":[{"text":"a"}]}\n\n')
    await asyncio.sleep(60)
    return response


async def silence(_: web.Request) -> web.StreamResponse:
    await asyncio.sleep(60)
    return web.Response()


async def test_a_begun_answer_of_a_vanished_worker_is_broken_off(
    engine: Engines, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No FIN comes from a node that is gone: only the state stream tells."""
    monkeypatch.setattr(upstream_module, "LOST_SILENCE_SECONDS", 0.05)
    decode = await engine(Role.DECODE, one_event_then_silence)
    tried = attempt(upstream, decode)
    answer = await tried.open()
    assert answer.tokens == 1
    decode.lost()
    with pytest.raises(WorkerFailed, match="ceased to come") as failure:
        async with asyncio.timeout(10):
            async for _ in tried.rest():
                pass
    assert failure.value.lost
    tried.cancel()
    assert not decode.on_lost


async def test_a_begun_answer_outlives_a_state_stream_that_comes_back(
    engine: Engines, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstream_module, "LOST_SILENCE_SECONDS", 0.05)
    decode = await engine(Role.DECODE, one_event_then_silence)
    tried = attempt(upstream, decode)
    await tried.open()
    decode.lost()
    decode.heard(WorkerState(worker="decode", role=Role.DECODE, ready=True), monotonic())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            async for _ in tried.rest():
                pass
    tried.cancel()


async def test_a_prefill_workers_error_is_seen_though_it_comes_in_pieces(engine: Engines, upstream: Upstream) -> None:
    """Else its decode worker, which waits for KV in vain, would be blamed."""

    async def fails_in_pieces(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for piece in (b'data: {"error": {"mess', b'age": "too long", "code": 400}}\n\n', b"data: [DONE]\n\n"):
            await response.write(piece)
            await asyncio.sleep(0.02)
        return response

    tried = attempt(upstream, await engine(Role.DECODE, silence), await engine(Role.PREFILL, fails_in_pieces))
    with pytest.raises(Rejected) as rejected:
        async with asyncio.timeout(10):
            await tried.open()
    assert b"too long" in rejected.value.body
