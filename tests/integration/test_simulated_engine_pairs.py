"""Prefill and decode workers as two processes: hand-over, deflection, and what each hears when the other fails."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
import pytest
from tests.support.simulated_engines import (
    Engine,
    ask,
    events,
    faults,
    put_knobs,
    running_engine,
    state,
    stream,
    until,
)

from duet_engine.protocol import REFUSAL_HEADER, Refusal, RefusalReason, WorkerState

BODY: dict[str, Any] = {"prompt": [7] * 900, "max_tokens": 30, "ignore_eos": True}
COMPLETIONS = "/v1/completions"


def deflected(sequence: int = 1, **dispatch: Any) -> dict[str, Any]:
    return {"duet": {"gateway": "gateway-a", "sequence": sequence, "deflected": True} | dispatch}


@contextmanager
def running_pair() -> Iterator[tuple[Engine, Engine]]:
    with running_engine("prefill") as prefill, running_engine("decode") as decode:
        yield prefill, decode


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Engine, Engine]]:
    with running_pair() as engines:
        yield engines


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as open_session:
        yield open_session


def text_of(chunks: list[Any]) -> str:
    return "".join(chunk["choices"][0]["text"] for chunk in chunks)


async def streamed_text(session: aiohttp.ClientSession, engine: Engine, body: dict[str, Any]) -> str:
    """A raw streamed answer: errors come as events of a 200."""
    async with session.post(engine.url + COMPLETIONS, json=body | {"stream": True}) as response:
        assert response.status == 200
        return await response.text()


async def test_a_pair_a_deflected_and_a_unified_answer_are_equal(
    pair: tuple[Engine, Engine], session: aiohttp.ClientSession
) -> None:
    prefill, decode = pair
    half = BODY | prefill.pair_fields(1)
    first, answer = await asyncio.gather(
        stream(session, prefill, COMPLETIONS, half), stream(session, decode, COMPLETIONS, half)
    )
    local = await stream(session, decode, COMPLETIONS, BODY | deflected())
    with running_engine("unified") as unified:
        reference = await stream(session, unified, COMPLETIONS, BODY)
    assert len(answer) == 30
    assert text_of(answer) == text_of(local) == text_of(reference)
    assert text_of(first) == text_of(answer[:1])
    assert first[-1]["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("decode_first", [True, False])
async def test_either_half_may_come_first(
    pair: tuple[Engine, Engine], session: aiohttp.ClientSession, decode_first: bool
) -> None:
    prefill, decode = pair
    half = BODY | prefill.pair_fields(2 + decode_first)
    early, late = (decode, prefill) if decode_first else (prefill, decode)
    waiting = asyncio.create_task(stream(session, early, COMPLETIONS, half))
    seen = await until(session, early, lambda seen: seen.work.total == 1)
    assert (seen.work.decode_transfer, seen.work.prefill_bootstrap) == (int(decode_first), int(not decode_first))
    if decode_first:
        assert (seen.kv_used_tokens, seen.kv_reserved_tokens) == (900, 30)  # held before any prefill
    await stream(session, late, COMPLETIONS, half)
    await waiting
    for engine in pair:
        assert (await state(session, engine)).kv_used_tokens == 0


async def test_many_pairs_at_once_lose_no_token(pair: tuple[Engine, Engine], session: aiohttp.ClientSession) -> None:
    prefill, decode = pair

    async def one(room: int) -> str:
        half = BODY | {"prompt": [room] * 300} | prefill.pair_fields(room)
        _, answer = await asyncio.gather(
            stream(session, prefill, COMPLETIONS, half), stream(session, decode, COMPLETIONS, half)
        )
        assert answer[-1]["choices"][0]["finish_reason"] == "length"
        return text_of(answer)

    texts = await asyncio.gather(*(one(room) for room in range(100, 180)))
    assert all(len(text.split()) == 30 for text in texts)
    assert len(set(texts)) > 40
    for engine in pair:
        assert (await state(session, engine)).work.total == 0


async def test_without_a_room_and_not_deflected_is_a_bad_request(
    pair: tuple[Engine, Engine], session: aiohttp.ClientSession
) -> None:
    for engine in pair:
        for body in (BODY, BODY | {"duet": {"gateway": "g", "sequence": 1}}):
            status, document = await ask(session, engine, COMPLETIONS, body)
            assert status == 400
            assert "Disaggregated request received without bootstrap room id" in document["message"]


async def test_a_killed_prefill_worker_fails_the_decode_half_clearly(session: aiohttp.ClientSession) -> None:
    with running_pair() as (prefill, decode):
        await faults(session, prefill, hang_seconds=60)
        half = BODY | prefill.pair_fields(5)
        doomed = asyncio.create_task(ask(session, prefill, COMPLETIONS, half))
        waiting = asyncio.create_task(streamed_text(session, decode, half))
        whole = asyncio.create_task(ask(session, decode, COMPLETIONS, BODY | prefill.pair_fields(6)))
        await until(session, decode, lambda seen: seen.work.decode_transfer == 2)
        prefill.process.kill()
        (error,) = events(await waiting)
        assert error["error"]["code"] == 500
        assert "Decode transfer failed" in error["error"]["message"] and "room 5" in error["error"]["message"]
        status, document = await whole
        assert status == 500 and "room 6" in document["message"]
        with pytest.raises(aiohttp.ClientError):
            await doomed
        assert (await until(session, decode, lambda seen: seen.work.total == 0)).kv_used_tokens == 0
        # Until the process has ended its port still takes connections, and resets them.
        await asyncio.to_thread(prefill.process.wait, 30)
        refused = await streamed_text(session, decode, BODY | prefill.pair_fields(7))
        assert "can't reach the prefill worker" in refused


async def test_a_killed_decode_worker_frees_the_prefill_side(session: aiohttp.ClientSession) -> None:
    with running_pair() as (prefill, decode):
        await faults(session, prefill, hang_seconds=60)
        half = BODY | prefill.pair_fields(5)
        waiting = asyncio.create_task(ask(session, prefill, COMPLETIONS, half))
        doomed = asyncio.create_task(ask(session, decode, COMPLETIONS, half))
        await until(session, prefill, lambda seen: seen.work.queued == 1)
        decode.process.kill()
        status, document = await waiting
        assert status == 500 and "the decode worker of room 5 is gone" in document["message"]
        assert (await until(session, prefill, lambda seen: seen.work.total == 0)).kv_used_tokens == 0
        with pytest.raises(aiohttp.ClientError):
            await doomed


async def test_an_abort_or_a_leaving_client_on_one_side_reaches_the_other(
    pair: tuple[Engine, Engine], session: aiohttp.ClientSession
) -> None:
    prefill, decode = pair
    await faults(session, prefill, hang_seconds=60)
    halves = [BODY | prefill.pair_fields(room) | {"rid": f"abort-{room}"} for room in (20, 21, 22)]
    prefills = [asyncio.create_task(ask(session, prefill, COMPLETIONS, half)) for half in halves]
    decodes = [asyncio.create_task(ask(session, decode, COMPLETIONS, half)) for half in halves]
    await until(session, prefill, lambda seen: seen.work.queued == 3)
    async with session.post(f"{prefill.url}/abort_request", json={"rid": "abort-20"}) as response:
        assert response.status == 200
    status, document = await decodes[0]
    assert status == 500 and "was aborted" in document["message"]
    async with session.post(f"{decode.url}/abort_request", json={"rid": "abort-21"}) as response:
        assert response.status == 200
    status, document = await prefills[1]
    assert status == 500 and "is gone" in document["message"]
    decodes[2].cancel()
    status, document = await prefills[2]
    assert status == 500 and "is gone" in document["message"]
    await faults(session, prefill, hang_seconds=0)
    for engine in pair:
        seen = await until(session, engine, lambda seen: seen.work.total == 0)
        assert seen.kv_used_tokens == seen.kv_reserved_tokens == 0


async def test_a_prefill_half_that_was_refused_fails_its_decode_half_at_once(session: aiohttp.ClientSession) -> None:
    with running_pair() as (prefill, decode):
        async with session.put(f"{prefill.url}/duet/drain", json={"lease_seconds": 60}) as response:
            assert response.status == 200
        half = BODY | prefill.pair_fields(9)
        waiting = asyncio.create_task(ask(session, decode, COMPLETIONS, half))
        assert (await ask(session, prefill, COMPLETIONS, half))[0] == 503
        status, document = await waiting
        assert status == 500 and "refused" in document["message"]


async def test_a_decode_half_that_ends_before_it_has_kv_takes_its_prefill_half_along(
    session: aiohttp.ClientSession,
) -> None:
    with running_engine("prefill") as prefill, running_engine("decode", "--kv-capacity-tokens", "1000") as decode:
        await faults(session, prefill, hang_seconds=60)
        holder = asyncio.create_task(ask(session, decode, COMPLETIONS, BODY | prefill.pair_fields(1)))
        await until(session, decode, lambda seen: seen.work.decode_transfer == 1)
        half = BODY | prefill.pair_fields(2) | {"rid": "waits"}
        early = asyncio.create_task(ask(session, prefill, COMPLETIONS, half))
        waiting = asyncio.create_task(ask(session, decode, COMPLETIONS, half))
        await until(session, decode, lambda seen: seen.work.decode_prealloc == 1)
        await until(session, prefill, lambda seen: seen.work.prefill_bootstrap == 1)
        async with session.post(f"{decode.url}/abort_request", json={"rid": "waits"}) as response:
            assert response.status == 200
        assert (await waiting)[1]["choices"][0]["finish_reason"] == "abort"
        status, document = await early
        assert status == 500 and "gave up" in document["message"]
        late_status, document = await ask(session, prefill, COMPLETIONS, half)
        assert late_status == 500 and "gave up" in document["message"]
        holder.cancel()


async def test_prefill_workers_that_nobody_claims_give_up(session: aiohttp.ClientSession) -> None:
    with running_engine("prefill", "--bootstrap-timeout-seconds", "0.3") as prefill:
        status, document = await ask(session, prefill, COMPLETIONS, BODY | prefill.pair_fields(1))
        assert status == 500 and "Prefill bootstrap failed" in document["message"]
        assert (await state(session, prefill)).work.total == 0


async def refusal(session: aiohttp.ClientSession, engine: Engine, body: dict[str, Any]) -> RefusalReason:
    """A refusal in full: status, header, body, Retry-After."""
    async with session.post(engine.url + COMPLETIONS, json=body) as response:
        assert response.status == 503, await response.text()
        document = Refusal.read(await response.read())
        assert response.headers[REFUSAL_HEADER] == document.reason
        assert int(response.headers["retry-after"]) >= 1
        assert document.message
        return document.reason


async def test_refusals_are_told_apart(pair: tuple[Engine, Engine], session: aiohttp.ClientSession) -> None:
    prefill, decode = pair
    assert await refusal(session, prefill, BODY | deflected()) is RefusalReason.WRONG_ROLE
    await put_knobs(session, decode, generation=1, deflection_enabled=False)
    assert await refusal(session, decode, BODY | deflected()) is RefusalReason.DEFLECTION_OFF
    assert not (await state(session, decode)).deflection_active
    await put_knobs(session, decode, generation=2)
    small = ("--kv-capacity-tokens", "1000", "--max-deflected-requests", "1")
    with running_engine("decode", *small) as tiny:
        await faults(session, tiny, hang_seconds=60)
        task = asyncio.create_task(ask(session, tiny, COMPLETIONS, {"prompt": [1] * 600, **deflected()}))
        await until(session, tiny, lambda seen: seen.work.deflected == 1)
        assert await refusal(session, tiny, {"prompt": [1], **deflected()}) is RefusalReason.QUEUE_FULL
        task.cancel()
        await until(session, tiny, lambda seen: seen.work.total == 0)
        waiting = asyncio.create_task(ask(session, tiny, COMPLETIONS, BODY | prefill.pair_fields(50)))
        await until(session, tiny, lambda seen: seen.work.decode_prealloc == 1)
        assert await refusal(session, tiny, BODY | deflected()) is RefusalReason.NO_KV
        assert (await state(session, tiny)).refusals_total == 2
        waiting.cancel()


async def test_state_confirms_dispatches_and_counts_deflected_tokens(session: aiohttp.ClientSession) -> None:
    with running_engine("decode") as decode:
        await ask(session, decode, COMPLETIONS, BODY | deflected(41))
        await ask(session, decode, COMPLETIONS, BODY | deflected(40))
        await ask(session, decode, COMPLETIONS, BODY | {"duet": {"gateway": "gateway-b", "sequence": 3}})
        seen = await state(session, decode)
    assert seen.accepted == {"gateway-a": 41, "gateway-b": 3}
    assert (seen.deflected_requests_total, seen.deflected_tokens_total) == (2, 1800)
    assert seen.output_tokens_total == 60
    assert seen.headroom_tokens_per_second > 0 and seen.deflection_active


async def test_residents_keep_their_gaps_while_a_long_prompt_is_deflected(session: aiohttp.ClientSession) -> None:
    """By the engine's own account of its steps: chunks shrink beside residents."""
    with running_engine("decode", "--gpu", "a100-sxm", "--itl-milliseconds", "20") as decode:
        resident = asyncio.create_task(
            stream(session, decode, COMPLETIONS, {"prompt": "a", "max_tokens": 400, "ignore_eos": True} | deflected())
        )
        await until(session, decode, lambda seen: seen.decode_requests == 1)
        long = {"prompt": [1] * 8000, "max_tokens": 1, "ignore_eos": True}
        long_one = asyncio.create_task(ask(session, decode, COMPLETIONS, long | deflected()))
        mixed: list[WorkerState] = []

        async def watch() -> None:
            while not long_one.done():
                seen = await state(session, decode)
                if seen.step == "mixed":
                    mixed.append(seen)

        await watch()
        assert mixed and max(seen.step_predicted_seconds for seen in mixed) <= 0.020 * 0.85
        assert len(await resident) == 400
