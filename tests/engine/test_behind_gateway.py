"""The real SGLang behind `duet-gateway --config`: the same answers as from one ordinary server, by every route."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from tests.support.bench_rows import Row, row
from tests.support.bench_serving import REQUESTS, bench_serving
from tests.support.fleet import Fleet, GatewayProcess, all_usable, fleet, get_json
from tests.support.sglang_servers import LLAMA, SglangServer, Wanted, generate, running_servers

pytestmark = [pytest.mark.engine, pytest.mark.engine_full, pytest.mark.slow, pytest.mark.timeout(900)]

PATIENT, IMPATIENT_TTFT = 600_000, 1
"""TTFT objectives in milliseconds: nothing endangers the one, everything the other."""


@dataclass(frozen=True, slots=True)
class Said:
    """An answer of `/generate` through the gateway."""

    status: int
    route: str
    output_ids: list[int]
    error: str = ""


def entry(server: SglangServer, name: str) -> dict[str, Any]:
    own = {"bootstrapPort": server.bootstrap_port} if server.role == "prefill" else {}
    return {"url": server.url, "role": server.role, "name": name, **own}


def gateway_before(processes: Fleet, *, ttft: int = PATIENT, **servers: SglangServer) -> GatewayProcess:
    """A gateway that sends prompts to prefill workers, or deflects them when `ttft` can't be held there."""
    workers = [entry(server, name) for name, server in servers.items()]
    slo = {"ttftMilliseconds": ttft, "itlMilliseconds": 200}
    return processes.gateway([], config={"workers": workers, "model": {"id": LLAMA}, "slo": slo})


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet(tmp_path_factory.mktemp("gateways")) as started:
        yield started


@pytest.fixture(scope="module")
def paired(processes: Fleet, prefill: SglangServer, decode: SglangServer) -> GatewayProcess:
    return gateway_before(processes, prefill=prefill, decode=decode)


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=300)) as opened:
        yield opened


def prompts(count: int, *, seed: int) -> list[list[int]]:
    chance = random.Random(seed)
    lengths = [chance.choice((1, 3, 17, 60, 200, 500, 1200)) for _ in range(count)]
    return [[chance.randrange(3, 512) for _ in range(length)] for length in lengths]


async def said_by(session: aiohttp.ClientSession, gateway: GatewayProcess, prompt: list[int], tokens: int) -> Said:
    sampling = {"max_new_tokens": tokens, "temperature": 0, "ignore_eos": True}
    async with session.post(f"{gateway.url}/generate", json={"input_ids": prompt, "sampling_params": sampling}) as got:
        route, content = got.headers.get("x-duet-route", ""), await got.read()
    if got.status != 200:
        return Said(got.status, route, [], content.decode())
    return Said(got.status, route, json.loads(content)["output_ids"])


@pytest.mark.parametrize("route", ["pair", "deflected", "no-prefill-worker"])
async def test_by_every_route_the_answers_are_a_plain_servers(
    session: aiohttp.ClientSession,
    processes: Fleet,
    plain: SglangServer,
    prefill: SglangServer,
    decode: SglangServer,
    route: str,
) -> None:
    asked = prompts(16, seed=21)
    expected = [generate(plain, prompt)["output_ids"] for prompt in asked]
    servers = {"decode": decode} if route == "no-prefill-worker" else {"prefill": prefill, "decode": decode}
    gateway = gateway_before(processes, ttft=IMPATIENT_TTFT if route == "deflected" else PATIENT, **servers)
    await all_usable(session, gateway, len(servers))

    answers = await asyncio.gather(*(said_by(session, gateway, prompt, 16) for prompt in asked))

    assert [answer.output_ids for answer in answers] == expected
    taken = {answer.route for answer in answers}
    if route == "pair":
        assert taken == {"prefill=prefill decode=decode"}
    else:
        # A prompt may still go by way of the prefill worker, where that is as quick.
        assert any(each.startswith("deflected=decode") for each in taken), taken
    gateway.end()


async def test_the_openai_package_talks_to_real_engines(session: aiohttp.ClientSession, paired: GatewayProcess) -> None:
    await all_usable(session, paired, 2)
    extra = {"ignore_eos": True}
    async with openai.AsyncOpenAI(base_url=f"{paired.url}/v1", api_key="none", max_retries=0) as client:
        assert [model.id async for model in client.models.list()] == [LLAMA]
        whole = await client.completions.create(
            model=LLAMA, prompt="ba den fi", max_tokens=12, temperature=0, extra_body=extra
        )
        assert whole.usage is not None and whole.usage.completion_tokens == 12
        pieces = [
            chunk.choices[0].text
            async for chunk in await client.completions.create(
                model=LLAMA, prompt="ba den fi", max_tokens=12, temperature=0, stream=True, extra_body=extra
            )
        ]
        assert "".join(pieces) == whole.choices[0].text != ""
        chat = await client.chat.completions.create(
            model=LLAMA, messages=[{"role": "user", "content": "tell me"}], max_tokens=9, extra_body=extra
        )
        assert chat.choices[0].message.content and chat.usage is not None and chat.usage.completion_tokens == 9


async def test_sglangs_own_benchmark_runs_unmodified(
    session: aiohttp.ClientSession, paired: GatewayProcess, tmp_path: Path
) -> None:
    await all_usable(session, paired, 2)
    result = await asyncio.to_thread(bench_serving, paired.url, model=LLAMA, folder=tmp_path)
    assert result["completed"] == REQUESTS and result["mean_ttft_ms"] > 0


async def test_a_killed_worker_costs_no_answer(
    session: aiohttp.ClientSession,
    processes: Fleet,
    plain: SglangServer,
    prefill: SglangServer,
    decode: SglangServer,
    tmp_path: Path,
    figures: list[Row],
) -> None:
    """A decode worker and then a prefill worker die with requests in them: each is answered, and right."""
    asked = prompts(48, seed=22)
    expected = [generate(plain, prompt, tokens=48)["output_ids"] for prompt in asked]
    wanted = {"second-prefill": Wanted("prefill"), "second-decode": Wanted("decode")}
    with running_servers(tmp_path, wanted) as more:
        gateway = gateway_before(processes, prefill=prefill, decode=decode, **more)
        await all_usable(session, gateway, 4)
        for victim, half in (("second-decode", slice(0, 24)), ("second-prefill", slice(24, 48))):
            answers = [asyncio.create_task(said_by(session, gateway, prompt, 48)) for prompt in asked[half]]
            await _work_on(session, gateway, victim)
            more[victim].process.kill()
            got = await asyncio.gather(*answers)
            equal = sum(mine.output_ids == theirs for mine, theirs in zip(got, expected[half], strict=True))
            name = f"behind a gateway, the {victim.replace('-', ' ')} worker killed: answers equal"
            figures.append(row(name, equal, "answers", "asked", len(got)))
            assert [answer.error for answer in got if answer.error] == []
            assert [answer.output_ids for answer in got] == expected[half], victim
            assert any(victim not in answer.route for answer in got)
        gateway.end()


async def _work_on(session: aiohttp.ClientSession, gateway: GatewayProcess, name: str) -> None:
    """Until this worker has something to lose."""
    for _ in range(500):
        for worker in (await get_json(session, gateway.admin + "/duet/demand"))["workers"]:
            if worker["worker"] == name and any((worker["state"] or {}).get("work", {}).values()):
                return
        await asyncio.sleep(0.02)
    raise AssertionError(f"{name} got no work")
