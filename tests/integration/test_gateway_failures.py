"""The gateway before simulated engines that refuse, fall silent, fail, drain or die: what clients see of it."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest
from tests.support.fleet import (
    LONG_PROMPT,
    EngineProcess,
    Fleet,
    all_usable,
    ask,
    completion,
    default_class,
    demand,
    eventually,
    fleet,
    get_json,
    work_of,
)


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Fleet]:
    with fleet(tmp_path) as started:
        yield started


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as opened:
        yield opened


async def test_a_refusal_is_retried_elsewhere(processes: Fleet, session: aiohttp.ClientSession) -> None:
    """The engines take one deflected prompt at a time, which no state shows."""
    engines = [processes.engine("decode", "--max-deflected-requests", "1") for _ in range(2)]
    gateway = processes.gateway(engines)
    await all_usable(session, gateway, 2)
    answers = await asyncio.gather(*(ask(session, gateway.url, completion(3, prompt=[1] * 800)) for _ in range(6)))
    assert all(answer.whole for answer in answers)
    async with session.get(gateway.admin + "/metrics") as response:
        assert 'duet_gateway_retries_total{reason="refused-queue-full"}' in await response.text()
    counted = await default_class(session, gateway)
    assert (counted["completed_total"], counted["failed_total"]) == (6, 0)


async def test_a_worker_that_falls_silent_before_the_first_token_loses_its_request_to_another(
    processes: Fleet, session: aiohttp.ClientSession
) -> None:
    engines = [processes.engine("decode"), processes.engine("decode")]
    gateway = processes.gateway(engines)
    await all_usable(session, gateway, 2)
    engines[0].stop()
    answers = await asyncio.gather(*(ask(session, gateway.url, completion(3)) for _ in range(4)))
    assert all(answer.whole for answer in answers)
    assert {answer.route.split()[0] for answer in answers} == {f"deflected={engines[1].name}"}


async def test_draining_one_decode_worker_under_load_fails_nothing(
    processes: Fleet, session: aiohttp.ClientSession
) -> None:
    engines = [processes.engine("prefill"), processes.engine("decode"), processes.engine("decode")]
    gateway = processes.gateway(engines)
    await all_usable(session, gateway, 3)
    tasks = []
    for index in range(80):
        tasks.append(asyncio.create_task(ask(session, gateway.url, completion(30, prompt=[index] * 200))))
        if index == 30:
            drain = {"lease_seconds": 30}
            async with session.put(engines[1].url + "/duet/drain", json=drain) as response:
                assert response.status == 200
        await asyncio.sleep(0.02)
    answers = await asyncio.gather(*tasks)
    assert [answer for answer in answers if not answer.whole] == []
    assert any(engines[1].name in answer.route for answer in answers[:30])
    assert not any(engines[1].name in answer.route for answer in answers[50:])
    assert await work_of(session, engines[1]) == 0


async def test_a_prefill_worker_that_dies_before_the_first_token_costs_no_request(
    processes: Fleet, session: aiohttp.ClientSession
) -> None:
    engines = [processes.engine("prefill"), processes.engine("prefill"), processes.engine("decode")]
    gateway = processes.gateway(engines, config={"deflection": {"mode": "Off"}})
    await all_usable(session, gateway, 3)
    tasks = [asyncio.create_task(ask(session, gateway.url, completion(5, prompt=LONG_PROMPT))) for _ in range(2)]
    await eventually(lambda: busy(session, engines[:2]), "both prefill workers to be at work")
    engines[0].kill()
    answers = await asyncio.gather(*tasks)
    assert all(answer.whole for answer in answers)
    assert {answer.route for answer in answers} == {f"prefill={engines[1].name} decode={engines[2].name}"}
    assert await work_of(session, engines[2]) == 0


async def busy(session: aiohttp.ClientSession, engines: list[EngineProcess]) -> bool:
    states = [await get_json(session, engine.url + "/duet/state") for engine in engines]
    return all(state["step"] != "idle" for state in states)


async def test_the_only_prefill_worker_dies_and_its_request_is_deflected(
    processes: Fleet, session: aiohttp.ClientSession
) -> None:
    engines = [processes.engine("prefill"), processes.engine("decode")]
    gateway = processes.gateway(engines, config={"slo": {"ttftMilliseconds": 8000}})
    await all_usable(session, gateway, 2)
    task = asyncio.create_task(ask(session, gateway.url, completion(5, prompt=LONG_PROMPT)))
    await eventually(lambda: busy(session, engines[:1]), "the prefill worker to be at work")
    engines[0].kill()
    answer = await task
    assert answer.whole
    assert answer.route == f"deflected={engines[1].name} reason=no-prefill-worker"


async def test_a_decode_worker_that_dies_after_the_first_token_ends_in_an_error_event(
    processes: Fleet, session: aiohttp.ClientSession
) -> None:
    engines = [processes.engine("prefill"), processes.engine("decode")]
    gateway = processes.gateway(engines)
    await all_usable(session, gateway, 2)
    seen = b""
    async with session.post(gateway.url + "/v1/completions", json=completion(2000)) as response:
        async for chunk in response.content.iter_any():
            if not seen:
                engines[1].kill()
            seen += chunk
    events = seen.split(b"\n\n")
    assert events[-1] == b""
    last = json.loads(events[-2].removeprefix(b"data: "))
    assert last["error"]["code"] == 502 and engines[1].name in last["error"]["message"]
    counted = await default_class(session, gateway)
    assert (counted["failed_total"], counted["missed_total"]) == (1, {"engine": 1})


async def test_a_worker_that_fails_requests_is_ejected_and_comes_back(
    processes: Fleet, session: aiohttp.ClientSession
) -> None:
    engines = [processes.engine("decode", name="ill"), processes.engine("decode", name="well")]
    gateway = processes.gateway(engines)
    await all_usable(session, gateway, 2)
    async with session.post(engines[0].url + "/simulate/faults", json={"fail_next_requests": 3}):
        pass
    answers = [await ask(session, gateway.url, completion(2)) for _ in range(12)]
    assert all(answer.whole for answer in answers)
    ill = next(worker for worker in (await demand(session, gateway))["workers"] if worker["worker"] == "ill")
    assert ill["errors_total"] == 3

    async def back() -> bool:
        return (await ask(session, gateway.url, completion(2))).route.startswith("deflected=ill")

    await eventually(back, "the ejected worker to get requests again")
