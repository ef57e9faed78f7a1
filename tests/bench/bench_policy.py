"""What a decision costs: microseconds of CPU for each policy, beside brute force or a plain alternative.

Run: `python tests/bench/bench_policy.py`; under a minute. Writes policy.json and policy.md in docs/results. Step times
come from the roofline of Qwen3-8B on an H100. Each figure is the best of seven rounds.
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from duet_engine.perf.hardware import find_gpu  # noqa: E402
from duet_engine.perf.interface import StepBatch  # noqa: E402
from duet_engine.perf.models import find_shape  # noqa: E402
from duet_engine.perf.roofline import Roofline  # noqa: E402
from duet_engine.policy.baselines import LeastTTFT  # noqa: E402
from duet_engine.policy.chunks import DecodeBatch, largest_safe_schedule  # noqa: E402
from duet_engine.policy.deflect import DeflectionRule  # noqa: E402
from duet_engine.policy.dispatch import dispatch  # noqa: E402
from duet_engine.policy.fleet import DecodeWorker, Fleet, PrefillWorker, Prompt  # noqa: E402
from duet_engine.policy.fluid_model import Prices, TrafficClass, WorkerPace  # noqa: E402
from duet_engine.policy.fluid_plan import fluid_plan  # noqa: E402
from duet_engine.policy.gate import PlanGate  # noqa: E402
from duet_engine.policy.partition import Partitioner, SplitRule, best_split  # noqa: E402
from duet_engine.policy.router import GreedyRouter, ShareRouter  # noqa: E402

RESULTS = ROOT / "docs" / "results"
ROUNDS = 7
H100_8B = Roofline(find_shape("Qwen/Qwen3-8B"), find_gpu("h100-sxm"))
CANDIDATES = (2048, 1024, 512, 256, 128)
BATCH = DecodeBatch(96, 96 * 1500)
MIXED = BATCH.moments().with_chunks(4096)
RULE = SplitRule(step_budget_seconds=0.0425, most_look_ahead=8, longest_window_seconds=0.2, believe_assumed=True)


def microseconds(call: Callable[[], object], times: int) -> float:
    """CPU time of one call: the best round's mean."""
    best = float("inf")
    for _ in range(ROUNDS):
        started = time.process_time()
        for _ in range(times):
            call()
        best = min(best, (time.process_time() - started) / times)
    return best * 1e6


def split_figures() -> list[tuple[str, float, str, float]]:
    granularity, sms = H100_8B.sm_granularity, H100_8B.sms
    decode_sms = np.arange(granularity, sms, granularity)
    decode = H100_8B.step_seconds_over(MIXED.decode_part, decode_sms / sms)
    prefill = H100_8B.step_seconds_over(MIXED.prefill_part, 1 - decode_sms / sms)

    def search() -> object:
        return best_split(
            decode, prefill, decode_tokens=MIXED.decode_requests, prefill_tokens=MIXED.prefill_tokens, rule=RULE
        )

    def brute_force() -> object:
        best = None
        for index, (decode_seconds, prefill_seconds) in enumerate(zip(decode.tolist(), prefill.tolist(), strict=True)):
            for look_ahead in range(1, RULE.most_look_ahead + 1):
                if not RULE.holds(decode_seconds, prefill_seconds, look_ahead):
                    continue
                tokens = look_ahead * MIXED.decode_requests + MIXED.prefill_tokens
                rate = tokens / max(look_ahead * decode_seconds, prefill_seconds)
                if best is None or rate > best[2]:
                    best = index, look_ahead, rate
        return best

    found, expected = search(), brute_force()
    assert found == expected, f"{found} against brute force's {expected}"
    partitioner = Partitioner(H100_8B)
    every = "all splits and look-aheads"
    return [
        (f"partition search, {len(decode)} splits", microseconds(search, 300), every, microseconds(brute_force, 30)),
        (
            "partition decision with its step times",
            microseconds(lambda: partitioner.choose(MIXED, RULE), 100),
            every,
            microseconds(brute_force, 30),
        ),
    ]


