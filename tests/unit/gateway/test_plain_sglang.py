"""SGLang without Duet's plugin as a worker: found out, described and asked for its load."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from time import monotonic
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from tests.support.fleet import eventually

from duet_engine.gateway.discovery import Member
from duet_engine.gateway.knobs import KnobPusher
from duet_engine.gateway.live_settings import LiveSettings
from duet_engine.gateway.state_stream import listen
from duet_engine.gateway.workers import Worker, Workers
from duet_engine.protocol import Role

INFO = {
    "model_path": "somebody/their-model",
    "version": "0.5.23",
    "tp_size": 1,
    "disaggregation_mode": "null",
    "max_total_num_tokens": 50_000,
    "max_running_requests": 33,
    "chunked_prefill_size": 2048,
}
RANK = {
    "num_running_reqs": 2,
    "num_waiting_reqs": 3,
    "num_waiting_uncached_tokens": 700,
    "num_used_tokens": 1000,
    "num_active_tokens": 900,
    "max_total_num_tokens": 25_000,
}


class Plain:
    """Its answers."""

    def __init__(self) -> None:
        self.info: dict[str, Any] = dict(INFO)
        self.loads: dict[str, Any] = {"loads": [RANK, RANK]}
        self.ready_status = 200

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/server_info", self._info)
        app.router.add_get("/v1/loads", self._loads)
        app.router.add_get("/ready", self._ready)
        return app

    async def _info(self, _: web.Request) -> web.Response:
        return web.json_response(self.info)

    async def _loads(self, _: web.Request) -> web.Response:
        return web.json_response(self.loads)

    async def _ready(self, _: web.Request) -> web.Response:
        return web.Response(status=self.ready_status)


@pytest.fixture
async def plain() -> AsyncIterator[tuple[Plain, Callable[[Role], Workers]]]:
    answers = Plain()
    server = TestServer(answers.application())
    await server.start_server()
    url = str(server.make_url("")).rstrip("/")
    tasks: list[asyncio.Task[None]] = []
    async with aiohttp.ClientSession() as session:
        knobs = KnobPusher(session, lambda: LiveSettings(generation=9))

        def followed(role: Role) -> Workers:
            workers = Workers("g")
            (worker,), _ = workers.update([Member(uid=url, name="plain", url=url, role=role)])
            tasks.append(
                asyncio.create_task(listen(worker, session, knobs=knobs, heard=lambda _: None, changed=lambda: None))
            )
            return workers

        yield answers, followed
        for task in tasks:
            task.cancel()
    await server.close()


async def heard(workers: Workers) -> Worker:
    (worker,) = workers

    async def connected() -> bool:
        return worker.connected

    await eventually(connected, "its load")
    return worker


async def test_it_is_described_by_what_it_says_and_its_ranks_are_added_up(
    plain: tuple[Plain, Callable[[Role], Workers]],
) -> None:
    _, follow = plain
    worker = await heard(follow(Role.UNIFIED))
    assert worker.plain and worker.usable(monotonic())
    assert worker.profile is not None and worker.state is not None
    assert (worker.profile.kv_capacity_tokens, worker.profile.max_running_requests) == (50_000, 33)
    assert worker.profile.chunked_prefill_tokens == 2048 and worker.profile.basis == "assumed"
    assert worker.state.decode_requests == 4 and worker.state.work.queued == 6
    assert worker.state.queued_prefill_tokens == 1400
    assert (worker.state.kv_used_tokens, worker.state.kv_capacity_tokens) == (2000, 50_000)
    assert not worker.state.deflection_active


async def test_a_poll_knows_of_everything_that_was_sent_before_it(
    plain: tuple[Plain, Callable[[Role], Workers]],
) -> None:
    """Else a request would be counted twice for as long as it runs: by its dispatch and by the load."""
    _, follow = plain
    worker = await heard(follow(Role.UNIFIED))
    worker.send(prompt_tokens=10, output_reserve_tokens=5, local=True)
    assert worker.decode_view().local_prefill_tokens == 1400 + 10

    async def confirmed() -> bool:
        return worker.decode_view().local_prefill_tokens == 1400

    await eventually(confirmed, "a poll after the dispatch")


async def test_one_that_ends_gets_no_more(plain: tuple[Plain, Callable[[Role], Workers]]) -> None:
    answers, follow = plain
    worker = await heard(follow(Role.UNIFIED))
    answers.ready_status = 503

    async def unusable() -> bool:
        return not worker.usable(monotonic())

    await eventually(unusable, "the gateway to see that it isn't ready")


async def test_a_server_in_another_role_is_not_used(plain: tuple[Plain, Callable[[Role], Workers]]) -> None:
    answers, follow = plain
    answers.info["disaggregation_mode"] = "prefill"
    workers = follow(Role.DECODE)
    await asyncio.sleep(0.3)
    (worker,) = workers
    assert not worker.connected and worker.profile is None
    answers.info["disaggregation_mode"] = "decode"
    assert (await heard(workers)).profile is not None


async def test_a_first_token_makes_room_for_the_next_prompt_before_any_poll(
    plain: tuple[Plain, Callable[[Role], Workers]],
) -> None:
    """Polls are far apart: prompts that are done would hold back others for half a second."""
    _, follow = plain
    worker = await heard(follow(Role.UNIFIED))
    before = worker.decode_view()
    work = worker.send(prompt_tokens=10, output_reserve_tokens=5, local=True)
    worker.prompt_done(work)
    now = worker.decode_view()
    assert now.local_prefill_tokens == before.local_prefill_tokens
    assert now.batch.requests == before.batch.requests + 1
    worker.ended(work)
    assert worker.decode_view().batch == before.batch
