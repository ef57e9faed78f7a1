"""Mixed P/D and deflected traffic for long, with everything going wrong in turn (`make engine-full`).

Twenty minutes; DUET_SOAK_MINUTES says otherwise.
"""

from __future__ import annotations

import os
import random
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from tests.support.bench_rows import Row, row
from tests.support.sglang_servers import (
    SglangServer,
    Wanted,
    ask,
    generate,
    get,
    running_servers,
    start_server,
    stop_server,
    wait_ready,
)
from tests.support.sglang_traffic import PHASES, End, Prompt, Traffic, resident_bytes

from duet_engine.protocol import WorkerState

MINUTES = float(os.environ.get("DUET_SOAK_MINUTES", "20"))
pytestmark = [
    pytest.mark.engine,
    pytest.mark.engine_full,
    pytest.mark.slow,
    pytest.mark.timeout(int(MINUTES * 60) + 900),
]
CALLERS = 6
PATIENT = {
    # A decode worker waits so long for a prefill worker that is gone; SGLang's own 300 s is no answer.
    "SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT": "20",
    "SGLANG_DISAGGREGATION_WAITING_TIMEOUT": "20",
}
LOOK_SECONDS = 5.0
SETTLE_SECONDS = 60.0
AGREE_SECONDS = 3.0
"""An idle scheduler looks up each second."""
GROWTH_BYTES = 100e6


def bank(server: SglangServer, *, seed: int) -> list[Prompt]:
    """Prompts with an ordinary server's answers."""
    chance = random.Random(seed)
    prompts = []
    for _ in range(40):
        ids = [chance.randrange(3, 512) for _ in range(chance.choice((1, 7, 40, 150, 400, 900, 1800)))]
        tokens = chance.choice((2, 8, 24, 80))
        prompts.append(Prompt(ids, tokens, generate(server, ids, tokens=tokens)["text"]))
    return prompts


@dataclass(frozen=True, slots=True)
class Pair:
    """Two workers, and what they are to answer."""

    prefill: SglangServer
    decode: SglangServer
    prompts: list[Prompt]


@pytest.fixture(scope="module")
def pair(engine_logs: Path) -> Iterator[Pair]:
    logs = engine_logs / "soak"
    logs.mkdir()
    wanted = {role: Wanted(role, environment=PATIENT) for role in ("unified", "prefill", "decode")}
    with running_servers(logs, wanted) as servers:
        prompts = bank(servers["unified"], seed=20_511)
        stop_server(servers["unified"])
        yield Pair(servers["prefill"], servers["decode"], prompts)


def state(server: SglangServer) -> WorkerState:
    return WorkerState.read(get(server, "/duet/state")[1])


@contextmanager
def drained(server: SglangServer) -> Iterator[None]:
    assert ask(server, "PUT", "/duet/drain", {"lease_seconds": 30, "requested_by": "soak"})[0] == 200
    try:
        yield
    finally:
        ask(server, "DELETE", "/duet/drain")


def trouble(traffic: Traffic, logs: Path, seconds: float) -> tuple[list[int], SglangServer]:
    """Drains and other settings every now and then; in the middle the prefill worker is killed, and another comes.

    The decode worker's memory at each look, and the second prefill worker.
    """
    began, memory, looks = time.monotonic(), [], 0
    second: SglangServer | None = None
    while (passed := time.monotonic() - began) < seconds:
        time.sleep(LOOK_SECONDS)
        memory.append(resident_bytes(traffic.decode))
        looks += 1
        assert get(traffic.decode, "/duet/live")[0] == 200
        if looks % 6 == 3:
            with drained(traffic.decode if looks % 12 == 3 else traffic.prefill):
                time.sleep(2)
        if looks % 8 == 5:
            ask(traffic.decode, "PUT", "/duet/knobs", {"generation": looks, "itl_milliseconds": 20 + looks % 5 * 30})
        if second is None and passed > seconds / 2:
            second = another_prefill_worker(traffic, logs)
    assert second is not None, "too short a time for anything to go wrong"
    return memory, second


