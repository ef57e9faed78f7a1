"""Deflected prompts on real servers, over HTTP: a prefill and a decode worker against one ordinary server."""

from __future__ import annotations

import json
import random
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tests.support.sglang_servers import SglangServer, generate, get, through_pair

from duet_engine.protocol import Refusal, RefusalReason

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]
DEFLECTED = {"duet": {"gateway": "g", "sequence": 1, "deflected": True, "chunk_schedule_tokens": [256, 128]}}


def prompts(count: int, *, seed: int) -> list[list[int]]:
    chance = random.Random(seed)
    lengths = [chance.choice((1, 3, 17, 60, 200, 500, 1200)) for _ in range(count)]
    return [[chance.randrange(3, 512) for _ in range(length)] for length in lengths]


def refused(server: SglangServer, body: dict[str, Any]) -> tuple[int, str | None, bytes]:
    """Status, refusal header and body of a call that isn't answered with 200."""
    request = urllib.request.Request(
        f"{server.url}/generate", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=60)
    error = caught.value
    return error.code, error.headers["x-duet-refused"], error.read()


def test_the_worker_is_ready_with_all_hooks_in_force(servers: dict[str, SglangServer]) -> None:
    status, content = get(servers["decode"], "/duet/ready")
    assert status == 200, content
    info = json.loads(get(servers["decode"], "/duet/info")[1])
    hooks = {hook["target"]: hook["active"] for process in info["processes"] for hook in process["hooks"]}
    assert all(hooks.values())
    assert {"abort_request", "_create_tokenized_object"} <= {target.rsplit(".", 1)[1] for target in hooks}
    assert info["features"]["beam search"]["deflected"] != "works"
    assert "take turns" in info["features"]["output logprobs"]["mixed"]


def test_half_deflected_and_half_by_transfer_at_once_answer_as_one_plain_server(
    servers: dict[str, SglangServer],
) -> None:
    asked = prompts(24, seed=5)
    expected = [generate(servers["plain"], prompt)["output_ids"] for prompt in asked]

    def answer(place: int) -> list[int]:
        if place % 2:
            return through_pair(servers["prefill"], servers["decode"], asked[place])
        ids: list[int] = generate(servers["decode"], asked[place], **DEFLECTED)["output_ids"]
        return ids

    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(answer, range(len(asked))))
    assert got == expected
    state = json.loads(get(servers["decode"], "/duet/state")[1])
    assert state["deflected_requests_total"] >= 12
    assert state["deflected_tokens_total"] >= sum(len(prompt) for prompt in asked[::2])
    assert state["accepted"]["g"] == 1 and state["work"]["deflected"] == 0


@pytest.mark.parametrize("streamed", [False, True])
def test_a_refusal_is_a_503_with_its_reason_also_for_a_stream(servers: dict[str, SglangServer], streamed: bool) -> None:
    field = {"duet": {**DEFLECTED["duet"], "chunk_budget_tokens": 0}}
    status, reason, body = refused(servers["decode"], {"input_ids": [5, 6, 7], "stream": streamed, **field})
    assert (status, reason) == (503, "itl-unsafe"), body
    assert Refusal.read(body).reason is RefusalReason.ITL_UNSAFE


def test_what_cant_be_deflected_is_refused_by_name_and_another_role_says_so(
    servers: dict[str, SglangServer],
) -> None:
    several = {"input_ids": [5, 6, 7], "sampling_params": {"n": 2}, **DEFLECTED}
    assert refused(servers["decode"], several)[:2] == (503, "unsupported")
    assert refused(servers["prefill"], {"input_ids": [5, 6, 7], **DEFLECTED})[:2] == (503, "wrong-role")


def test_without_the_field_a_decode_worker_still_wants_a_room(servers: dict[str, SglangServer]) -> None:
    status, reason, body = refused(servers["decode"], {"input_ids": [5, 6, 7]})
    assert (status, reason) == (400, None) and b"bootstrap room" in body


def test_a_grammar_holds_in_a_deflected_answer(servers: dict[str, SglangServer]) -> None:
    sampling = {"regex": "(ba|den|fi){4}", "ignore_eos": False}
    asked = prompts(1, seed=9)[0]
    texts = [generate(servers[name], asked, sampling=sampling, **fields)["text"] for name, fields in
             (("plain", {}), ("decode", DEFLECTED))]  # fmt: skip
    assert texts[0] == texts[1] != ""


def test_a_stop_string_ends_a_deflected_answer_where_it_ends_an_ordinary_one(servers: dict[str, SglangServer]) -> None:
    asked = prompts(1, seed=10)[0]
    whole = generate(servers["plain"], asked, tokens=40)["text"]
    sampling = {"stop": [whole[len(whole) // 2 :][:3]]}
    texts = [generate(servers[name], asked, tokens=40, sampling=sampling, **fields)["text"] for name, fields in
             (("plain", {}), ("decode", DEFLECTED))]  # fmt: skip
    assert texts[0] == texts[1] and len(texts[0]) < len(whole)


def test_output_logprobs_are_a_plain_servers_and_prompt_logprobs_are_refused(
    servers: dict[str, SglangServer],
) -> None:
    asked = prompts(3, seed=11)[-1]
    answers = [generate(servers[name], asked, return_logprob=True, **more)["meta_info"]["output_token_logprobs"]
               for name, more in (("plain", {}), ("decode", DEFLECTED))]  # fmt: skip
    values = [[value for value, *_ in answer] for answer in answers]
    assert values[0] == pytest.approx(values[1], abs=1e-3) and values[0]
    body = {"input_ids": asked, "return_logprob": True, "logprob_start_len": 0, **DEFLECTED}
    assert refused(servers["decode"], body)[:2] == (503, "unsupported")
