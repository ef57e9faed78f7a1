"""The simulated engine answers as SGLang 0.5.23 does: shapes of generated answers, control, probes, metrics."""

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.support.simulated_engines import (
    SMALL_MODEL,
    Engine,
    ask,
    faults,
    get_json,
    running_engine,
    running_process,
    stream,
    until,
)

from duet_engine.perf import catalog
from duet_engine.perf.interface import StepBatch
from duet_engine.perf.replica import replica_from_document
from duet_engine.protocol import REFUSAL_HEADER, Role

LONG = {"prompt": "tell me a long story", "max_tokens": 2000, "ignore_eos": True}


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with running_engine("unified") as running:
        yield running


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as open_session:
        yield open_session


async def test_completions_streamed(engine: Engine, session: aiohttp.ClientSession) -> None:
    body = {"model": "m", "prompt": [1, 2, 3], "max_tokens": 3, "ignore_eos": True, "rid": "r-1"}
    chunks = await stream(session, engine, "/v1/completions", body | {"stream_options": {"include_usage": True}})
    *tokens, usage = chunks
    assert [set(chunk) for chunk in tokens] == [{"id", "object", "created", "choices", "model", "usage"}] * 3
    assert {(chunk["id"], chunk["object"], chunk["model"]) for chunk in chunks} == {("r-1", "text_completion", "m")}
    choices = [chunk["choices"][0] for chunk in tokens]
    assert [choice["finish_reason"] for choice in choices] == [None, None, "length"]
    assert all(choice["text"].startswith(" ") and choice["index"] == 0 for choice in choices)
    assert usage["choices"] == []
    assert usage["usage"]["prompt_tokens"] == 3
    assert usage["usage"]["completion_tokens"] == 3
    assert usage["usage"]["total_tokens"] == 6
    assert usage["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}


async def test_completions_whole_and_streamed_say_the_same(engine: Engine, session: aiohttp.ClientSession) -> None:
    body = {"prompt": "the same words", "max_tokens": 20, "ignore_eos": True}
    status, whole = await ask(session, engine, "/v1/completions", body)
    streamed = await stream(session, engine, "/v1/completions", body)
    assert status == 200
    assert whole["object"] == "text_completion" and whole["model"] == SMALL_MODEL
    assert whole["choices"][0]["text"] == "".join(chunk["choices"][0]["text"] for chunk in streamed)
    assert whole["usage"]["completion_tokens"] == 20


async def test_chat_streamed(engine: Engine, session: aiohttp.ClientSession) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "max_completion_tokens": 2, "ignore_eos": True}
    first, *tokens, last = await stream(session, engine, "/v1/chat/completions", body)
    assert first["object"] == "chat.completion.chunk"
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": "", "reasoning_content": None}
    assert len(tokens) == 2
    assert all(chunk["choices"][0]["delta"]["content"].startswith(" ") for chunk in tokens)
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in (first, *tokens))
    assert last["choices"][0]["finish_reason"] == "length"
    assert "content" not in last["choices"][0]["delta"]


async def test_chat_whole_ends_by_itself_without_ignore_eos(engine: Engine, session: aiohttp.ClientSession) -> None:
    status, answer = await ask(
        session, engine, "/v1/chat/completions", {"messages": [{"role": "user", "content": "?"}]}
    )
    assert status == 200 and answer["object"] == "chat.completion"
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "stop" and choice["matched_stop"] == 2
    assert choice["message"]["role"] == "assistant"
    assert len(choice["message"]["content"].split()) == answer["usage"]["completion_tokens"]


async def test_generate_streams_the_whole_text_so_far(engine: Engine, session: aiohttp.ClientSession) -> None:
    body = {"input_ids": [1, 2, 3, 4], "sampling_params": {"max_new_tokens": 3, "ignore_eos": True}}
    chunks = await stream(session, engine, "/generate", body)
    assert [len(chunk["output_ids"]) for chunk in chunks] == [1, 2, 3]
    assert all(later["text"].startswith(earlier["text"]) for earlier, later in pairwise(chunks))
    metas = [chunk["meta_info"] for chunk in chunks]
    assert [meta["finish_reason"] for meta in metas] == [None, None, {"type": "length", "length": 3}]
    assert [meta["completion_tokens"] for meta in metas] == [1, 2, 3]
    assert {meta["prompt_tokens"] for meta in metas} == {4}
    status, whole = await ask(session, engine, "/generate", body)
    assert status == 200 and whole["text"] == chunks[-1]["text"]


