"""How fast the simulator is: requests per second of one core, with the live dispatch policy at 20 workers.

Run: `python tests/bench/bench_simulator.py [--requests 10000]`. CPU time, best of three rounds; a plain loop is timed
beside it, because the machine is never alone. Writes docs/results/simulator.{md,json}.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import time
from dataclasses import replace
from pathlib import Path

from duet_engine.perf.hardware import find_gpu
from duet_engine.perf.models import find_shape
from duet_engine.perf.roofline import Roofline
from duet_engine.policy.baselines import Baseline
from duet_engine.policy.deflect import DeflectionRule
from duet_engine.protocol import Role
from duet_engine.simulator.lengths import Exponential, LogNormal
from duet_engine.simulator.result import SimulationResult
from duet_engine.simulator.run import simulate
from duet_engine.simulator.scenario import LocalPrefill, Pool, Scenario, baseline_dispatch
from duet_engine.simulator.synthetic import Rate, Traffic
from duet_engine.simulator.workload import Request
from duet_engine.slo import Objective

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
ROUNDS = 3
SEED = 1
GOAL_REQUESTS_PER_SECOND = 5000.0
LOOP_TURNS = 5_000_000
NOTES = (
    "The goal is missed, and these figures are of a machine with six to nine processes ready to run for two cores:",
    "on a quiet one an earlier version did 3,617 to 4,065 a second, and pinned to one core beside its successor",
    "without what follows, the present one was 1.03 to 1.28 times as fast. Beside Dynamo's replay, in one run:",
    "[simulator_peer.md](simulator_peer.md).",
    "",
    "The profile is flat: two fifths of a request's time are its dispatch (a fifth the policy itself, a tenth",
    "making views of twenty workers), two fifths the workers' steps (seven events a request). Tried and kept:",
    "few garbage collections, views that are made only when a line is due, values without a guard at run time,",
    "sums and gaps by list. Not tried: a compiled kernel. `duet simulate` is slower for what its scenarios do:",
    "where decode workers take prompts, each chunk asks the model about several sizes, and in an overload each",
    "prompt is looked at in several passes.",
)
FREE_LOOP_SECONDS = 0.2
"""What such a loop takes on a core of this class that nobody else uses."""
GOAL_REQUESTS_PER_LOOP = FREE_LOOP_SECONDS * GOAL_REQUESTS_PER_SECOND


def scenario() -> Scenario:
    """6 prefill and 14 decode workers: Llama-3.1-8B on H100."""
    steps = Roofline(find_shape("meta-llama/Llama-3.1-8B"), find_gpu("h100-sxm"))
    worker = {"steps": steps, "kv_capacity_tokens": steps.kv_capacity_tokens}
    return Scenario(
        prefill=Pool(role=Role.PREFILL, replicas=6, **worker),
        decode=Pool(role=Role.DECODE, replicas=14, local_prefill=LocalPrefill.SAFE, **worker),
        objective=Objective(ttft_seconds=1.0, itl_seconds=0.05),
        rule=DeflectionRule(itl_seconds=0.05),
        seed=SEED,
    )


def conversations(rate: float, requests: int) -> list[Request]:
    """Lengths like those of Azure's conversations."""
    traffic = Traffic(
        rate=Rate.constant(rate, seconds=requests / rate),
        input_tokens=LogNormal(1155.0, 1.0),
        output_tokens=Exponential(211.0),
    )
    return list(traffic.requests(SEED))


def measure(chosen: Scenario, rate: float, requests: int) -> tuple[float, float, SimulationResult]:
    """The least CPU seconds of the rounds, and the least in turns of the plain loop that ran before and after each."""
    workload = conversations(rate, requests)
    best = best_in_loops = float("inf")
    for _ in range(ROUNDS):
        before = loop_seconds()
        started = time.process_time()
        result = simulate(chosen, workload)
        seconds = time.process_time() - started
        best = min(best, seconds)
        best_in_loops = min(best_in_loops, seconds / ((before + loop_seconds()) / 2))
    return best, best_in_loops, result


def loop_seconds() -> float:
    """Five million turns of a plain loop: 0.2 to 0.25 s on a core of this class that nobody else uses."""
    started, total = time.process_time(), 0
    for number in range(LOOP_TURNS):
        total += number
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    options = parser.parse_args()
    command = f"python tests/bench/bench_simulator.py --requests {options.requests}"
    rows: list[dict[str, object]] = []

    def add(figure: str, value: float, unit: str, peer: str = "", peer_value: float | None = None) -> None:
        ratio = round(value / peer_value, 3) if peer_value else None
        rows.append(
            {"figure": figure, "value": round(value, 3), "unit": unit, "peer": peer, "peer_value": peer_value}
            | {"ratio": ratio, "command": command, "seed": SEED}
        )
        print(f"{figure}: {value:.3f} {unit}", flush=True)

    base = scenario()
    cases = {
        "live dispatch, 100 req/s": (base, 100.0),
        "live dispatch, 200 req/s": (base, 200.0),
        "least loaded, 100 req/s": (replace(base, dispatch=baseline_dispatch(Baseline.LEAST_LOADED)), 100.0),
    }
    for name, (chosen, rate) in cases.items():
        seconds, loops, result = measure(chosen, rate, options.requests)
        count = len(result.requests)
        add(f"{name}: requests a CPU second", count / seconds, "1/s", "goal", GOAL_REQUESTS_PER_SECOND)
        add(
            f"{name}: requests in the time of a plain loop",
            count / loops,
            "",
            "goal",
            FREE_LOOP_SECONDS * GOAL_REQUESTS_PER_SECOND,
        )
        add(f"{name}: simulated seconds a CPU second", result.end_seconds / seconds, "x")
        add(f"{name}: decode and prefill steps a CPU second", result.counters["steps"] / seconds, "1/s")
        add(f"{name}: utilisation", result.utilisation, "")
    add(f"plain loop of {LOOP_TURNS} turns, at the end", loop_seconds(), "s")
    add("largest resident memory", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "MiB")
    write(rows, command)


def write(rows: list[dict[str, object]], command: str) -> None:
    (RESULTS / "simulator.json").write_text(json.dumps(rows, indent=2) + "\n")
    lines = ["# Speed of the simulator", ""]
    lines += ["6 prefill and 14 decode workers (Llama-3.1-8B, H100, noise on), requests like Azure's conversations."]
    lines += [
        "CPU time of one core, best of three rounds. Where others use the core's other thread everything takes longer,"
    ]
    lines += [
        f"so a plain loop of {LOOP_TURNS} turns runs before and after each round, {FREE_LOOP_SECONDS} s on a free core."
    ]
    lines += [""]
    lines += ["| figure | value | unit | peer | peer value | ratio |", "|---|---|---|---|---|---|"]
    for row in rows:
        peer = "" if row["peer_value"] is None else row["peer_value"]
        ratio = "" if row["ratio"] is None else row["ratio"]
        lines.append(f"| {row['figure']} | {row['value']} | {row['unit']} | {row['peer']} | {peer} | {ratio} |")
    lines += ["", *NOTES]
    lines += ["", f"`{command}`, seed {SEED}, Python {platform.python_version()}, {os.cpu_count()} cores."]
    (RESULTS / "simulator.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
