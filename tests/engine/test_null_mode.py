"""A decode worker that prefills everything itself against an ordinary server with equal flags (`make engine-full`)."""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.support.bench_rows import Row, row
from tests.support.sglang_scheduler import play_all
from tests.support.sglang_servers import SglangServer, Wanted, ask, generate, get, post, running_servers

pytestmark = [pytest.mark.engine, pytest.mark.engine_full, pytest.mark.slow, pytest.mark.timeout(900)]
ROUNDS, REQUESTS, AT_ONCE = 5, 64, 16
LEAST_RATIO = 0.97
OPTIONS = (
    *("--enable-mixed-chunk", "--chunked-prefill-size", "512"),
    *("--max-total-tokens", "65536", "--num-reserved-decode-tokens", "64"),
)
ALL_THE_TIME = {"itl_milliseconds": 600_000, "chunk_candidates_tokens": [512, 256, 128]}
"""With all the time in the world every chunk is as large as an ordinary server's."""
EQUAL_FLAGS = (
    *("chunked_prefill_size", "enable_mixed_chunk", "disable_radix_cache", "max_prefill_tokens", "page_size"),
    *("max_running_requests", "max_total_num_tokens", "schedule_policy", "disable_overlap_schedule", "dtype"),
    *("attention_backend", "sampling_backend", "enable_priority_scheduling", "cuda_graph_config"),
)
DEFLECTED = {"duet": {"gateway": "g", "sequence": 1, "deflected": True}}
chance = random.Random(20_511)


@pytest.fixture(scope="module")
def servers(engine_logs: Path) -> Iterator[dict[str, SglangServer]]:
    logs = engine_logs / "null"
    logs.mkdir()
    wanted = {
        name: Wanted(role, OPTIONS, environment={"DUET_DEFLECTED_REQUESTS_LIMIT": "512"})
        for name, role in (("null", "unified"), ("decode", "decode"))
    }
    with running_servers(logs, wanted) as started:
        assert ask(started["decode"], "PUT", "/duet/knobs", {"generation": 1, **ALL_THE_TIME})[0] == 200
        yield started


def asked(count: int) -> list[tuple[list[int], int]]:
    """Prompts, and how many tokens each is to be answered with."""
    lengths = [chance.choice((5, 60, 200, 450, 900)) for _ in range(count)]
    return [([chance.randrange(3, 512) for _ in range(length)], chance.randint(8, 40)) for length in lengths]


def answer(server: SglangServer, one: tuple[list[int], int]) -> Any:
    fields = DEFLECTED if server.role == "decode" else {}
    return generate(server, one[0], tokens=one[1], **fields)["output_ids"]


def test_a_decode_worker_has_what_an_ordinary_server_has(servers: dict[str, SglangServer]) -> None:
    null, decode = (json.loads(get(servers[name], "/server_info")[1]) for name in ("null", "decode"))
    assert {flag: decode[flag] for flag in EQUAL_FLAGS} == {flag: null[flag] for flag in EQUAL_FLAGS}


def test_requests_that_all_wait_are_run_in_the_same_steps(engine_logs: Path, figures: list[Row]) -> None:
    """On schedulers without HTTP before them, where all of a pause's requests arrive before the first of them runs.

    Without overlap: with it SGLang's ordinary loop spares a request that ends one useless row, its decode loop doesn't.
    """
    wanted = [
        {"rid": f"queued-{place:02d}", "ids": ids, "tokens": tokens} for place, (ids, tokens) in enumerate(asked(40))
    ]
    scenario = {"queued": [{"pause": "in_place"}, {"submit": wanted}, {"turns": 3, "continue": True}]}
    options = ("--enable-mixed-chunk", "--max-total-tokens", "65536", "--disable-overlap-schedule")
    null, decode = (
        play_all(scenario, *options, mode=mode, knobs=ALL_THE_TIME)["queued"]["steps"] for mode in ("plain", "decode")
    )
    same = sum(mine == theirs for mine, theirs in zip(decode, null, strict=False))
    figures.append(row("steps equal, all deflected, 40 requests queued", same, "steps", "null mode", len(null)))
    assert decode == null
    assert {kind for kind, *_ in null} == {"EXTEND", "MIXED", "DECODE"}


def test_throughput_is_an_ordinary_servers(servers: dict[str, SglangServer], figures: list[Row]) -> None:
    """Each round begins with an empty cache: SGLang sorts a decode-mode server's free KV, so a full one is dearer."""
    ratios: list[float] = []
    for number in range(ROUNDS + 1):
        wanted, seconds = asked(REQUESTS), {}
        for server in servers.values():
            post(server, "/flush_cache")
        order = ["null", "decode"] if number % 2 else ["decode", "null"]
        for name in order:
            began = time.perf_counter()
            with ThreadPoolExecutor(AT_ONCE) as pool:
                list(pool.map(lambda one, name=name: answer(servers[name], one), wanted))
            seconds[name] = time.perf_counter() - began
        if number:  # the first warms both up
            ratios.append(seconds["null"] / seconds["decode"])
    median = statistics.median(ratios)
    figures.append(
        row("throughput, all deflected, median of 5 runs", round(median, 3), "of null mode's", "at least", LEAST_RATIO)
    )
    for which, ratio in (("worst", min(ratios)), ("best", max(ratios))):
        figures.append(row(f"throughput, all deflected, {which} of 5 runs", round(ratio, 3), "of null mode's"))
    assert median >= LEAST_RATIO, ratios
