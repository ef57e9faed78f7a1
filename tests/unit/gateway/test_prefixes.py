"""A follow-up turn goes where its conversation's KV is, when that is faster."""

import asyncio
import json
from time import monotonic
from typing import Any

import pytest
from tests.support import documents

from duet_engine.gateway import routing
from duet_engine.gateway.assignment import Assignment
from duet_engine.gateway.discovery import Member
from duet_engine.gateway.live_settings import LiveSettings
from duet_engine.gateway.requests import CHAT_COMPLETIONS, COMPLETIONS, GENERATE, ClientRequest, parse
from duet_engine.gateway.routing import Dispatcher
from duet_engine.gateway.settings import Limits
from duet_engine.gateway.workers import Workers
from duet_engine.policy.dispatch import LOOK_AHEAD_PROMPTS
from duet_engine.protocol import Role, WorkerInfo, WorkerState

TOKENS = 3000


def request(path: str = COMPLETIONS, **fields: Any) -> ClientRequest:
    return parse(path, json.dumps(fields).encode(), model_names=())


def turn(*messages: str) -> ClientRequest:
    return request(CHAT_COMPLETIONS, messages=[{"role": "user", "content": message * 300} for message in messages])


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [
        (turn("hello "), turn("hello ", "again "), True),
        (turn("hello "), turn("other ", "hello "), False),
        (request(prompt="a" * 5000), request(prompt="a" * 5000 + "b" * 9000), True),
        (request(prompt=list(range(900))), request(GENERATE, input_ids=list(range(1900))), True),
        (request(GENERATE, text="a" * 5000), request(prompt="a" * 5000), True),
        (request(prompt=list(range(900))), request(prompt=list(range(1, 900))), False),
    ],
    ids=["next turn", "other beginning", "longer text", "tokens", "same text elsewhere", "shifted tokens"],
)
def test_prompts_that_begin_alike_share_blocks(first: ClientRequest, second: ClientRequest, shared: bool) -> None:
    alike = [one == other for one, other in zip(first.prefix_blocks, second.prefix_blocks, strict=False)]
    assert len(alike) > 2
    assert alike[:2] == [shared] * 2
    assert any(alike) is shared


def worker_set(*, keeps_prefixes: bool, kv_capacity_tokens: int = 400_000) -> Workers:
    workers = Workers("g")
    roles = {"p0": Role.PREFILL, "p1": Role.PREFILL, "p2": Role.PREFILL, "d": Role.DECODE}
    come, _ = workers.update(
        [Member(uid=name, name=name, url="http://127.0.0.1:1", role=role) for name, role in roles.items()]
    )
    for worker in come:
        role = worker.member.role
        profile = documents.profile(role=role, kv_capacity_tokens=kv_capacity_tokens)
        worker.describe(
            WorkerInfo(worker=worker.name, role=role, profile=profile, prefix_cache=keeps_prefixes and role != "decode")
        )
        worker.heard(WorkerState(worker=worker.name, role=role, ready=True), monotonic())
    return workers


async def assigned(dispatcher: Dispatcher, asked: ClientRequest) -> Assignment:
    async with asyncio.timeout(10):
        found = await dispatcher.assign(asked, prompt_tokens=TOKENS, arrived_at=monotonic(), excluded_until={})
    found.release()
    return found


def dispatcher_of(workers: Workers) -> Dispatcher:
    return Dispatcher(workers, live=LiveSettings, limits=Limits(), window_seconds=lambda: 0.5)


async def test_a_conversation_stays_with_its_worker_until_that_is_gone() -> None:
    workers = worker_set(keeps_prefixes=True)
    dispatcher = dispatcher_of(workers)
    first = await assigned(dispatcher, turn("hello "))
    assert first.prefill is not None and first.prefill_work is not None
    assert first.prefill_work.prompt_tokens == TOKENS
    for _ in range(4):
        again = await assigned(dispatcher, turn("hello ", "again "))
        assert again.prefill is first.prefill
        assert again.prefill_work is not None
        assert again.prefill_work.prompt_tokens < 0.7 * TOKENS, "the rest is warm"
        assert again.decode_work.prompt_tokens == TOKENS, "its KV is needed whole where it's decoded"
    dispatcher.forget(first.prefill)
    cold = await assigned(dispatcher, turn("hello ", "again "))
    assert cold.prefill is not first.prefill


async def test_a_prefix_that_later_prompts_have_pushed_out_is_cold_again() -> None:
    dispatcher = dispatcher_of(worker_set(keeps_prefixes=True, kv_capacity_tokens=4 * TOKENS))
    await assigned(dispatcher, turn("hello "))
    for number in range(24):
        await assigned(dispatcher, turn(f"{number} is another "))
    cold = await assigned(dispatcher, turn("hello ", "again "))
    assert cold.prefill_work is not None
    assert cold.prefill_work.prompt_tokens == TOKENS


def test_an_empty_prompt_has_no_blocks() -> None:
    assert request(GENERATE, text="").prefix_blocks == ()


async def test_workers_that_keep_nothing_take_turns() -> None:
    dispatcher = dispatcher_of(worker_set(keeps_prefixes=False))
    taken = [(await assigned(dispatcher, turn("hello "))).prefill for _ in range(3)]
    assert len({worker.name for worker in taken if worker}) == 3


async def test_a_burst_leaves_as_fast_as_it_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pause between passes is for prompts that must wait."""
    monkeypatch.setattr(routing, "SHORTEST_PAUSE_SECONDS", 60.0)
    dispatcher, asked = dispatcher_of(worker_set(keeps_prefixes=False)), request(prompt="a")
    burst = [
        dispatcher.assign(asked, prompt_tokens=1, arrived_at=monotonic(), excluded_until={})
        for _ in range(LOOK_AHEAD_PROMPTS + 8)
    ]
    async with asyncio.timeout(20):
        await asyncio.gather(*burst)
