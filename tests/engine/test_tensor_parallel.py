"""Deflection on two ranks whose clocks differ: they decide alike, or the first collective call hangs for good."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.support.bench_rows import Row, row
from tests.support.sglang_changes import with_changes
from tests.support.sglang_servers import SglangServer, Wanted, ask, generate, get, running_server, running_servers

pytestmark = [pytest.mark.engine, pytest.mark.engine_full, pytest.mark.slow, pytest.mark.timeout(900)]
DEFLECTED: dict[str, Any] = {"gateway": "g", "sequence": 1, "deflected": True}
TWO_RANKS = {
    "DUET_TENSOR_PARALLEL_SIZE": "2",
    "SGLANG_CPU_OMP_THREADS_BIND": "0|1",
    "SGLANG_NCCL_SO_PATH": "none",  # else SGLang would ask NCCL for a GPU
}
PROMPTS = 48


@pytest.fixture(scope="module")
def servers(engine_logs: Path) -> Iterator[dict[str, SglangServer]]:
    skewed = with_changes(engine_logs / "skewed", "skewed_clocks()") | TWO_RANKS
    logs = engine_logs / "ranks"
    logs.mkdir()
    wanted = {"one": Wanted("unified"), "two": Wanted("decode", environment=skewed)}
    with running_servers(logs, wanted) as started:
        yield started


def prompts(count: int, *, seed: int) -> list[list[int]]:
    chance = random.Random(seed)
    return [[chance.randrange(3, 512) for _ in range(chance.randint(1, 1000))] for _ in range(count)]


def test_two_ranks_with_clocks_that_differ_answer_as_one(servers: dict[str, SglangServer], figures: list[Row]) -> None:
    one, two = servers["one"], servers["two"]
    asked = prompts(PROMPTS, seed=3)
    expected = [generate(one, ids, tokens=12)["output_ids"] for ids in asked]

    def answer(place: int) -> Any:
        """Every sixth one is given up by the clock while others run, and comes back."""
        if place % 6 == 0:
            status, refusal = ask(
                two, "POST", "/generate", {"input_ids": asked[place], "duet": {**DEFLECTED, "chunk_budget_tokens": 0}}
            )
            assert (status, refusal["reason"]) == (503, "itl-unsafe")
        if place % 7 == 0:
            assert ask(two, "PUT", "/duet/knobs", {"generation": place + 1, "itl_milliseconds": 20 + place})[0] == 200
        return generate(two, asked[place], tokens=12, duet=DEFLECTED)["output_ids"]

    with ThreadPoolExecutor(6) as pool:
        got = list(pool.map(answer, range(PROMPTS)))
    equal = sum(mine == theirs for mine, theirs in zip(got, expected, strict=True))
    figures.append(row("two ranks, skewed clocks: answers equal, deflected", equal, "answers", "asked", PROMPTS))
    assert got == expected
    assert get(two, "/duet/live")[0] == 200


def test_ranks_that_ask_their_own_clocks_hang(engine_logs: Path) -> None:
    """The control: what the test above would find."""
    changes = with_changes(engine_logs / "clocks", "skewed_clocks()", "own_clock_decides()") | TWO_RANKS
    with running_server(Wanted("decode", environment=changes), logs=engine_logs, name="clocks") as two:
        long = random.Random(4).choices(range(3, 512), k=2000)
        body = {"input_ids": long, "sampling_params": {"max_new_tokens": 200}, "duet": DEFLECTED}
        with ThreadPoolExecutor(4) as pool:
            statuses = list(pool.map(lambda _: ask(two, "POST", "/generate", body)[0], range(4)))
    assert 0 in statuses
