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
from tests.support.sglang_servers import SglangServer, Wanted, ask, generate, get, post, running_servers

from duet_engine.protocol import WorkerState
from duet_engine.step_log import StepLogEntry, read_step_log

pytestmark = [pytest.mark.engine, pytest.mark.engine_full, pytest.mark.slow, pytest.mark.timeout(900)]
ROUNDS, REQUESTS, AT_ONCE = 5, 64, 16
LEAST_RATIO = 0.97
OPTIONS = (
    *("--enable-mixed-chunk", "--chunked-prefill-size", "512"),
    *("--max-total-tokens", "65536", "--num-reserved-decode-tokens", "64"),
)
ENDLESS = {"generation": 1, "itl_milliseconds": 600_000, "chunk_candidates_tokens": [512, 256, 128]}
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
        name: Wanted(
            role, OPTIONS, environment={"DUET_STEP_LOG": f"{logs}/{name}.steps", "DUET_DEFLECTED_REQUESTS_LIMIT": "512"}
        )
        for name, role in (("null", "unified"), ("decode", "decode"))
    }
    with running_servers(logs, wanted) as started:
        assert ask(started["decode"], "PUT", "/duet/knobs", ENDLESS)[0] == 200
        yield started


def asked(count: int) -> list[tuple[list[int], int]]:
    """Prompts, and how many tokens each is to be answered with."""
    lengths = [chance.choice((5, 60, 200, 450, 900)) for _ in range(count)]
    return [([chance.randrange(3, 512) for _ in range(length)], chance.randint(8, 40)) for length in lengths]


def answer(server: SglangServer, one: tuple[list[int], int]) -> Any:
    fields = DEFLECTED if server.role == "decode" else {}
    return generate(server, one[0], tokens=one[1], **fields)["output_ids"]


def until_queued(server: SglangServer, count: int) -> None:
    deadline = time.monotonic() + 30
    while (work := WorkerState.read(get(server, "/duet/state")[1]).work).total < count or work.running:
        assert time.monotonic() < deadline, f"{count} requests should wait: {work}"
        time.sleep(0.01)


def steps_of(server: SglangServer, logs: Path, name: str, wanted: list[tuple[list[int], int]]) -> list[StepLogEntry]:
    """The steps of requests that all wait, in this order, before the first of them runs."""
    post(server, "/flush_cache")
    log = logs / f"{name}.steps"
    before = len(log.read_text().splitlines())
    post(server, "/pause_generation", {"mode": "in_place"})
    with ThreadPoolExecutor(len(wanted)) as pool:
        answers = []
        for count, one in enumerate(wanted, 1):
            answers.append(pool.submit(answer, server, one))
            until_queued(server, count)
        post(server, "/continue_generation")
        for each in answers:
            each.result()
    until_queued(server, 0)
    time.sleep(0.2)  # an idle scheduler writes what it still has
    head, *lines = log.read_text().splitlines()
    return list(read_step_log([head, *lines[before - 1 :]], name=name)[1])


def test_a_decode_worker_has_what_an_ordinary_server_has(servers: dict[str, SglangServer]) -> None:
    null, decode = (json.loads(get(servers[name], "/server_info")[1]) for name in ("null", "decode"))
    assert {flag: decode[flag] for flag in EQUAL_FLAGS} == {flag: null[flag] for flag in EQUAL_FLAGS}


def test_requests_that_all_wait_are_run_in_the_same_steps(
    servers: dict[str, SglangServer], engine_logs: Path, figures: list[Row]
) -> None:
    wanted = asked(40)
    null, decode = (
        [
            (step.kind, step.decode_rows, step.decode_context_tokens, step.prefill_rows, step.prefill_tokens)
            for step in steps_of(servers[name], engine_logs / "null", name, wanted)
        ]
        for name in ("null", "decode")
    )
    same = sum(mine == theirs for mine, theirs in zip(decode, null, strict=False))
    figures.append(row("steps equal, all deflected, 40 requests queued", same, "steps", "null mode", len(null)))
    assert decode == null
    assert len({kind for kind, *_ in null}) == 3, "no mixture"


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
