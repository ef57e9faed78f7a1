"""What SGLang would do to deflected requests without the plugin's guards (`make engine-full`).

Each test plays a scenario twice: with all hooks, and without the one that it is about.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from tests.support.sglang_scheduler import SchedulerDied, play_all, running_scheduler

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


def test_what_is_retracted_for_want_of_memory_is_lost_without_its_guard(engine_logs: Path) -> None:
    """SGLang backs up KV that it takes away, or ends the request; a deflected one is computed again."""
    scenarios = {"crowd": [{"submit": asked("crowd", prompts(10, 300, seed=10), tokens=40)}]}
    retracting = {"SGLANG_TEST_RETRACT": "1"}
    expected = play_all(scenarios, mode="plain")["crowd"]["tokens"]
    result = play_all(scenarios, environment=retracting)["crowd"]
    assert result["tokens"] == expected
    assert result["free_tokens"] == 16384
    lost = play_all(scenarios, environment=retracting, without_hooks=["back_up"])["crowd"]
    assert any(reason["type"] == "abort" for reason in lost["ended"].values())


SMALL_CHUNKS = {"chunk_candidates_tokens": [64, 32]}


def test_a_transfer_is_promised_the_kv_that_a_cut_prompt_still_needs_without_its_guard(engine_logs: Path) -> None:
    """A transfer whose prompt's KV nobody sends stands for a real one: it reserves all the same."""
    resident, long, transfer = asked("promised", [[5], [7] * 2600, [9] * 700], tokens=30)
    long["sampling"] = {}
    transfer |= {"without_kv": True}
    events = [
        {"submit": [resident]},
        {"after": {"promised-000": 2}, "submit": [long]},
        {"turns": 3, "submit": [transfer]},
    ]
    pool = ("--max-total-tokens", "3400")
    with running_scheduler(*pool, knobs=SMALL_CHUNKS) as scheduler:
        guarded = scheduler.play(events)
    assert len(guarded["tokens"]["promised-001"]) == 30 and guarded["free_tokens"] == 3400
    assert guarded["times"]["promised-001"][-1] < guarded["times"]["promised-002"][0]
    with running_scheduler(*pool, knobs=SMALL_CHUNKS, without_hooks=["allocatable_tokens"]) as scheduler:
        try:
            unguarded = scheduler.play(events)
        except SchedulerDied:
            return
    assert unguarded["times"]["promised-001"][-1] > unguarded["times"]["promised-002"][0]


def test_a_transfer_is_promised_what_residents_beside_chunks_need_without_its_guard(engine_logs: Path) -> None:
    """SGLang counts who decodes by its running batch, and beside chunks that is empty."""
    residents = asked("beside", [[5 + place] * 5 for place in range(20)], tokens=100)
    (long,), (transfer,) = asked("long", [[7] * 600], tokens=2), asked("comes", [[9] * 1200], tokens=4)
    events = [
        {"submit": residents},
        {"after": {"beside-019": 2}, "submit": [long]},
        {"turns": 2, "submit": [transfer | {"without_kv": True}]},
    ]
    pool = ("--max-total-tokens", "4000")
    times = {}
    for left_out in ((), ("process_decode_queue",)):
        with running_scheduler(*pool, knobs=SMALL_CHUNKS, without_hooks=left_out) as scheduler:
            times[left_out] = scheduler.play(events)["times"]
    guarded, unguarded = times.values()
    assert guarded["comes-000"][0] > guarded["beside-019"][-1], "residents keep what they will need"
    assert unguarded["comes-000"][0] < unguarded["long-000"][0]


def test_deflected_prompts_are_computed_in_the_order_of_their_priority(engine_logs: Path) -> None:
    """The hook shows SGLang a part of its queue, so it has to ask SGLang for the order of the whole."""
    (resident,) = asked("stays", [[5] * 9], tokens=80)
    wanted = asked("prompt", [[7 + place] * 700 for place in range(5)], tokens=2)
    for place, request in enumerate(wanted):
        request |= {"sampling": {}, "priority": (0, 3, 1, 9, 2)[place]}
    events = [{"submit": [resident]}, {"after": {"stays-000": 2}, "submit": wanted}]
    by_priority = ("--enable-priority-scheduling", "--disable-priority-preemption")
    orders = []
    for mode in ("plain", "decode"):
        with running_scheduler(*by_priority, mode=mode) as scheduler:
            times = scheduler.play(events)["times"]
        orders.append(sorted((request["rid"] for request in wanted), key=lambda rid: times[rid][0]))
    assert orders[1] == orders[0] == [f"prompt-{place:03d}" for place in (3, 1, 4, 2, 0)]


@pytest.mark.parametrize("page", ["1", "16"])
def test_follow_up_turns_reuse_what_was_computed_and_count_only_the_rest(engine_logs: Path, page: str) -> None:
    first = prompts(12, 900, seed=8)
    chance = random.Random(9)
    second = [ids + [chance.randrange(3, 512) for _ in range(70)] for ids in first]
    scenarios = {"first": [{"submit": asked("first", first)}], "again": [{"submit": asked("second", second)}]}
    options = ("--page-size", page)
    expected = play_all(scenarios, *options, mode="plain")
    results = play_all(scenarios, *options, "--disaggregation-decode-enable-radix-cache")
    assert [results[name]["tokens"] for name in scenarios] == [expected[name]["tokens"] for name in scenarios]
    again = results["again"]
    for place, ids in enumerate(first):
        assert again["cached"][f"second-{place:03d}"] >= (len(ids) // int(page) - 1) * int(page)
    computed = sum(tokens - (rows - 1 if kind == "MIXED" else 0) for kind, rows, tokens in again["steps"] if tokens)
    assert computed < sum(map(len, second)) / 2
    assert again["free_tokens"] == 16384
