"""The gateway before simulated engines: routes, streams, holding, cancellation, as clients see them."""

import asyncio
import io
import json
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.support.fleet import (
    LONG_PROMPT,
    MODEL,
    EngineProcess,
    Fleet,
    GatewayProcess,
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


@dataclass
class Pair:
    """One prefill and one decode worker behind a gateway, for tests that break nothing."""

    prefill: EngineProcess
    decode: EngineProcess
    gateway: GatewayProcess


@pytest.fixture(scope="module")
def started_pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with fleet(tmp_path_factory.mktemp("pair")) as started:
        engines = [started.engine("prefill"), started.engine("decode")]
        yield Pair(*engines, started.gateway(engines, config={"slo": {"ttftMilliseconds": 8000}}))


@pytest.fixture
async def pair(started_pair: Pair, session: aiohttp.ClientSession) -> Pair:
    await all_usable(session, started_pair.gateway, 2)
    return started_pair


def without_identity(answer_events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**event, "id": None, "created": None} for event in answer_events]


async def test_a_pair_streams_what_a_single_engine_streams(
    pair: Pair, processes: Fleet, session: aiohttp.ClientSession
) -> None:
    reference, gateway = processes.engine("unified"), pair.gateway
    chat = {"messages": [{"role": "user", "content": "tell me"}], "max_tokens": 9, "ignore_eos": True, "stream": True}
    for path, body in (
        ("/v1/completions", completion(20)),
        ("/v1/completions", completion(20, stream_options={"include_usage": True})),
        ("/v1/completions", completion(1, prompt=[1, 2, 3])),
        ("/v1/chat/completions", chat),
        ("/generate", {"text": "once", "sampling_params": {"max_new_tokens": 7, "ignore_eos": True}, "stream": True}),
    ):
        through, direct = await ask(session, gateway.url, body, path), await ask(session, reference.url, body, path)
        assert through.route == f"prefill={pair.prefill.name} decode={pair.decode.name}"
        assert through.whole and direct.whole
        if path == "/generate":
            assert [event["text"] for event in through.events] == [event["text"] for event in direct.events]
        else:
            assert without_identity(through.events) == without_identity(direct.events)
    whole = completion(5, stream=False)
    through, direct = await ask(session, gateway.url, whole), await ask(session, reference.url, whole)
    assert json.loads(through.text)["choices"] == json.loads(direct.text)["choices"]


async def test_the_demand_document_counts_what_clients_saw(processes: Fleet, session: aiohttp.ClientSession) -> None:
    engines = [processes.engine("prefill"), processes.engine("decode")]
    gateway = processes.gateway(engines, config={"slo": {"ttftMilliseconds": 20_000, "itlMilliseconds": 5_000}})
    await all_usable(session, gateway, 2)
    answers = await asyncio.gather(
        *(ask(session, gateway.url, completion(10, prompt=[index] * 300)) for index in range(6)),
        *(ask(session, gateway.url, completion(4, stream=False)) for _ in range(2)),
    )
    assert all(answer.whole for answer in answers)
    document = await demand(session, gateway)
    counted = document["classes"][0]
    assert (counted["arrivals_total"], counted["completed_total"], counted["failed_total"]) == (8, 8, 0)
    assert counted["met_both_total"] == counted["met_ttft_total"] == counted["met_itl_total"] == 8
    assert counted["input_tokens_total"] == 6 * 300 + 2 * 4
    assert counted["output_tokens_total"] == 6 * 10 + 2 * 4
    assert sum(counted["ttft_seconds"]["counts"]) == 6
    assert sum(counted["itl_seconds"]["counts"]) == 6 * 9
    assert len(document["profiles"]) == 2
    assert {worker["role"] for worker in document["workers"]} == {"prefill", "decode"}
    assert all(worker["state"]["accepted"] for worker in document["workers"])
    again = await demand(session, gateway)
    assert again["sequence"] == document["sequence"] + 1
    assert again["instance_id"] == document["instance_id"]


