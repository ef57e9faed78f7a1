"""Drain of a simulated engine: leased, reversible, final on SIGTERM; nothing that was accepted is lost."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import pytest
from tests.support.simulated_engines import (
    Engine,
    ask,
    events,
    faults,
    running_engine,
    state,
    stream,
    until,
)

from duet_engine.protocol import REFUSAL_HEADER, DrainPhase, DrainStatus

COMPLETIONS = "/v1/completions"
BODY: dict[str, Any] = {"prompt": "something", "max_tokens": 200, "ignore_eos": True}


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with running_engine("unified", "--worker", "pod-1", "--revision", "abc") as running:
        yield running


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as open_session:
        yield open_session


async def drain(session: aiohttp.ClientSession, engine: Engine, method: str, **fields: Any) -> DrainStatus:
    async with session.request(method, f"{engine.url}/duet/drain", json=fields or None) as response:
        assert response.status == 200, await response.text()
        return DrainStatus.read(await response.read())


async def refused_as_draining(session: aiohttp.ClientSession, engine: Engine) -> bool:
    async with session.post(engine.url + COMPLETIONS, json=BODY | {"max_tokens": 1}) as response:
        if response.status == 200:
            return False
        assert response.status == 503 and response.headers[REFUSAL_HEADER] == "draining"
        assert response.headers["connection"] == "close"
        return True


async def test_a_drain_that_is_meant_for_another_worker_is_refused(
    engine: Engine, session: aiohttp.ClientSession
) -> None:
    body = {"lease_seconds": 60, "worker": "pod-0"}
    async with session.put(f"{engine.url}/duet/drain", json=body) as response:
        assert response.status == 409
        assert "this is pod-1" in await response.text()
    assert (await drain(session, engine, "GET")).phase is DrainPhase.SERVING
    assert (await drain(session, engine, "PUT", lease_seconds=60, worker="pod-1")).phase is DrainPhase.DRAINED
    await drain(session, engine, "DELETE")


async def test_a_drain_refuses_new_work_and_finishes_what_runs(engine: Engine, session: aiohttp.ClientSession) -> None:
    running = asyncio.create_task(stream(session, engine, COMPLETIONS, BODY))
    await until(session, engine, lambda seen: seen.decode_requests == 1)
    status = await drain(session, engine, "PUT", lease_seconds=60, requested_by="operator", reason="scale down")
    assert (status.worker, status.phase, status.remaining.running) == ("pod-1", DrainPhase.DRAINING, 1)
    assert await refused_as_draining(session, engine)
    async with session.get(f"{engine.url}/duet/ready") as response:
        assert response.status == 503 and "operator" in await response.text()
    async with session.get(f"{engine.url}/duet/live") as response:
        assert response.status == 200
    assert len(await running) == 200
    status = await drain(session, engine, "GET")
    assert status.phase is DrainPhase.DRAINED and status.remaining.total == 0
    assert (await drain(session, engine, "DELETE")).phase is DrainPhase.SERVING
    assert not await refused_as_draining(session, engine)


async def test_a_lease_that_runs_out_gives_the_worker_back(engine: Engine, session: aiohttp.ClientSession) -> None:
    await drain(session, engine, "PUT", lease_seconds=1.5)
    assert await refused_as_draining(session, engine)
    assert not (await state(session, engine)).ready
    await until(session, engine, lambda seen: seen.ready and not seen.draining)
    assert not await refused_as_draining(session, engine)


async def test_a_lease_that_is_renewed_lasts(engine: Engine, session: aiohttp.ClientSession) -> None:
    await drain(session, engine, "PUT", lease_seconds=0.2)
    status = await drain(session, engine, "PUT", lease_seconds=60)
    assert status.lease_remaining_seconds > 50
    await asyncio.sleep(0.4)
    assert await refused_as_draining(session, engine)
    await drain(session, engine, "DELETE")


@pytest.mark.parametrize("lease", [0, -1, "soon", None, 10**6])
async def test_a_bad_lease_is_refused_and_changes_nothing(
    engine: Engine, session: aiohttp.ClientSession, lease: object
) -> None:
    async with session.put(f"{engine.url}/duet/drain", json={"lease_seconds": lease}) as response:
        assert response.status == 400 and "lease_seconds" in await response.text()
    assert (await drain(session, engine, "GET")).phase is DrainPhase.SERVING


async def test_sigterm_with_streams_in_flight_loses_nothing(session: aiohttp.ClientSession) -> None:
    with running_engine("unified") as ending:
        running = [asyncio.create_task(stream(session, ending, COMPLETIONS, BODY)) for _ in range(20)]
        whole = [asyncio.create_task(ask(session, ending, COMPLETIONS, BODY)) for _ in range(10)]
        await until(session, ending, lambda seen: seen.work.total == 30)
        ending.process.send_signal(signal.SIGTERM)
        await until(session, ending, lambda seen: seen.draining)
        assert await refused_as_draining(session, ending)
        assert (await drain(session, ending, "DELETE")).phase is DrainPhase.TERMINATING
        assert await refused_as_draining(session, ending)
        assert [len(answer) for answer in await asyncio.gather(*running)] == [200] * 20
        assert {status for status, _ in await asyncio.gather(*whole)} == {200}
        assert await asyncio.to_thread(ending.process.wait, 20) == 0


async def test_a_prefill_worker_that_ends_hands_over_first(session: aiohttp.ClientSession) -> None:
    with running_engine("prefill") as prefill, running_engine("decode") as decode:
        await faults(session, prefill, hang_seconds=60)
        half = BODY | prefill.pair_fields(3)
        first = asyncio.create_task(ask(session, prefill, COMPLETIONS, half))
        answer = asyncio.create_task(stream(session, decode, COMPLETIONS, half))
        await until(session, prefill, lambda seen: seen.work.queued == 1)
        prefill.process.send_signal(signal.SIGTERM)
        await until(session, prefill, lambda seen: seen.draining)
        await faults(session, prefill, hang_seconds=0)
        assert (await first)[0] == 200
        assert len(await answer) == 200
        assert await asyncio.to_thread(prefill.process.wait, 20) == 0


async def test_at_the_drain_timeout_what_is_left_gets_an_error(session: aiohttp.ClientSession) -> None:
    with running_engine("unified", "--drain-timeout-seconds", "0.5") as ending:
        async with session.post(ending.url + COMPLETIONS, json=BODY | {"max_tokens": 20_000, "stream": True}) as answer:
            await answer.content.readline()
            ending.process.send_signal(signal.SIGTERM)
            rest = "data: {}\n" + (await answer.content.read()).decode()
        assert events(rest)[-1]["error"]["code"] == 503
        assert await asyncio.to_thread(ending.process.wait, 20) == 1


async def test_sigterm_during_the_cold_start_ends_at_once() -> None:
    with running_engine("unified", "--cold-start-seconds", "600", ready=False) as cold:
        cold.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(cold.process.wait, 20) == 0


def drain_command(*options: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "duet_engine.launch", "drain", *options]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | environment)


async def finished(command: subprocess.Popen[str]) -> tuple[int, str]:
    _, said = await asyncio.to_thread(command.communicate, timeout=60)
    return command.returncode, said


async def test_the_drain_command_waits_until_nothing_is_left(session: aiohttp.ClientSession) -> None:
    with running_engine("unified") as ending:
        running = asyncio.create_task(stream(session, ending, COMPLETIONS, BODY))
        await until(session, ending, lambda seen: seen.decode_requests == 1)
        command = drain_command("--url", ending.url)
        assert len(await running) == 200
        assert (await finished(command))[0] == 0
        assert (await drain(session, ending, "GET")).phase is DrainPhase.DRAINED


async def test_the_drain_command_gives_up_at_its_timeout(session: aiohttp.ClientSession) -> None:
    with running_engine("unified") as ending:
        running = asyncio.create_task(stream(session, ending, COMPLETIONS, BODY | {"max_tokens": 3000}))
        await until(session, ending, lambda seen: seen.decode_requests == 1)
        status, said = await finished(drain_command("--url", ending.url, DUET_DRAIN_TIMEOUT_SECONDS="0.5"))
        assert status == 1 and "not drained after 0.5 s" in said
        running.cancel()


async def test_the_drain_command_is_content_with_an_engine_that_is_gone() -> None:
    with running_engine("unified") as gone:
        pass
    status, said = await finished(drain_command("--url", gone.url, "--timeout", "20"))
    assert status == 0 and "gone" in said


async def test_the_engine_command_says_what_exists() -> None:
    command = [sys.executable, "-m", "duet_engine.launch", "--help"]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "show" in done.stdout and "drain" in done.stdout