async def test_no_request_is_faster_than_its_gpu(engine: Engine, session: aiohttp.ClientSession) -> None:
    model = replica_from_document(catalog.profile("h100-sxm", SMALL_MODEL, role=Role.UNIFIED).replica)
    body = {"input_ids": [1] * 3000, "sampling_params": {"max_new_tokens": 40, "ignore_eos": True}}
    _, answer = await ask(session, engine, "/generate", body)
    decode = sum(model.step_seconds(StepBatch.decode(1, 3000 + done)) for done in range(1, 40))
    assert answer["meta_info"]["e2e_latency"] >= model.step_seconds(StepBatch.prefill(3000)) + decode - 1e-6


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/v1/completions", b"{", "body: not JSON"),
        ("/v1/completions", b"[]", "body: must be a JSON object"),
        ("/v1/completions", b'{"prompt": ""}', "Prompt cannot be empty"),
        ("/v1/chat/completions", b'{"messages": []}', "Messages cannot be empty."),
        ("/generate", b'{"text": "a", "sampling_params": {"max_new_tokens": -1}}', "max_new_tokens"),
        ("/abort_request", b"{}", "rid"),
    ],
)
async def test_bad_bodies_get_400(
    engine: Engine, session: aiohttp.ClientSession, path: str, body: bytes, message: str
) -> None:
    async with session.post(engine.url + path, data=body) as response:
        document = await response.json()
    assert response.status == document["code"] == 400
    assert document["object"] == "error" and message in document["message"]


async def test_abort_ends_every_request_whose_id_begins_so(engine: Engine, session: aiohttp.ClientSession) -> None:
    tasks = {
        rid: asyncio.create_task(stream(session, engine, "/v1/completions", LONG | {"rid": rid}))
        for rid in ("a1", "a12", "b1")
    }
    await until(session, engine, lambda seen: seen.decode_requests == 3)
    async with session.post(f"{engine.url}/abort_request", json={"rid": "a1"}) as response:
        assert response.status == 200
    for rid in ("a1", "a12"):
        assert (await tasks[rid])[-1]["choices"][0]["finish_reason"] == "abort"
    assert (await until(session, engine, lambda seen: seen.decode_requests == 1)).ready
    async with session.post(f"{engine.url}/abort_request", json={"abort_all": True}) as response:
        assert response.status == 200
    assert (await tasks["b1"])[-1]["choices"][0]["finish_reason"] == "abort"


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_client_that_leaves_ends_its_request(
    engine: Engine, session: aiohttp.ClientSession, streamed: bool
) -> None:
    task = asyncio.create_task(ask(session, engine, "/v1/completions", LONG | {"stream": streamed}))
    await until(session, engine, lambda seen: seen.decode_requests == 1)
    task.cancel()
    seen = await until(session, engine, lambda seen: seen.work.total == 0)
    assert seen.kv_used_tokens == seen.kv_reserved_tokens == 0


async def test_health_takes_a_second_and_ready_does_not_generate(
    engine: Engine, session: aiohttp.ClientSession
) -> None:
    for path in ("/health", "/health_generate"):
        began = time.monotonic()
        async with session.get(engine.url + path) as response:
            assert response.status == 200
        assert time.monotonic() - began >= 1.0  # a probe with a timeout of 1 s must fail, as with the real one
    async with session.get(engine.url + "/ready") as response:
        assert response.status == 200


async def test_paths_and_methods_that_are_not_there(engine: Engine, session: aiohttp.ClientSession) -> None:
    async with session.get(engine.url + "/get_load") as response:
        assert response.status == 404
    async with session.get(engine.url + "/generate") as response:
        assert response.status == 405 and response.headers["allow"] == "POST"


async def test_facts(engine: Engine, session: aiohttp.ClientSession) -> None:
    models = await get_json(session, engine.url + "/v1/models")
    assert [model["id"] for model in models["data"]] == [SMALL_MODEL]
    info = await get_json(session, engine.url + "/server_info")
    assert info == await get_json(session, engine.url + "/get_server_info")
    assert (info["version"], info["disaggregation_mode"], info["port"]) == ("0.5.23", "null", engine.port)
    assert (await get_json(session, engine.url + "/model_info"))["disaggregation_mode"] == "null"
    (load,) = (await get_json(session, engine.url + "/v1/loads?include=core,disagg"))["loads"]
    assert load["num_running_reqs"] == load["num_waiting_reqs"] == 0
    assert load["max_total_num_tokens"] == info["max_total_num_tokens"]
    assert load["disaggregation"]["mode"] == "null"
    async with session.get(engine.url + "/v1/loads?include=everything") as response:
        assert response.status == 400 and "everything" in await response.text()


async def test_it_shows_where_the_weights_are(session: aiohttp.ClientSession, tmp_path: Path) -> None:
    environment = {"DUET_MODEL_ID": SMALL_MODEL, "DUET_MODEL_PATH": str(tmp_path), "DUET_MODEL_REVISION": "v1"}
    with running_process(["--cold-start-seconds", "0"], environment) as engine:
        info = await get_json(session, engine.url + "/server_info")
        assert (info["model_path"], info["revision"], info["served_model_name"]) == (str(tmp_path), "v1", SMALL_MODEL)