async def test_prompts_are_deflected_when_there_is_no_prefill_worker(
    processes: Fleet, session: aiohttp.ClientSession
) -> None:
    engines = [processes.engine("decode"), processes.engine("decode")]
    gateway = processes.gateway(engines)
    await all_usable(session, gateway, 2)
    answers = await asyncio.gather(*(ask(session, gateway.url, completion(20)) for _ in range(10)))
    assert all(answer.whole and len(answer.events) == 20 for answer in answers)
    assert {answer.route.split()[0] for answer in answers} == {f"deflected={engine.name}" for engine in engines}
    assert all(answer.route.endswith("reason=no-prefill-worker") for answer in answers)
    assert (await default_class(session, gateway))["deflected_requests_total"] == 10


async def test_prompts_are_deflected_when_the_prefill_queue_endangers_ttft(
    processes: Fleet, session: aiohttp.ClientSession
) -> None:
    engines = [processes.engine("prefill"), processes.engine("decode"), processes.engine("decode")]
    gateway = processes.gateway(engines, config={"slo": {"ttftMilliseconds": 800, "itlMilliseconds": 100}})
    await all_usable(session, gateway, 3)
    bodies = [completion(10, prompt=[index] * 4000) for index in range(12)]
    answers = await asyncio.gather(*(ask(session, gateway.url, body) for body in bodies))
    assert all(answer.whole for answer in answers)
    routes = [answer.route.split("=")[0] for answer in answers]
    assert set(routes) == {"prefill", "deflected"}
    assert all("ttft-endangered" in answer.route for answer in answers if answer.route.startswith("deflected"))


async def test_deflection_off_means_the_prefill_pool_or_nothing(
    processes: Fleet, session: aiohttp.ClientSession
) -> None:
    engines = [processes.engine("prefill"), processes.engine("decode")]
    gateway = processes.gateway(engines, "--hold-timeout-seconds", "0.5", config={"deflection": {"mode": "Off"}})
    await all_usable(session, gateway, 2)
    bodies = [completion(3, prompt=[index] * 4000) for index in range(6)]
    answers = await asyncio.gather(*(ask(session, gateway.url, body) for body in bodies))
    assert all(answer.whole and answer.route.startswith("prefill=") for answer in answers)
    state = await get_json(session, engines[1].url + "/duet/state")
    assert state["knobs_generation"] == 1 and not state["deflection_active"]
    engines[0].kill()
    await all_usable(session, gateway, 1)
    async with session.post(gateway.url + "/v1/completions", json=completion(3)) as response:
        refusal = await response.json()
        assert response.status == 503 and int(response.headers["Retry-After"]) > 0
    assert "no prefill worker is ready" in refusal["error"]["message"]
    assert (await default_class(session, gateway))["missed_total"] == {"gate": 1}


@pytest.mark.parametrize("prompt", [[5] * 20, LONG_PROMPT], ids=["while it streams", "before the first token"])
async def test_a_client_that_leaves_frees_both_workers(
    pair: Pair, session: aiohttp.ClientSession, prompt: list[int]
) -> None:
    before = await default_class(session, pair.gateway)
    task = asyncio.create_task(ask(session, pair.gateway.url, completion(20_000, prompt=prompt)))

    async def at_work() -> bool:
        return await work_of(session, pair.decode) > 0

    async def free() -> bool:
        return await work_of(session, pair.prefill) == 0 and await work_of(session, pair.decode) == 0

    await eventually(at_work, "the request to reach the decode worker")
    await asyncio.sleep(0.15)
    task.cancel()
    await eventually(free, "both workers to be free")
    document = await demand(session, pair.gateway)
    assert document["inflight_requests"] == 0 and document["waiting_requests"] == 0
    after = document["classes"][0]
    assert after["arrivals_total"] == before["arrivals_total"] + 1
    assert after["completed_total"] == before["completed_total"]
    assert (after["failed_total"], after["missed_total"]) == (before["failed_total"], before["missed_total"])
    assert (await ask(session, pair.gateway.url, completion(3))).whole


async def test_a_client_that_stops_reading_is_taken_for_gone(processes: Fleet, session: aiohttp.ClientSession) -> None:
    engine = processes.engine("decode")
    gateway = processes.gateway([engine], "--client-stall-seconds", "0.5")
    await all_usable(session, gateway, 1)
    sampling = {"max_new_tokens": 20_000, "ignore_eos": True}
    body = json.dumps({"text": "a", "sampling_params": sampling, "stream": True}).encode()
    head = f"POST /generate HTTP/1.1\r\nHost: gateway\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", gateway.port)) as client:
        client.sendall(head + body)

        async def at_work() -> bool:
            return await work_of(session, engine) > 0

        async def free() -> bool:
            return await work_of(session, engine) == 0

        await eventually(at_work, "the request to be at work")
        await eventually(free, "the engine to be told that nobody reads")
    counted = await default_class(session, gateway)
    assert (counted["completed_total"], counted["failed_total"], counted["missed_total"]) == (0, 0, {})


