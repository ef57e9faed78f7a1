"""State, info, knobs and settings of a simulated engine: the documents of the protocol, over HTTP."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import pytest
from tests.support.simulated_engines import Engine, ask, get_json, put_knobs, running_engine, running_process, state

from duet_engine.protocol import WorkerInfo, WorkerState

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


async def test_the_state_stream_tells_each_tenth_of_a_second_and_at_once_when_something_changes(
    engine: Engine, session: aiohttp.ClientSession
) -> None:
    async with session.get(f"{engine.url}/duet/state?stream=1") as response:
        assert response.status == 200
        first = WorkerState.read(await response.content.readline())
        began = time.monotonic()
        quiet = [WorkerState.read(await response.content.readline()) for _ in range(5)]
        assert time.monotonic() - began >= 0.4
        running = asyncio.create_task(ask(session, engine, COMPLETIONS, BODY))
        steps = set()
        while not running.done():
            steps.add(WorkerState.read(await response.content.readline()).step.value)
    sequence = [seen.sequence for seen in (first, *quiet)]
    assert sequence == sorted(set(sequence)) and {seen.instance_id for seen in quiet} == {first.instance_id}
    assert "decode" in steps


async def test_info_says_what_this_worker_is(engine: Engine, session: aiohttp.ClientSession) -> None:
    async with session.get(f"{engine.url}/duet/info") as response:
        info = WorkerInfo.read(await response.read())
    assert (info.worker, info.revision, info.role, info.plugin_active) == ("pod-1", "abc", "unified", True)
    assert info.profile.kv_capacity_tokens > 0 and info.profile.digest
    assert info.features["generate"]["deflected"] != "works"


async def test_knobs_follow_the_generation(engine: Engine, session: aiohttp.ClientSession) -> None:
    status, newer = await put_knobs(session, engine, generation=5, itl_milliseconds=40)
    assert (status, newer["generation"], newer["changed"]) == (200, 5, True)
    _, older = await put_knobs(session, engine, generation=4, itl_milliseconds=90)
    assert (older["generation"], older["changed"]) == (5, False)
    _, same = await put_knobs(session, engine, generation=5, itl_milliseconds=40)
    assert (same["generation"], same["changed"]) == (5, False)
    assert (await get_json(session, f"{engine.url}/duet/knobs"))["itl_milliseconds"] == 40
    assert (await state(session, engine)).knobs_generation == 5


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"itl_milliseconds": 0}, "itl_milliseconds"),
        ({"beta_percent": 101}, "beta_percent"),
        ({"chunk_candidates_tokens": []}, "chunk_candidates_tokens"),
        ({"chunk_candidates_tokens": [128, 0]}, "chunk_candidates_tokens"),
        ({"multiplexing": "Maybe"}, "multiplexing"),
        ({"speed": 3}, "speed"),
    ],
)
async def test_bad_knobs_are_refused_and_change_nothing(
    engine: Engine, session: aiohttp.ClientSession, fields: dict[str, Any], named: str
) -> None:
    before = await get_json(session, f"{engine.url}/duet/knobs")
    status, document = await put_knobs(session, engine, generation=100, **fields)
    assert status == 400 and named in document["message"]
    assert await get_json(session, f"{engine.url}/duet/knobs") == before


async def test_knobs_of_a_newer_version_may_have_unknown_fields(engine: Engine, session: aiohttp.ClientSession) -> None:
    status, _ = await put_knobs(session, engine, generation=200, version=99, speed=3)
    assert status == 200


@pytest.mark.parametrize(
    ("options", "environment", "named"),
    [
        (["--gpu", "v100"], {}, "--gpu"),
        (["--role", "both"], {}, "--role"),
        (["--speed", "3"], {}, "--speed"),
        ([], {"DUET_ROLE": "both"}, "--role"),
        ([], {"DUET_ITL_MILLISECONDS": "fast"}, "--itl-milliseconds"),
        ([], {"DUET_SIMULATED_STEP_NOISE": "7"}, "--step-noise"),
        (["--model", "gpt-2"], {}, "--model"),
        ([], {"DUET_TRANSFER_BACKEND": "pigeon"}, "--transfer-backend"),
    ],
)
async def test_a_bad_setting_is_named(options: list[str], environment: dict[str, str], named: str) -> None:
    command = [sys.executable, "-m", "duet_engine.simulated_engine", *options]
    done = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, check=False, env=os.environ | environment
    )
    assert done.returncode == 2 and named in done.stderr


async def test_a_port_that_is_taken_is_named(engine: Engine) -> None:
    command = [sys.executable, "-m", "duet_engine.simulated_engine", "--port", str(engine.port)]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and f"--port {engine.port}: can't listen" in done.stderr
    assert "Traceback" not in done.stderr


async def test_a_pod_s_environment_is_enough(session: aiohttp.ClientSession) -> None:
    environment = {
        "DUET_ROLE": "decode",
        "DUET_MODEL_ID": "Qwen/Qwen3-1.7B",
        "DUET_SERVED_NAME": "small",
        "DUET_CONTEXT_LENGTH": "8192",
        "DUET_TENSOR_PARALLEL_SIZE": "1",
        "DUET_ITL_MILLISECONDS": "30",
        "DUET_REVISION": "r1",
        "DUET_SIMULATED_GPU": "h100-1g.10gb",
        "DUET_SIMULATED_COLD_START_SECONDS": "0",
        "POD_NAME": "chat-decode-x",
        "POD_IP": "127.0.0.1",
        "POD_NAMESPACE": "default",
    }
    with running_process([], environment) as engine:
        async with session.get(f"{engine.url}/duet/info") as response:
            info = WorkerInfo.read(await response.read())
        assert (info.worker, info.role, info.revision) == ("chat-decode-x", "decode", "r1")
        assert (info.profile.model_id, info.profile.gpu) == ("Qwen/Qwen3-1.7B", "h100-1g.10gb")
        (model,) = (await get_json(session, f"{engine.url}/v1/models"))["data"]
        assert (model["id"], model["max_model_len"]) == ("small", 8192)
        assert (await get_json(session, f"{engine.url}/duet/knobs"))["itl_milliseconds"] == 30
