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
from tests.support.sglang_servers import Wanted, generate, running_server

pytestmark = [pytest.mark.engine, pytest.mark.engine_full, pytest.mark.slow, pytest.mark.timeout(600)]
RESIDENTS, TOKENS = 16, 1200
SETTLING = 50
"""Steps that still load this and that."""
LIMIT_MICROSECONDS = 20.0
ROOM = ("--max-total-tokens", "65536")
DEFLECTED = {"duet": {"gateway": "g", "sequence": 1, "deflected": True}}
chance = random.Random(20_511)


def test_a_decode_step_costs_twenty_microseconds_of_hooks_at_most(engine_logs: Path, figures: list[Row]) -> None:
    """Half of the steps at least: others lose the core to somebody else, or find their caches cold."""
    spent = engine_logs / "hooks.json"
    timed = with_changes(engine_logs / "timed", f"timed_hooks({str(spent)!r})")
    with (
        running_server(Wanted("decode", ROOM, environment=timed), logs=engine_logs, name="timed") as server,
        ThreadPoolExecutor(RESIDENTS) as pool,
    ):
        prompts = [[chance.randrange(3, 512) for _ in range(20)] for _ in range(RESIDENTS)]
        list(pool.map(lambda ids: generate(server, ids, tokens=TOKENS, **DEFLECTED), prompts))
    steps = json.loads(spent.read_text())["decode"][SETTLING:]
    assert len(steps) > TOKENS / 2
    name = f"all hooks in a decode step, {RESIDENTS} requests on a real server"
    for what, value in (("median", statistics.median(steps)), ("nine of ten", statistics.quantiles(steps, n=10)[8])):
        figures.append(row(f"{name}, {what}", round(value, 1), "µs", "limit", LIMIT_MICROSECONDS))
    assert statistics.median(steps) <= LIMIT_MICROSECONDS
