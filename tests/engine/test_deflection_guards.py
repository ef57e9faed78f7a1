"""What SGLang would do to deflected requests without the plugin's guards (`make engine-full`)."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from tests.support.sglang_scheduler import SchedulerDied, running_scheduler

pytestmark = [pytest.mark.engine, pytest.mark.engine_full, pytest.mark.slow, pytest.mark.timeout(1200)]


def prompts(count: int, longest: int, *, seed: int) -> list[list[int]]:
    chance = random.Random(seed)
    return [[chance.randrange(3, 512) for _ in range(chance.randint(1, longest))] for _ in range(count)]


def asked(name: str, wanted: list[list[int]], *, tokens: int = 8) -> list[dict[str, Any]]:
    """Every other one greedily, the rest by seed."""
    by_seed = {"temperature": 0.9, "top_k": 40}
    return [
        {
            "rid": f"{name}-{place:03d}",
            "ids": ids,
            "tokens": tokens,
            "sampling": {**by_seed, "sampling_seed": place} if place % 2 else {},
        }
        for place, ids in enumerate(wanted)
    ]


def test_a_pause_loses_deflected_requests_without_its_guard(engine_logs: Path) -> None:
    """SGLang sends what it retracts to the prefill worker that it came from; these came from none."""
    running = asked("paused", prompts(3, 60, seed=11), tokens=30)
    events = [
        {"submit": running},
        {"after": {"paused-002": 4}, "pause": "retract"},
        {"turns": 3, "continue": True},
    ]
    with running_scheduler() as scheduler:
        assert {len(tokens) for tokens in scheduler.play(events)["tokens"].values()} == {30}
    with pytest.raises(SchedulerDied), running_scheduler(without_hooks=["hold_rebootstrap"]) as scheduler:
        scheduler.play(events)


def test_an_abort_of_a_waiting_request_ends_the_scheduler_without_its_guard(engine_logs: Path) -> None:
    """SGLang frees the KV of what waits on a decode worker; a deflected request has none yet."""
    stays, waits = asked("abort", prompts(2, 20, seed=12), tokens=400)
    waits["dispatch"] = {"chunk_budget_tokens": 0}
    events = [
        {"submit": [stays, waits]},
        {"after": {"abort-000": 2}, "abort": "abort-001"},
        {"abort": "abort-000"},
    ]
    with running_scheduler() as scheduler:
        assert scheduler.play(events)["idle"]
    with pytest.raises(SchedulerDied), running_scheduler(without_hooks=["abort_request"]) as scheduler:
        scheduler.play(events)