def schedule_figures() -> list[tuple[str, float, str, float]]:
    prompt_tokens, budget_seconds = 8000, 0.0425

    def search() -> object:
        return largest_safe_schedule(
            H100_8B,
            BATCH,
            prompt_tokens=prompt_tokens,
            candidates_tokens=CANDIDATES,
            step_budget_seconds=budget_seconds,
        )

    def brute_force() -> object:
        """Every candidate at every step, the largest safe one taken."""
        chunks, done = [], 0
        while done < prompt_tokens:
            sizes = [min(size, prompt_tokens - done) for size in CANDIDATES]
            seconds = [
                H100_8B.step_seconds(StepBatch.decode(BATCH.requests, BATCH.context_tokens).with_chunks(size, done))
                for size in sizes
            ]
            safe = [size for size, taken in zip(sizes, seconds, strict=True) if taken <= budget_seconds]
            chunks.append(max(safe))
            done += chunks[-1]
        return chunks

    return [
        (
            "LargestSafe schedule, 8,000 tokens",
            microseconds(search, 30),
            "every size at every step",
            microseconds(brute_force, 30),
        )
    ]


PACE = WorkerPace(chunk_tokens=256, batch_slots=16, mixed_step_seconds=0.0333, solo_step_seconds=0.022)
GRID = 40


def traffic_classes() -> list[TrafficClass]:
    chance = random.Random(1)
    return [
        TrafficClass(
            name=str(index),
            prompt_tokens=chance.uniform(200, 3000),
            output_tokens=chance.uniform(200, 3000),
            arrivals_per_second=0.2,
            impatience_per_second=0.1,
        )
        for index in range(8)
    ]


def best_of_grid(classes: Sequence[TrafficClass]) -> float:
    """Prefills of each of two classes in 1/40 of what its arrivals need; the best revenue."""
    parts = [index / GRID for index in range(GRID + 1)]
    return max(earned(list(zip(shares, classes, strict=True))) for shares in itertools.product(parts, parts))


def earned(served: list[tuple[float, TrafficClass]]) -> float:
    """Revenue of serving these shares of arrivals, the dearer class first, decodes filled solo first."""
    prices = Prices()
    prefilling = sum(part * one.arrivals_per_second / PACE.prefills_per_second(one) for part, one in served)
    if prefilling > 1.0:
        return 0.0
    solo, mixed, revenue = PACE.batch_slots * (1 - prefilling), (PACE.batch_slots - 1) * prefilling, 0.0
    for part, one in sorted(served, key=lambda pair: -prices.request(pair[1])):
        left = part * one.arrivals_per_second
        taken = min(solo, left / PACE.solo_decodes_per_second(one))
        solo -= taken
        done = taken * PACE.solo_decodes_per_second(one)
        taken = min(mixed, (left - done) / PACE.mixed_decodes_per_second(one))
        mixed -= taken
        revenue += (done + taken * PACE.mixed_decodes_per_second(one)) * prices.request(one)
    return revenue


def plan_figures() -> list[tuple[str, float, str, float]]:
    classes = traffic_classes()
    two = classes[:2]
    solve = microseconds(lambda: fluid_plan(two, PACE), 5)
    grid = microseconds(lambda: best_of_grid(two), 1)
    return [
        ("fluid plan, 2 classes", solve, f"grid of {GRID + 1} x {GRID + 1}", grid),
        ("fluid plan, 8 classes", microseconds(lambda: fluid_plan(classes, PACE), 5), "2 classes", solve),
    ]


def gate_figures() -> list[tuple[str, float, str, float]]:
    plan = fluid_plan(traffic_classes(), PACE)
    gate = PlanGate(plan, workers=100)
    targets, waiting, heads = np.array(plan.prefilling), [3, 0, 9, 1, 4, 0, 2, 8], [0.0] * 8
    prefilling = [int(100 * share) for share in plan.prefilling]

    def with_arrays() -> object:
        counts, shares = np.array(prefilling), np.maximum(targets, 1e-12)
        deviation = np.where(np.array(waiting) > 0, (counts - 100 * shares) / shares, np.inf)
        return int(deviation.argmin())

    admit = microseconds(lambda: gate.admit(prefilling, waiting, heads_arrived=heads), 3000)
    return [("gate, 8 classes", admit, "argmin over numpy arrays", microseconds(with_arrays, 1000))]