def test_weights_that_are_not_there_are_told_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "duet_engine.simulated_engine", "--model-path", str(tmp_path / "absent")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert ended.returncode == 2
    assert f"{tmp_path / 'absent'} is no directory; mount the weights there" in " ".join(ended.stderr.split())


async def test_metrics_have_sglang_s_names_and_count_what_happened(session: aiohttp.ClientSession) -> None:
    with running_engine("unified") as fresh:
        await ask(session, fresh, "/v1/completions", {"prompt": [1] * 400, "max_tokens": 30, "ignore_eos": True})
        async with session.get(fresh.url + "/metrics") as response:
            text = await response.text()
    samples = {
        (sample.name, sample.labels.get("le"), sample.labels.get("kind")): sample
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.labels.get("is_streaming") != "True"
    }
    assert samples["sglang:num_running_reqs", None, None].labels == {
        "model_name": SMALL_MODEL,
        "engine_type": "unified",
        "tp_rank": "0",
        "pp_rank": "0",
        "moe_ep_rank": "0",
    }
    values = {name: sample.value for (name, bound, kind), sample in samples.items() if bound is None and kind is None}
    assert values["sglang:generation_tokens_total"] == 30
    assert values["sglang:prompt_tokens_total"] == 400
    assert values["sglang:num_requests_total"] == 1
    assert values["sglang:time_to_first_token_seconds_count"] == 1
    assert values["sglang:inter_token_latency_seconds_count"] == 29
    assert values["sglang:e2e_request_latency_seconds_count"] == 1
    assert values["sglang:queue_time_seconds_count"] == 1
    assert samples["sglang:time_to_first_token_seconds_count", None, None].labels["is_streaming"] == "False"
    assert {"sglang:token_usage", "sglang:num_decode_prealloc_queue_reqs", "sglang:gen_throughput"} <= values.keys()
    assert samples["duet_engine_steps_total", None, "decode"].value == 29
    assert samples["sglang:inter_token_latency_seconds_bucket", "+Inf", None].value == 29


async def test_until_the_cold_start_is_over_only_probes_answer(session: aiohttp.ClientSession) -> None:
    with running_engine("unified", "--cold-start-seconds", "600", ready=False) as cold:
        expected = {"/duet/live": 200, "/duet/ready": 503, "/ready": 503, "/health": 503, "/duet/state": 503}
        for path, status in expected.items():
            async with session.get(cold.url + path) as response:
                assert response.status == status, path
        async with session.post(cold.url + "/v1/completions", json=LONG) as response:
            assert response.status == 503
            assert response.headers[REFUSAL_HEADER] == "not-ready" and "retry-after" in response.headers


async def test_after_its_cold_start_an_engine_serves(session: aiohttp.ClientSession) -> None:
    with running_engine("unified", "--cold-start-seconds", "1", ready=False) as cold:
        deadline = time.monotonic() + 20
        while (await get_json(session, cold.url + "/duet/ready"))["reason"] == "starting":
            assert time.monotonic() < deadline
        assert len(await stream(session, cold, "/v1/completions", {"prompt": "a", "max_tokens": 1})) == 1


async def until_live_is(session: aiohttp.ClientSession, engine: Engine, wanted: bool) -> None:
    deadline = time.monotonic() + 20
    while (await get_json(session, engine.url + "/duet/live"))["live"] is not wanted:
        assert time.monotonic() < deadline


async def test_a_worker_whose_steps_hang_is_not_live_until_they_go_on(session: aiohttp.ClientSession) -> None:
    with running_engine("unified", "--watchdog-seconds", "0.3") as broken:
        await asyncio.sleep(0.5)  # idle for longer than the watchdog's patience
        task = asyncio.create_task(stream(session, broken, "/v1/completions", LONG | {"max_tokens": 10_000}))
        await until(session, broken, lambda seen: seen.decode_requests == 1)
        await until_live_is(session, broken, True)
        await faults(session, broken, hang_seconds=2)
        await until_live_is(session, broken, False)
        await until_live_is(session, broken, True)
        task.cancel()


async def test_failures_and_crashes_on_request(session: aiohttp.ClientSession) -> None:
    with running_engine("unified") as broken:
        await faults(session, broken, fail_next_requests=1)
        assert (await ask(session, broken, "/v1/completions", LONG | {"max_tokens": 1}))[0] == 500
        assert (await ask(session, broken, "/v1/completions", LONG | {"max_tokens": 1}))[0] == 200
        async with session.post(f"{broken.url}/simulate/faults", json={"slow": 2}) as response:
            assert response.status == 400 and "slow: unknown" in await response.text()
        with pytest.raises(aiohttp.ClientError):
            await faults(session, broken, crash=True)
        assert await asyncio.to_thread(broken.process.wait, 10) == 1


async def test_faults_are_off_by_default(session: aiohttp.ClientSession) -> None:
    with running_process(["--cold-start-seconds", "0"], {}) as sound:
        async with session.post(f"{sound.url}/simulate/faults", json={"crash": True}) as response:
            assert response.status == 404