def another_prefill_worker(traffic: Traffic, logs: Path) -> SglangServer:
    traffic.phase = PHASES[1]
    stop_server(traffic.prefill)
    second = start_server(Wanted("prefill", environment=PATIENT), logs=logs, name="prefill-again")
    wait_ready(second)
    traffic.prefill = second
    time.sleep(2 * float(PATIENT["SGLANG_DISAGGREGATION_WAITING_TIMEOUT"]))  # until nobody waits for the first one
    traffic.phase = PHASES[0]
    return second


def test_nothing_leaks_hangs_or_answers_wrongly(pair: Pair, engine_logs: Path, figures: list[Row]) -> None:
    decode = pair.decode
    traffic = Traffic(pair.prefill, decode, pair.prompts)
    # What it takes for itself when it is first used is no leak.
    with traffic.running(CALLERS, seed=1):
        time.sleep(min(30.0, MINUTES * 6))
    settle(decode)
    traffic = replace(traffic, stop=type(traffic.stop)(), ends=Counter(), examples=[])
    kv_at_start = kv_without_cache(decode)
    second = None
    try:
        with traffic.running(CALLERS, seed=100):
            memory, second = trouble(traffic, engine_logs, MINUTES * 60)
        settle(decode)
        settle(second)
    finally:
        if second is not None:
            stop_server(second)
    tell(figures, traffic, memory)
    report = "\n".join([*(f"{key}: {count}" for key, count in sorted(traffic.ends.items())), *traffic.examples])
    ends = Counter({end: sum(n for (_, _, each), n in traffic.ends.items() if each is end) for end in End})
    assert ends[End.WRONG] == ends[End.SILENT] == 0, report
    failed = {key: count for key, count in traffic.ends.items() if key[2] is End.FAILED}
    # A transfer that broke lets SGLang's prefill worker count the decode worker as dead until a probe reaches it.
    assert all(way == "pair" for _, way, _ in failed), report
    assert all(ends[end] for end in (End.ANSWERED, End.REFUSED, End.ABORTED, End.LEFT)), report
    kv_at_end = kv_without_cache(decode)
    name = f"soak of {MINUTES:g} minutes: KV that the decode worker holds at the end"
    figures.append(row(name, kv_at_end, "tokens", "at the start", kv_at_start))
    assert kv_at_end == kv_at_start
    assert statistics.median(memory[-10:]) - statistics.median(memory[:10]) < GROWTH_BYTES
    for prompt in pair.prompts[:10]:
        duet = {"gateway": "soak", "sequence": 2, "deflected": True}
        assert generate(decode, prompt.ids, tokens=prompt.tokens, duet=duet)["text"] == prompt.text


def settle(server: SglangServer) -> None:
    """Until it holds nothing."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while (left := state(server).work).total:
        assert time.monotonic() < deadline, f"{server.role} still holds {left}"
        time.sleep(0.2)


def kv_without_cache(server: SglangServer) -> int:
    """What it holds when nothing runs and nothing is cached, once two looks a while apart agree.

    SGLang keeps the KV of a transfer that broke for another half a minute, and flushes nothing in that time.
    """
    deadline = time.monotonic() + SETTLE_SECONDS
    while get(server, "/flush_cache")[0] != 200:
        assert time.monotonic() < deadline, "SGLang flushes nothing"
        time.sleep(AGREE_SECONDS)
    before = -1
    while (held := state(server).kv_used_tokens) != before:
        assert time.monotonic() < deadline, "KV comes and goes"
        before = held
        time.sleep(AGREE_SECONDS)
    return held


def tell(figures: list[Row], traffic: Traffic, memory: list[int]) -> None:
    asked = sum(traffic.ends.values())
    name = f"soak of {MINUTES:g} minutes"
    for end in End:
        count = sum(n for (_, _, each), n in traffic.ends.items() if each is end)
        figures.append(row(f"{name}: {end}", count, "requests", "all", asked))
    first, last = (statistics.median(part) / 1e6 for part in (memory[:10], memory[-10:]))
    figures.append(row(f"{name}: decode worker's memory at the end", round(last), "MB", "at the start", round(first)))
