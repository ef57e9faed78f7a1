"""Deflected prompts on SGLang's own decode scheduler, against its ordinary one: equal tokens, and nothing left behind.

One process for each of the two; what happens is a script, so each run is the same.
"""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pytest
from tests.support.sglang_scheduler import play_each, running_scheduler
from tests.support.sglang_servers import SglangServer

from duet_engine.protocol import Refusal, RefusalReason

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]
CAPACITY_TOKENS, MOST_RUNNING = 16384, 64
chance = random.Random(20_511)


def prompt(tokens: int) -> list[int]:
    return [chance.randrange(3, 512) for _ in range(tokens)]


def request(rid: str, length: int, **fields: Any) -> dict[str, Any]:
    return {"rid": rid, "ids": prompt(length), **fields}


def seeded(seed: int) -> dict[str, Any]:
    return {"temperature": 0.8, "top_k": 50, "sampling_seed": seed}


LENGTHS = [1, 2, 5, 17, 64, 130, 300, 511, 513, 900, 1500, 2000]
MIXTURE = [
    request(f"mixture-{number:02d}", length, tokens=8 + number % 9, sampling=seeded(number) if number % 2 else {})
    for number, length in enumerate([*LENGTHS, *LENGTHS])
]
RESIDENTS = [request(f"resident-{number:02d}", 5, tokens=48) for number in range(40)]
LONG = request("long", 1200, tokens=4)
LOGPROBS = [request(f"logprobs-{number}", 20, tokens=40, logprobs=True) for number in range(3)]
LONG_AMONG_LOGPROBS = request("long-among-logprobs", 1500, tokens=4)
PAUSED = [request(f"paused-{number}", 40, tokens=30) for number in range(3)]
PAUSED_LONG = request("paused-long", 1500, tokens=5)

SCENARIOS: dict[str, list[dict[str, Any]]] = {
    "mixture": [{"submit": MIXTURE[:12]}, *({"turns": 2, "submit": [each]} for each in MIXTURE[12:])],
    "residents": [{"submit": RESIDENTS}, {"after": {"resident-39": 3}, "submit": [LONG]}],
    "logprobs": [{"submit": LOGPROBS}, {"after": {"logprobs-2": 3}, "submit": [LONG_AMONG_LOGPROBS]}],
    "pause": [
        {"submit": PAUSED},
        {"after": {"paused-2": 4}, "submit": [PAUSED_LONG]},
        {"turns": 2, "pause": "retract"},
        {"turns": 3, "flush": True},
        {"continue": True},
    ],
}
DEFLECTED_ONLY: dict[str, list[dict[str, Any]]] = {
    "aborts": [
        {"submit": [request("running", 20, tokens=500), request("cut", 2000), request("waits", 1000)]},
        {"after": {"running": 2}, "idle": True, "busy_for_health_check": True, "queue": True, "flush": True},
        {"abort": "waits"},
        {"abort": "cut"},
        {"abort": "running"},
    ],
    "no budget": [
        {"submit": [request("stays", 20, tokens=2000), request("none", 100, dispatch={"chunk_budget_tokens": 0})]},
        {"after": {"stays": 3}, "turns": 1, "queue": True, "busy_for_health_check": True},
    ],
    "joining": [
        {"submit": [request(f"beside-{number:02d}", 5, tokens=60) for number in range(30)]},
        {"after": {"beside-29": 3}, "submit": [request("slowly", 1500, tokens=2)]},
        {"turns": 2, "submit": [request("transferred", 30, tokens=3, without_kv=True)]},
    ],
    "no room": [{"submit": [request(f"big-{number}", 7000, tokens=600) for number in range(3)]}],
    "without KV": [
        {"submit": [{**each, "rid": f"control-{each['rid']}", "without_kv": True} for each in MIXTURE[4:12]]}
    ],
    "full house": [
        {
            "knobs": {"itl_milliseconds": 100, "chunk_candidates_tokens": [64, 32]},
            "submit": [request(f"seat-{number:02d}", 5, tokens=40) for number in range(MOST_RUNNING - 1)],
        },
        {"after": {f"seat-{MOST_RUNNING - 2}": 3}, "submit": [request("takes-the-last", 1500, tokens=2)]},
        {"turns": 2, "submit": [request(f"stands-{number}", 30, tokens=3, without_kv=True) for number in range(2)]},
    ],
}


Played = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def played(starting: dict[str, SglangServer]) -> tuple[Played, Played]:
    """On an ordinary server's scheduler, and on a decode worker's; side by side, and beside the start of servers."""
    with running_scheduler(mode="plain") as ordinary, running_scheduler() as decoding, ThreadPoolExecutor(2) as pool:
        plain = pool.submit(play_each, ordinary, SCENARIOS)
        deflected = pool.submit(play_each, decoding, SCENARIOS | DEFLECTED_ONLY)
        return plain.result(), deflected.result()


