"""Attempts at engines that misbehave, one by one and as often as the relay repeats them."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from time import monotonic
from typing import Any, cast

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from duet_engine.gateway import attempt as attempt_module
from duet_engine.gateway.assignment import Assignment
from duet_engine.gateway.attempt import Attempt
from duet_engine.gateway.discovery import Member
from duet_engine.gateway.errors import GatewayError
from duet_engine.gateway.failures import Rejected, WorkerFailed
from duet_engine.gateway.record import RequestRecord
from duet_engine.gateway.relay import Relay
from duet_engine.gateway.requests import COMPLETIONS, ClientRequest, parse
from duet_engine.gateway.routing import Dispatcher
from duet_engine.gateway.settings import Limits
from duet_engine.gateway.upstream import ABORT_PATH, Upstream
from duet_engine.gateway.workers import Worker
from duet_engine.policy.dispatch import DeflectReason, Local, Pair
from duet_engine.protocol import REFUSAL_HEADER, Dispatch, Role, WorkerState

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
    made = Upstream(limits=Limits(), gateway_id="g", changed=lambda: None)
    yield made
    await made.close()


def request(**fields: Any) -> ClientRequest:
    return parse(COMPLETIONS, json.dumps({"prompt": [1], "stream": True, **fields}).encode(), model_names=())


def assigned(decode: Worker, prefill: Worker | None = None) -> Assignment:
    return Assignment(
        route=Pair(prefill.key, decode.key, 0.0, 0.0)
        if prefill
        else Local(decode.key, (1,), DeflectReason.NO_PREFILL_WORKER, 0.0, 0.0),
        decode=decode,
        decode_work=decode.send(prompt_tokens=1, output_reserve_tokens=1, local=prefill is None),
        prefill=prefill,
        prefill_work=prefill.send(prompt_tokens=1, output_reserve_tokens=0, local=False) if prefill else None,
        unloaded_ttft_seconds=0.0,
    )


def attempt(upstream: Upstream, decode: Worker, prefill: Worker | None = None) -> Attempt:
    return Attempt(upstream, request(), assigned(decode, prefill))


class Received:
    """What came of a stream."""

    takes_chunks = True

    def __init__(self) -> None:
        self.tokens = 0

    def begin(self, first: bytes, tokens: int) -> None:
        self.tokens += tokens

    def events(self, whole: bytes, tokens: int, now: float) -> None:
        self.tokens += tokens

    def token(self, chunk: bytes, now: float) -> None:
        self.tokens += 1


class InTurn:
    """Assigns decode workers in a fixed order."""

    def __init__(self, *workers: Worker) -> None:
        self.left = deque(workers)
        self.excluded_seconds: list[float] = []

    async def assign(self, *_: Any, excluded_until: dict[str, float], **__: Any) -> Assignment:
        self.excluded_seconds = [until - monotonic() for until in excluded_until.values()]
        return assigned(self.left.popleft())


async def relayed(upstream: Upstream, workers: InTurn) -> None:
    relay = Relay(upstream, cast("Dispatcher", workers), Limits())
    record = RequestRecord(arrived_at=monotonic(), path=COMPLETIONS, streamed=True)
    (await relay.answer(request(), record, on_retry=lambda _: None)).attempt.cancel()


async def one_event_then_silence(http: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(http)
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
    monkeypatch.setattr(attempt_module, "LOST_SILENCE_SECONDS", 0.05)
    decode = await engine(Role.DECODE, one_event_then_silence)
    tried = attempt(upstream, decode)
    await tried.open()
    decode.lost()
    received = Received()
    with pytest.raises(WorkerFailed, match="ceased to come") as failure:
        async with asyncio.timeout(10):
            await tried.relay_to(received)
    assert received.tokens == 1
    assert failure.value.lost
    tried.cancel()
    assert not decode.on_lost


async def test_a_begun_answer_outlives_a_state_stream_that_comes_back(
    engine: Engines, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt_module, "LOST_SILENCE_SECONDS", 0.05)
    decode = await engine(Role.DECODE, one_event_then_silence)
    tried = attempt(upstream, decode)
    await tried.open()
    decode.lost()
    decode.heard(WorkerState(worker="decode", role=Role.DECODE, ready=True), monotonic())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await tried.relay_to(Received())
    tried.cancel()


async def test_an_engine_that_falls_silent_is_given_up(engine: Engines) -> None:
    upstream = Upstream(limits=Limits(idle_timeout_seconds=0.05), gateway_id="g", changed=lambda: None)
    with pytest.raises(WorkerFailed, match=r"silent for 0\.05 s") as failure:
        async with asyncio.timeout(10):
            await attempt(upstream, await engine(Role.DECODE, silence)).open()
    assert failure.value.timed_out
    await upstream.close()


async def test_what_engines_are_told_is_what_their_protocol_reads(engine: Engines) -> None:
    """It is written without a serialiser."""
    told: list[dict[str, Any]] = []

    async def tells(http: web.Request) -> web.StreamResponse:
        told.append(await http.json())
        return await one_event_then_silence(http)

    upstream = Upstream(limits=Limits(), gateway_id='a "g"', changed=lambda: None)
    decode, prefill = await engine(Role.DECODE, tells), await engine(Role.PREFILL, silence)
    for given in (assigned(decode), assigned(decode, prefill)):
        tried = Attempt(upstream, request(), given)
        await tried.open()
        expected = Dispatch(
            gateway='a "g"',
            sequence=given.decode_work.sequence,
            deflected=given.deflected,
            chunk_schedule_tokens=given.route.chunks_tokens if isinstance(given.route, Local) else (),
            uncached_tokens=1,
        )
        assert Dispatch.model_validate(told[-1].pop("duet")) == expected
        assert told[-1]["rid"] == tried.rid
        tried.cancel()
    assert (told[-1]["bootstrap_host"], told[-1]["bootstrap_port"]) == (prefill.member.host, prefill.bootstrap_port)
    assert 0 <= told[-1]["bootstrap_room"] < 2**63
    await upstream.close()


async def test_a_prefill_workers_error_is_seen_though_it_comes_in_pieces(engine: Engines, upstream: Upstream) -> None:
    """Else its decode worker, which waits for KV in vain, would be blamed."""

    async def fails_in_pieces(http: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(http)
        for piece in (b'data: {"error": {"mess', b'age": "too long", "code": 400}}\n\n', b"data: [DONE]\n\n"):
            await response.write(piece)
            await asyncio.sleep(0.02)
        return response

    tried = attempt(upstream, await engine(Role.DECODE, silence), await engine(Role.PREFILL, fails_in_pieces))
    with pytest.raises(Rejected) as rejected:
        async with asyncio.timeout(10):
            await tried.open()
    assert b"too long" in rejected.value.body


async def crash(_: web.Request) -> web.StreamResponse:
    return web.Response(status=500, text="codec can't encode")


async def other_crash(_: web.Request) -> web.StreamResponse:
    return web.Response(status=500, text="out of memory")


async def test_a_request_that_makes_workers_crash_alike_is_not_their_fault(engine: Engines, upstream: Upstream) -> None:
    workers = InTurn(*[await engine(Role.DECODE, crash) for _ in range(3)])
    asked = list(workers.left)
    with pytest.raises(GatewayError, match="the request makes workers fail") as error:
        await relayed(upstream, workers)
    assert error.value.status == 502
    assert list(workers.left) == asked[2:], "no third one is tried"
    assert [worker.errors_total for worker in asked] == [0, 0, 0]


async def test_workers_that_crash_where_another_answers_are_to_blame(engine: Engines, upstream: Upstream) -> None:
    handlers = (crash, other_crash, one_event_then_silence)
    workers = InTurn(*[await engine(Role.DECODE, handler) for handler in handlers])
    asked = list(workers.left)
    await relayed(upstream, workers)
    assert [worker.errors_total for worker in asked] == [1, 1, 0]


async def test_a_refusal_without_a_pause_is_paused_for(engine: Engines, upstream: Upstream) -> None:
    async def refuses(_: web.Request) -> web.StreamResponse:
        refusal = {"reason": "queue-full", "message": "", "retry_after_seconds": 0.0}
        return web.json_response(refusal, status=503, headers={REFUSAL_HEADER: "queue-full"})

    workers = InTurn(await engine(Role.DECODE, refuses), await engine(Role.DECODE, one_event_then_silence))
    await relayed(upstream, workers)
    assert workers.excluded_seconds and min(workers.excluded_seconds) > 0.05


async def test_a_slow_answer_is_not_held_against_a_worker_in_sight(engine: Engines) -> None:
    """Nor is a whole answer expected sooner than its tokens."""
    worker = await engine(Role.DECODE, silence)
    slow = WorkerFailed(worker, "timeout", timed_out=True)
    assert not slow.blames_worker
    worker.lost()
    assert slow.blames_worker
    limits = Limits(idle_timeout_seconds=10.0, unstreamed_seconds_per_token=0.1)
    upstream = Upstream(limits=limits, gateway_id="g", changed=lambda: None)
    assert upstream.silence_seconds(request(max_tokens=500)) == 10.0
    assert upstream.silence_seconds(request(max_tokens=500, stream=False)) == pytest.approx(60.0)
