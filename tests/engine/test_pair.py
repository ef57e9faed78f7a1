"""The environment itself: a prefill and a decode server of a tiny model answer as one ordinary server does."""

from __future__ import annotations

import random

import pytest
from tests.support.sglang_servers import SglangServer, ask, generate, through_pair

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]


def prompts(lengths: tuple[int, ...], *, seed: int) -> list[list[int]]:
    chance = random.Random(seed)
    return [[chance.randrange(3, 512) for _ in range(length)] for length in lengths]


def test_a_pair_answers_as_one_server(plain: SglangServer, prefill: SglangServer, decode: SglangServer) -> None:
    asked = prompts((5, 40, 300), seed=3)
    expected = [generate(plain, prompt)["output_ids"] for prompt in asked]
    assert len({tuple(answer) for answer in expected}) == len(asked), "the tiny model answers everything alike"
    got = [through_pair(prefill, decode, prompt) for prompt in asked]
    assert got == expected


def test_with_another_prompts_kv_the_answer_is_another(
    plain: SglangServer, prefill: SglangServer, decode: SglangServer
) -> None:
    """The control: equality above says something only if wrong KV shows."""
    asked, another = prompts((40, 40), seed=4)
    answer = through_pair(prefill, decode, asked, prefilled=another)
    assert answer != generate(plain, asked)["output_ids"]


def test_nobody_may_say_that_kv_needs_no_prefill(decode: SglangServer) -> None:
    """SGLang would decode from KV that nobody filled: it keeps that address for its own health check."""
    body = {"input_ids": [5, 6, 7], "bootstrap_host": "2.2.2.2", "bootstrap_room": 7}
    status, answer = ask(decode, "POST", "/generate", body)
    assert (status, "bootstrap_host" in answer["message"]) == (400, True)