@pytest.fixture(scope="module")
def plain(played: tuple[Played, Played]) -> Played:
    return played[0]


@pytest.fixture(scope="module")
def deflected(played: tuple[Played, Played]) -> Played:
    return played[1]


@pytest.mark.parametrize("name", SCENARIOS)
def test_outputs_are_a_plain_servers(
    plain: dict[str, dict[str, Any]], deflected: dict[str, dict[str, Any]], name: str
) -> None:
    expected, got = plain[name]["tokens"], deflected[name]["tokens"]
    assert got == expected
    assert len({tuple(tokens) for tokens in expected.values()}) == len(expected)


def test_outputs_without_the_prompts_kv_differ(
    plain: dict[str, dict[str, Any]], deflected: dict[str, dict[str, Any]]
) -> None:
    """The control: if equality came of itself, these would be equal too."""
    control = deflected["without KV"]["tokens"]
    equal = [
        rid for rid, tokens in control.items() if tokens == plain["mixture"]["tokens"][rid.removeprefix("control-")]
    ]
    assert len(control) == 8 and equal == []


@pytest.mark.parametrize("name", [*SCENARIOS, *DEFLECTED_ONLY])
def test_nothing_is_left_behind(deflected: dict[str, dict[str, Any]], name: str) -> None:
    result = deflected[name]
    assert result["idle"]
    assert result["free_tokens"] == CAPACITY_TOKENS
    assert result["free_rows"] == max(each["free_rows"] for each in deflected.values())


def test_chunks_beside_many_residents_stay_whole(deflected: dict[str, dict[str, Any]]) -> None:
    """SGLang takes 40 tokens off a chunk of 32: without the residents added back it would be one of -8."""
    mixed = [(rows, tokens) for kind, rows, tokens in deflected["residents"]["steps"] if kind == "MIXED"]
    chunks = [tokens - (rows - 1) for rows, tokens in mixed if rows > 30]
    assert chunks and set(chunks) <= {32, 64, 128, 1200 % 32}


def test_a_transferred_request_joins_between_two_chunks(deflected: dict[str, dict[str, Any]]) -> None:
    """SGLang's own loop lets none join while a prompt is cut: they'd wait for the end of the longest prompt."""
    times = deflected["joining"]["times"]
    assert len(times["transferred"]) == 3
    assert times["transferred"][-1] < times["slowly"][0]


def test_no_step_holds_more_requests_than_may_run(deflected: dict[str, dict[str, Any]]) -> None:
    """SGLang's own loop counts no prompt that is cut; one transferred request too many would end the scheduler."""
    result = deflected["full house"]
    assert max(rows for _, rows, _ in result["steps"]) == MOST_RUNNING
    assert [len(result["tokens"][f"stands-{number}"]) for number in range(2)] == [3, 3]


def test_residents_that_cant_mix_take_turns_with_chunks(deflected: dict[str, dict[str, Any]]) -> None:
    steps = [kind for kind, _, _ in deflected["logprobs"]["steps"]]
    first, last = steps.index("DECODE"), len(steps) - steps[::-1].index("EXTEND")
    assert steps[first:last].count("EXTEND") >= 3
    assert ("EXTEND", "EXTEND") not in list(pairwise(steps[first:last]))


def test_deflected_requests_are_seen_by_idle_and_health_checks_queue_counts_and_flushes(
    deflected: dict[str, dict[str, Any]],
) -> None:
    flushed, idle, busy, queued = deflected["aborts"]["notes"]
    assert (flushed, idle, busy) == (False, False, True)
    assert queued >= 1


def test_aborts_end_requests_wherever_they_are(deflected: dict[str, dict[str, Any]]) -> None:
    ended = deflected["aborts"]["ended"]
    assert {rid: reason["type"] for rid, reason in ended.items()} == dict.fromkeys(("running", "cut", "waits"), "abort")


def test_a_chunk_budget_of_zero_waits_and_is_refused_by_name(deflected: dict[str, dict[str, Any]]) -> None:
    result = deflected["no budget"]
    assert refusal_of(result["ended"]["none"]).reason is RefusalReason.ITL_UNSAFE
    assert len(result["tokens"]["stays"]) == 2000 and "none" not in result["tokens"]


def test_what_doesnt_fit_is_refused_at_once_and_the_rest_is_served(deflected: dict[str, dict[str, Any]]) -> None:
    result = deflected["no room"]
    assert refusal_of(result["ended"]["big-2"]).reason is RefusalReason.NO_KV
    assert [len(result["tokens"][f"big-{number}"]) for number in range(2)] == [600, 600]


def refusal_of(finish_reason: dict[str, Any]) -> Refusal:
    assert finish_reason["status_code"] == 503
    return Refusal.read(json.dumps(json.loads(finish_reason["message"])))