async def test_a_body_that_does_not_come_is_answered(processes: Fleet) -> None:
    gateway = processes.gateway([], "--body-timeout-seconds", "0.3")
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(b'POST /generate HTTP/1.1\r\nHost: gateway\r\nContent-Length: 50\r\n\r\n{"text":')
    answer = await reader.readuntil(b"}}")
    assert answer.startswith(b"HTTP/1.1 408") and b"body: not complete within 0.3 s" in answer
    writer.close()


async def test_a_request_is_held_until_a_worker_comes(processes: Fleet, session: aiohttp.ClientSession) -> None:
    engine = processes.engine("decode", "--cold-start-seconds", "3")
    gateway = processes.gateway([engine])
    answer = await ask(session, gateway.url, completion(3))
    assert answer.whole


async def test_a_hold_that_is_too_long_or_too_full_says_why(processes: Fleet, session: aiohttp.ClientSession) -> None:
    engine = processes.engine("decode", "--cold-start-seconds", "300")
    gateway = processes.gateway([engine], "--hold-timeout-seconds", "1", "--held-requests", "2")
    held = [asyncio.create_task(ask(session, gateway.url, completion(3))) for _ in range(2)]

    async def both_wait() -> bool:
        return (await demand(session, gateway))["waiting_requests"] == 2

    await eventually(both_wait, "two held requests")
    async with session.post(gateway.url + "/v1/completions", json=completion(3)) as response:
        assert response.status == 429 and "Retry-After" in response.headers
        assert "queue is full" in (await response.json())["error"]["message"]
    answers = await asyncio.gather(*held)
    assert {answer.status for answer in answers} == {503}
    assert all("no decode worker is ready" in answer.text for answer in answers)


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("/v1/completions", b'{"prompt":', 400, "body: not valid JSON"),
        ("/v1/completions", b"\xff\xfe", 400, "body: not UTF-8"),
        ("/v1/completions", b"[]", 400, "body: must be a JSON object"),
        ("/v1/completions", b"[" * 100_000, 400, "body: nested too deeply"),
        ("/v1/completions", b'{"prompt": "a", "temperature": NaN}', 400, "NaN"),
        ("/v1/completions", b"{}", 400, "prompt: missing"),
        ("/v1/completions", b'{"prompt": 3}', 400, "prompt: must be text"),
        ("/v1/completions", b'{"prompt": ["a", "b"]}', 400, "prompt: a list of prompts isn't supported"),
        ("/v1/completions", b'{"prompt": "a", "n": 2}', 400, "n: only 1 is supported"),
        ("/v1/completions", b'{"prompt": "a", "stream": "yes"}', 400, "stream: must be true or false"),
        ("/v1/completions", b'{"prompt": "a", "max_tokens": "9"}', 400, "max_tokens: must be a number"),
        ("/v1/completions", b'{"prompt": "a", "model": "other"}', 404, "model: 'other' isn't served here"),
        ("/v1/chat/completions", b'{"messages": []}', 400, "messages: must be a list"),
        ("/v1/chat/completions", b'{"messages": [{"content": 3}]}', 400, "messages.0.content"),
        ("/generate", b'{"text": "a", "input_ids": [1]}', 400, "text, input_ids"),
        ("/generate", b'{"text": ["a", "b"]}', 400, "text: a list of prompts isn't supported"),
        ("/generate", b'{"text": "a", "sampling_params": {"n": 2}}', 400, "n: only 1 is supported"),
        ("/v1/embeddings", b"{}", 404, "Not Found"),
        ("/v1/completions", b'{"prompt": "' + b"a" * (2**20 + 10) + b'"}', 413, "body: larger"),
    ],
)
async def test_bad_input_is_named(
    bad_input_gateway: GatewayProcess, session: aiohttp.ClientSession, path: str, body: bytes, status: int, says: str
) -> None:
    async with session.post(bad_input_gateway.url + path, data=io.BytesIO(body)) as response:
        assert response.status == status
        assert says in (await response.json())["error"]["message"]
    assert (await demand(session, bad_input_gateway))["classes"][0]["arrivals_total"] == 0


