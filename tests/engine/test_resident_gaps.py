"""What residents feel of a 2,000-token prompt that is deflected to their worker (`make engine-full`).

SGLang's scheduler on the CPU, fed by a script. The model that makes chunks safe is measured in the same run: a decode
step, and the one big chunk's time for each of its tokens.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tests.support.bench_rows import Row, row
from tests.support.sglang_scheduler import SchedulerProcess, running_scheduler

pytestmark = [pytest.mark.engine, pytest.mark.engine_full, pytest.mark.slow, pytest.mark.timeout(600)]
RESIDENTS, RESIDENT_TOKENS, UNDISTURBED_TOKENS = 8, 220, 100
LONG_TOKENS = 2000
ROUNDS = 5
STEPS_BEARABLE = 3
"""The objective is so many decode steps long."""
BETA = 0.85
EVERYTHING_SAFE = {"prefill_base_seconds": 1e-6, "prefill_per_token_seconds": 1e-9, "decode_base_seconds": 1e-6}
ONE_CHUNK = {"itl_milliseconds": 100_000, "chunk_candidates_tokens": [2048]}
chance = random.Random(20_511)


def gaps(
    scheduler: SchedulerProcess, name: str, knobs: Mapping[str, Any], steps: Mapping[str, float]
) -> tuple[list[float], list[float], set[int]]:
    """Residents' seconds between tokens, without the long prompt and while it was computed; sizes of its chunks."""
    alone: list[float] = []
    beside: list[float] = []
    chunks: set[int] = set()
    for number in range(ROUNDS):
        rids = [f"{name}-{number}-{resident}" for resident in range(RESIDENTS)]
        long = f"{name}-{number}-long"
        residents = [{"rid": rid, "ids": prompt(16), "tokens": RESIDENT_TOKENS} for rid in rids]
        disturbance = {"rid": long, "ids": prompt(LONG_TOKENS), "tokens": 2}
        result = scheduler.play(
            [
                {"knobs": knobs, "steps": steps, "submit": residents},
                {"after": {rids[-1]: UNDISTURBED_TOKENS}, "submit": [disturbance]},
            ]
        )
        times: dict[str, list[float]] = result["times"]
        comes, ends = times[rids[-1]][UNDISTURBED_TOKENS - 1], times[long][0]
        for rid in rids:
            for earlier, later in pairwise(times[rid][10:]):
                if later <= comes:
                    alone.append(later - earlier)
                elif earlier < ends:
                    beside.append(later - earlier)
        chunks |= {tokens - RESIDENTS for kind, rows, tokens in result["steps"] if kind == "MIXED" and rows > RESIDENTS}
    return alone, beside, chunks


def prompt(tokens: int) -> list[int]:
    return [chance.randrange(3, 512) for _ in range(tokens)]


def milliseconds_p99(seconds: list[float]) -> float:
    return round(statistics.quantiles(seconds, n=100)[98] * 1e3, 1)


def test_safe_chunks_keep_the_objective_that_one_big_chunk_breaks(engine_logs: Path, figures: list[Row]) -> None:
    with running_scheduler("--chunked-prefill-size", "2048") as scheduler:
        gaps(scheduler, "warm", ONE_CHUNK, EVERYTHING_SAFE)
        alone, big, big_chunks = gaps(scheduler, "big", ONE_CHUNK, EVERYTHING_SAFE)
        step_seconds = statistics.median(alone)
        token_seconds = (statistics.median(sorted(big)[-ROUNDS * RESIDENTS :]) - step_seconds) / LONG_TOKENS
        measured = {
            "prefill_base_seconds": step_seconds,
            "prefill_per_token_seconds": max(token_seconds, 1e-6),
            "decode_base_seconds": step_seconds,
        }
        objective = round(step_seconds * STEPS_BEARABLE / BETA * 1e3) + 1
        knobs = {"itl_milliseconds": objective, "chunk_candidates_tokens": [2048, 1024, 512, 256, 128, 64, 32]}
        alone_again, safe, safe_chunks = gaps(scheduler, "safe", knobs, measured)
    assert max(big_chunks) == LONG_TOKENS and max(safe_chunks) < LONG_TOKENS
    name, unit = f"ITL P99 of {RESIDENTS} residents beside a {LONG_TOKENS}-token prompt", "ms"
    figures.extend(
        (
            row(f"{name}, one chunk", milliseconds_p99(big), unit, "alone", milliseconds_p99(alone)),
            row(f"{name}, safe chunks", milliseconds_p99(safe), unit, "alone", milliseconds_p99(alone_again)),
            row(
                f"{name}, safe chunks (of {max(safe_chunks)} at most)",
                milliseconds_p99(safe),
                unit,
                "objective",
                objective,
            ),
        )
    )
    assert milliseconds_p99(safe) < milliseconds_p99(big) / 1.5
