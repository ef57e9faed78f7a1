"""A gateway process's life: when it says ready, when it ends by itself, what it finishes before it ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import aiohttp
import pytest
from tests.support.fleet import eventually

from duet_dev.controlplane import free_ports
from duet_engine.gateway.app import Gateway
from duet_engine.gateway.discovery import Member, StaticDiscovery
from duet_engine.gateway.errors import GatewayError
from duet_engine.gateway.live_settings import LiveSettings
from duet_engine.gateway.requests import COMPLETIONS, parse
from duet_engine.gateway.routing import SHORTEST_PAUSE_SECONDS, Dispatcher
from duet_engine.gateway.settings import Limits, Settings, StaticConfig
from duet_engine.gateway.workers import Workers
from duet_engine.policy.fleet import Fleet


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as opened:
        yield opened


Made = tuple[Gateway, str]
Make = Callable[..., Made]


@pytest.fixture
def make(session: aiohttp.ClientSession) -> Make:
    def made(**limits: Any) -> Made:
        port, admin_port = free_ports(2)
        settings = Settings(port=port, admin_port=admin_port, propagation_seconds=0.0, limits=Limits(**limits))
        gateway = Gateway(settings, session=session, initial=LiveSettings())
        return gateway, f"http://127.0.0.1:{settings.port}"

    return made


NO_WORKERS = StaticDiscovery(StaticConfig(workers=()))


async def readiness(session: aiohttp.ClientSession, url: str) -> str:
    async with session.get(url + "/ready") as response:
        return await response.text()


async def test_it_is_ready_once_workers_and_object_have_been_listed(make: Make, session: aiohttp.ClientSession) -> None:
    """Before that it would serve with objectives that nobody asked for."""
    listed = asyncio.Event()

    async def objects() -> AsyncIterator[Mapping[str, dict[str, Any]]]:
        await listed.wait()
        yield {}
        await asyncio.Event().wait()

    gateway, url = make()
    await gateway.start(NO_WORKERS, objects())

    async def says(reason: str) -> bool:
        return await readiness(session, url) == reason

    await eventually(lambda: says("not known yet: DuetDeployment"), "the workers to be listed")
    listed.set()
    await eventually(lambda: says("ready"), "the object to be listed")
    await gateway.stop()


async def test_a_part_that_stops_breaks_the_whole(make: Make, session: aiohttp.ClientSession) -> None:
    class BreaksOff:
        async def members(self) -> AsyncIterator[tuple[Member, ...]]:
            yield ()
            raise KeyError("metadata")

    gateway, url = make()
    await gateway.start(BreaksOff())
    async with asyncio.timeout(20):
        await gateway.broken.wait()
    assert await readiness(session, url) == "a part of the gateway stopped"
    await gateway.stop()


async def test_a_request_whose_body_still_comes_is_finished_before_the_end(make: Make) -> None:
    gateway, url = make()
    await gateway.start(NO_WORKERS)
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rsplit(":", 1)[1]))
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
    writer.write(head.encode())
    async with asyncio.timeout(30):
        assert b"100 Continue" in await reader.readuntil(b"\r\n\r\n"), "it is being handled"
        stopped = asyncio.create_task(gateway.stop())
        await asyncio.sleep(1.5)  # longer than the server waits for handlers that nobody counts
        writer.write(b"{}")
        assert b" 400 " in await reader.readline()
        await stopped
    writer.close()


async def test_a_request_whose_whole_time_is_over_is_answered(make: Make, session: aiohttp.ClientSession) -> None:
    gateway, url = make(total_timeout_seconds=0.1)
    await gateway.start(NO_WORKERS)
    async with asyncio.timeout(30), session.post(url + COMPLETIONS, json={"prompt": "a"}) as response:
        assert (response.status, (await response.json())["message"]) == (504, "no complete answer within 0.1 s")
    await gateway.stop()


async def test_what_a_request_says_is_never_logged(
    make: Make, session: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", logger="duet_engine")
    gateway, url = make(hold_timeout_seconds=0.05)
    await gateway.start(NO_WORKERS)
    said = {"prompt": "between-us", "user": "somebody", "rid": "steered"}
    headers = {"Authorization": "Bearer a-key"}
    for body in (json.dumps(said), json.dumps(said)[:-1], json.dumps({**said, "n": "between-us"})):
        async with asyncio.timeout(30), session.post(url + COMPLETIONS, data=body, headers=headers) as response:
            assert response.status in (400, 503)
    await gateway.stop()
    assert f"{COMPLETIONS} rejected" in caplog.text, "the access log was looked at"
    for secret in ("between-us", "somebody", "a-key", "steered"):
        assert secret not in caplog.text


async def test_a_storm_of_states_costs_a_bounded_number_of_passes() -> None:
    class Counted(Workers):
        passes = 0

        def fleet(self, now: float) -> Fleet:
            self.passes += 1
            return super().fleet(now)

    workers, loop = Counted("g"), asyncio.get_running_loop()
    limits = Limits(hold_timeout_seconds=0.1)
    dispatcher = Dispatcher(workers, live=LiveSettings, limits=limits, window_seconds=lambda: 0.1)
    started_at = loop.time()
    waiting = asyncio.create_task(
        dispatcher.assign(
            parse(COMPLETIONS, b'{"prompt": [1]}', model_names=()),
            prompt_tokens=1,
            arrived_at=started_at,
            excluded_until={},
        )
    )
    while not waiting.done():
        dispatcher.wake()
        await asyncio.sleep(0)
    with pytest.raises(GatewayError, match="no decode worker is ready"):
        await waiting
    assert workers.passes <= 2 + (loop.time() - started_at) / SHORTEST_PAUSE_SECONDS