def router_figures() -> list[tuple[str, float, str, float]]:
    chance = random.Random(1)
    greedy, shares = GreedyRouter(), ShareRouter(fluid_plan(traffic_classes(), PACE))
    occupied = [chance.random() < 0.9 for _ in range(500)]

    def scan() -> object:
        return next((index for index, taken in enumerate(occupied) if not taken), None)

    place = microseconds(lambda: greedy.place(0, solo_free=3, mixed_free=1, draw=0.4), 3000)
    aware = microseconds(lambda: shares.place(0, solo_free=3, mixed_free=1, draw=0.4), 3000)
    everybody = microseconds(scan, 3000)
    return [
        ("greedy router", place, "first free of 500 workers", everybody),
        ("SLI-aware router", aware, "first free of 500 workers", everybody),
    ]


def dispatch_figures() -> list[tuple[str, float, str, float]]:
    chance = random.Random(2)
    prefill = tuple(
        PrefillWorker(
            key=f"p{index}", revision="r", steps=H100_8B, chunk_tokens=8192, ahead_seconds=chance.uniform(0, 0.14)
        )
        for index in range(8)
    )
    decode = tuple(
        DecodeWorker(
            key=f"d{index}",
            revision="r",
            steps=H100_8B,
            chunk_tokens=8192,
            batch=DecodeBatch(chance.randrange(20, 120), chance.randrange(40_000, 160_000)),
            kv_capacity_tokens=400_000,
            kv_free_tokens=200_000,
            free_slots=100,
            prefills=True,
        )
        for index in range(24)
    )
    fleet, rule = Fleet(prefill, decode), DeflectionRule(itl_seconds=0.05)
    prompt = Prompt(tokens=3000, waited_seconds=0.0, ttft_objective_seconds=1.0)
    late = replace(prompt, waited_seconds=0.9)
    every = LeastTTFT()
    peer = microseconds(lambda: every.route(prompt, fleet), 3)
    return [
        (
            "one prompt, 8 prefill and 24 decode workers",
            microseconds(lambda: dispatch([prompt], fleet, rule, window_seconds=0.15), 5),
            "all pairs (least TTFT)",
            peer,
        ),
        (
            "the same in danger: local paths compared too",
            microseconds(lambda: dispatch([late], fleet, rule, window_seconds=0.15), 5),
            "all pairs (least TTFT)",
            peer,
        ),
    ]


def write_results(rows: list[dict[str, object]]) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "policy.json").write_text(json.dumps(rows, indent=2) + "\n")
    lines = ["# Cost of a decision", "", "CPU time of one call, best of seven rounds.", ""]
    lines += ["| figure | value | unit | peer | peer value | ratio |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {row['figure']} | {row['value']} | {row['unit']} | {row['peer']} | {row['peer_value']} | {row['ratio']} |"
        for row in rows
    ]
    lines += [
        "",
        f"`{rows[0]['command']}`, seed {rows[0]['seed']}, Python {platform.python_version()}, {os.cpu_count()} cores.",
    ]
    (RESULTS / "policy.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    planned = [*plan_figures(), *gate_figures(), *router_figures()]
    figures = [*split_figures(), *schedule_figures(), *planned, *dispatch_figures()]
    rows: list[dict[str, object]] = [
        {
            "figure": figure,
            "value": round(value, 2),
            "unit": "µs",
            "peer": peer,
            "peer_value": round(peer_value, 2),
            "ratio": round(value / peer_value, 4),
            "command": "python tests/bench/bench_policy.py",
            "seed": 1,
        }
        for figure, value, peer, peer_value in figures
    ]
    for row in rows:
        print(f"{row['figure']}: {row['value']} µs ({row['peer']}: {row['peer_value']} µs)")
    write_results(rows)


if __name__ == "__main__":
    main()