@pytest.fixture(scope="module")
def bad_input_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with fleet(tmp_path_factory.mktemp("bad-input")) as started:
        yield started.gateway([], "--max-body-mib", "1")


async def test_what_the_engine_finds_wrong_reaches_the_client(pair: Pair, session: aiohttp.ClientSession) -> None:
    before = await default_class(session, pair.gateway)
    for streamed in (True, False):
        answer = await ask(session, pair.gateway.url, completion(3, prompt=[1] * 90_000, stream=streamed))
        assert answer.status == 400 and "longer than the model's context" in answer.text
    after = await default_class(session, pair.gateway)
    assert (after["failed_total"], after["missed_total"]) == (before["failed_total"], before["missed_total"])


async def test_client_fields_that_steer_engines_are_stripped(pair: Pair, session: aiohttp.ClientSession) -> None:
    steering = {
        "rid": "a",
        "priority": 9,
        "bootstrap_host": "127.0.0.9",
        "bootstrap_port": 1,
        "bootstrap_room": 3,
        "duet": {"gateway": "me", "sequence": 5, "deflected": True},
    }
    answer = await ask(session, pair.gateway.url, completion(3, **steering))
    assert answer.whole and answer.route.startswith("prefill=")
    assert len(answer.events[0]["id"]) == 32
    state = await get_json(session, pair.decode.url + "/duet/state")
    assert "me" not in state["accepted"]


async def test_rolling_the_gateway_finishes_what_it_accepted(processes: Fleet, session: aiohttp.ClientSession) -> None:
    engines = [processes.engine("prefill"), processes.engine("decode")]
    gateway = processes.gateway(engines)
    await all_usable(session, gateway, 2)
    long = [asyncio.create_task(ask(session, gateway.url, completion(400))) for _ in range(5)]
    await asyncio.sleep(0.1)
    gateway.terminate()

    async def unready() -> bool:
        async with session.get(gateway.admin + "/readyz") as response:
            return response.status == 503

    await eventually(unready, "the gateway to be unready")
    async with session.post(gateway.url + "/v1/completions", json=completion(3)) as response:
        assert response.headers["Connection"] == "close"
        assert (await response.read()).endswith(b"data: [DONE]\n\n")
    answers = await asyncio.gather(*long)
    assert all(answer.whole and len(answer.events) == 400 for answer in answers)
    assert await asyncio.to_thread(gateway.popen.wait, 20) == 0


async def test_models_plan_and_metrics(pair: Pair, session: aiohttp.ClientSession) -> None:
    admin = pair.gateway.admin
    models = await get_json(session, pair.gateway.url + "/v1/models")
    assert [model["id"] for model in models["data"]] == [MODEL]
    plan = {"generation": 3, "lease_seconds": 30, "dispatch_share": 0.5}
    async with session.put(admin + "/duet/plan", json=plan) as response:
        assert (await response.json())["generation"] == 3
    async with session.put(admin + "/duet/plan", json={**plan, "generation": 2}) as response:
        assert (await response.json())["generation"] == 3
    async with session.put(admin + "/duet/plan", json={"lease_seconds": -1}) as response:
        assert response.status == 400 and "lease_seconds" in (await response.json())["error"]
    assert (await get_json(session, admin + "/duet/plan"))["dispatch_share"] == 0.5
    for path, body in (("/v1/completions", completion(3)), ("/generate", {"input_ids": [1, 2], "stream": False})):
        assert (await ask(session, pair.gateway.url, body, path)).whole
    document = (await demand(session, pair.gateway))["classes"][0]
    async with session.get(admin + "/metrics") as response:
        series = dict(line.rsplit(" ", 1) for line in (await response.text()).splitlines() if line[0] != "#")
    assert float(series['duet_gateway_requests_total{outcome="completed",path="/generate",route="prefill"}']) >= 1
    gaps = float(series['duet_gateway_itl_seconds_count{class="default"}'])
    assert gaps == sum(document["itl_seconds"]["counts"])
    assert float(series['duet_gateway_itl_seconds_bucket{class="default",le="+Inf"}']) == gaps
