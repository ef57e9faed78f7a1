"""What the plugin takes of a decode step in a real scheduler (`make engine-full`)."""

from __future__ import annotations

import json
import random
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.support.bench_rows import Row, row
from tests.support.sglang_changes import with_changes
from tests.support.sglang_servers import Wanted, ask, generate, running_server

pytestmark = [pytest.mark.engine, pytest.mark.engine_full, pytest.mark.slow, pytest.mark.timeout(600)]
RESIDENTS, TOKENS = 16, 1200
SETTLING = 50
"""Steps that still load this and that."""
PROMPTS, PROMPT_TOKENS = 24, 900
LIMIT_MICROSECONDS = 20.0
ROOM = ("--max-total-tokens", "65536")
PATIENT = {"generation": 1, "itl_milliseconds": 10_000, "chunk_candidates_tokens": [128]}
DEFLECTED = {"duet": {"gateway": "g", "sequence": 1, "deflected": True}}
chance = random.Random(20_511)


def prompt(tokens: int) -> list[int]:
    return [chance.randrange(3, 512) for _ in range(tokens)]


def test_a_decode_step_costs_twenty_microseconds_of_hooks_at_most(engine_logs: Path, figures: list[Row]) -> None:
    """Half of the steps at least: others lose the core to somebody else, or find their caches cold."""
    spent = engine_logs / "hooks.json"
    timed = with_changes(engine_logs / "timed", f"timed_hooks({str(spent)!r})")
    with (
        running_server(Wanted("decode", ROOM, environment=timed), logs=engine_logs, name="timed") as server,
        ThreadPoolExecutor(RESIDENTS) as pool,
    ):
        assert ask(server, "PUT", "/duet/knobs", PATIENT)[0] == 200
        residents = [pool.submit(generate, server, prompt(20), tokens=TOKENS, **DEFLECTED) for _ in range(RESIDENTS)]
        for _ in range(PROMPTS):
            generate(server, prompt(PROMPT_TOKENS), tokens=1, **DEFLECTED)
        for resident in residents:
            resident.result()
    steps = {kind: found[SETTLING:] for kind, found in json.loads(spent.read_text()).items()}
    assert len(steps["decode"]) > TOKENS / 2 and steps["mixed"]
    for kind, what in (("decode", "a decode step"), ("mixed", "a step of prompts and residents, its choice with it")):
        name = f"all hooks in {what}, {RESIDENTS} requests on a real server"
        ninth = statistics.quantiles(steps[kind], n=10)[8]
        for part, value in (("median", statistics.median(steps[kind])), ("nine of ten", ninth)):
            figures.append(row(f"{name}, {part}", round(value, 1), "µs", "limit", LIMIT_MICROSECONDS))
    assert statistics.median(steps["decode"]) <= LIMIT_MICROSECONDS
