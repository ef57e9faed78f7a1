"""The papers' claims in the simulator: deflection (Kairos) and SM splitting (DuetServe); Gate-and-Route's has its own.

Run: `make bench-papers`, or `python tests/bench/bench_papers.py [--part kairos|duetserve] [--seconds 240]`; under an
hour on two cores. Every finished cell is kept in build/papers.jsonl, so an interrupted run goes on where it was;
`--fresh` forgets them. Needs the traces in ../shared/traces. Writes papers.json, .md and .png in docs/results.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import matplotlib as mpl
import numpy as np

from duet_engine.perf.hardware import find_gpu
from duet_engine.perf.models import find_shape
from duet_engine.perf.roofline import Roofline
from duet_engine.perf.sm_curves import CurveName, SmCurve
from duet_engine.policy.baselines import Baseline
from duet_engine.policy.deflect import DeflectionMode, DeflectionRule, printed_rule
from duet_engine.policy.dispatch import Dispatch, Hold, Local, Pair
from duet_engine.policy.fleet import Fleet, Prompt
from duet_engine.protocol import Role
from duet_engine.simulator.lengths import Exponential, HeavyTail, LogNormal
from duet_engine.simulator.result import SimulationResult
from duet_engine.simulator.run import simulate
from duet_engine.simulator.scenario import EngineLimits, LocalPrefill, Pool, Scenario, baseline_dispatch
from duet_engine.simulator.synthetic import Rate, Traffic
from duet_engine.simulator.workload import Request, from_trace
from duet_engine.slo import Objective
from duet_operator.simulation.replicas import Slowed

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results"
CELLS = ROOT / "build" / "papers.jsonl"
TRACES = ROOT.parent / "shared" / "traces"
SEED = 1
Cell = dict[str, float]


class Cells:
    """Finished cells by name; a run adds those that are missing."""

    def __init__(self, *, fresh: bool) -> None:
        CELLS.parent.mkdir(exist_ok=True)
        if fresh:
            CELLS.unlink(missing_ok=True)
        lines = CELLS.read_text().splitlines() if CELLS.exists() else []
        self._known: dict[str, Cell] = dict(map(json.loads, lines))

    def get(self, name: str, make: Callable[[], Cell]) -> Cell:
        if name not in self._known:
            started = time.perf_counter()
            self._known[name] = make()
            with CELLS.open("a") as file:
                file.write(json.dumps([name, self._known[name]]) + "\n")
            print(f"{name}: {self._known[name]} ({time.perf_counter() - started:.1f} s)", flush=True)
        return self._known[name]


# --- Kairos: two prefill and two decode workers, bursty heavy-tailed load ---

KAIROS_LOADS = (4.0, 6.0, 8.0, 10.0, 12.0, 14.0)
KAIROS_OBJECTIVE = Objective(ttft_seconds=2.0, itl_seconds=0.1)
NONE, DEMOTION, PRINTED, DUET = "no deflection", "late demotion alone", "Kairos as printed", "Duet"
OFF_BY = 1.1
MODEL_OFF = ", steps 10 % longer"
"""Than policies believe: the paper's bound on its predictor's error."""
KAIROS_POLICIES = (NONE, DEMOTION, PRINTED, DUET, PRINTED + MODEL_OFF, DUET + MODEL_OFF)


def kairos_rule(policy: str) -> DeflectionRule:
    itl_seconds = KAIROS_OBJECTIVE.itl_seconds
    if policy.startswith(PRINTED):
        return printed_rule(itl_seconds)
    mode = DeflectionMode.OFF if policy in (NONE, DEMOTION) else DeflectionMode.AUTO
    return DeflectionRule(itl_seconds=itl_seconds, mode=mode)


class InOrder:
    """The paper's queue: first in, first out, without late demotion."""

    def __init__(self, rule: DeflectionRule) -> None:
        self._dispatch, self._rule = Dispatch(), rule

    def dispatch(self, waiting: Sequence[Prompt], fleet: Fleet) -> Sequence[Pair | Local | Hold]:
        return self._dispatch(waiting, fleet, self._rule, window_seconds=0.15)


def bursty(rate: float, seconds: float) -> Iterator[Request]:
    """Three times the rate for 10 s of each minute; log-normal prompts with a Pareto tail, exponential answers."""
    course = Rate.bursts(rate, seconds=seconds, factor=3.0, every_seconds=60.0, lasting_seconds=10.0)
    prompts = HeavyTail(LogNormal(1800.0, 0.9), tail_share=0.05, tail_start_tokens=8000.0, tail_exponent=2.5)
    return Traffic(rate=course, input_tokens=prompts, output_tokens=Exponential(200.0), variation=1.5).requests(SEED)


def kairos_cell(policy: str, rate: float, seconds: float) -> Cell:
    believed = Roofline(find_shape("deepseek-ai/DeepSeek-V2-Lite"), find_gpu("a100-sxm"))
    steps = Slowed(believed, OFF_BY) if policy.endswith(MODEL_OFF) else believed
    limits = EngineLimits(chunked_prefill_tokens=2048, prefix_cache=False)
    worker = {"steps": steps, "believed_steps": believed, "limits": limits, "replicas": 2}
    worker |= {"kv_capacity_tokens": believed.kv_capacity_tokens}
    local = None if policy in (NONE, DEMOTION) else LocalPrefill.SAFE
    rule = kairos_rule(policy)
    scenario = Scenario(
        prefill=Pool(role=Role.PREFILL, **worker),
        decode=Pool(role=Role.DECODE, local_prefill=local, **worker),
        objective=KAIROS_OBJECTIVE,
        rule=rule,
        dispatch=(lambda: InOrder(rule)) if policy == NONE or policy.startswith(PRINTED) else None,
        seed=SEED,
        warm_up_seconds=60.0,
    )
    result = simulate(scenario, bursty(rate, seconds))
    return figures(result) | prediction(result)


def prediction(result: SimulationResult) -> Cell:
    """By how much first tokens came earlier or later than predicted when their prompt left the gateway."""
    rows = result.requests
    chosen = result.judged & rows.succeeded
    errors = np.abs(rows.predicted_ttft_seconds - rows.ttft_seconds) / rows.ttft_seconds
    median, p95 = np.percentile(errors[chosen], (50, 95))
    return {"ttft_error_p50": round(float(median), 4), "ttft_error_p95": round(float(p95), 4)}


def figures(result: SimulationResult) -> Cell:
    return {
        "attainment": round(result.attainment or 0.0, 4),
        "ttft_p50": round(result.ttft_percentile(50), 3),
        "ttft_p95": round(result.ttft_percentile(95), 3),
        "itl_p99": round(result.itl_percentile(99), 4),
        "itl_met": round(float(result.itl_met[result.judged].mean()), 4),
        "deflected": round(result.deflected_share, 4),
        "requests": float(result.judged.sum()),
    }


# --- DuetServe: one worker, four ways to run prompts and decodes together ---

TBT_SECONDS = 0.1
"""Assumed: the paper's TBT objective wasn't found."""
GOAL = 0.9
DUET_OBJECTIVE = Objective(ttft_seconds=2.0, itl_seconds=TBT_SECONDS, ttft_unloaded_ratio=5.0)
STYLES = {
    "prompts first": (LocalPrefill.PROMPTS_FIRST, 8192),
    "chunked prefill, 2048": (LocalPrefill.MIXED, 2048),
    "chunked prefill, 512": (LocalPrefill.MIXED, 512),
    "fixed split": (LocalPrefill.FIXED_SPLIT, 8192),
    "adaptive split": (LocalPrefill.SPLIT, 8192),
}
SPLITTING = ("fixed split", "adaptive split")
WORKLOADS = {
    "Azure code": "azure/AzureLLMInferenceTrace_code.csv",
    "Azure conv": "azure/AzureLLMInferenceTrace_conv.csv",
    "Mooncake": "mooncake/conversation_trace.jsonl",
}
LEAST_REQUESTS, MOST_REQUESTS = 100, 900


def at_rate(workload: str, rate: float, seconds: float) -> list[Request]:
    """The trace's prompts and answers in its order, come as a Poisson process: Mooncake's clock ticks in 3 s."""
    count = int(min(max(rate * seconds, LEAST_REQUESTS), MOST_REQUESTS))
    moments = np.cumsum(np.random.default_rng(SEED).exponential(1 / rate, count)).tolist()
    requests = islice(from_trace(TRACES / WORKLOADS[workload]), count)
    return [replace(one, arrival_seconds=at) for one, at in zip(requests, moments, strict=True)]


def duetserve_scenario(model: str, style: str, curve: CurveName) -> Scenario:
    gpu = find_gpu("h100-sxm")
    steps = Roofline(find_shape(model), gpu, curve=SmCurve.assumed(gpu, curve))
    local, chunk = STYLES[style]
    limits = EngineLimits(chunked_prefill_tokens=chunk, prefix_cache=True, decode_sm_share=0.5)
    pool = Pool(
        role=Role.UNIFIED,
        steps=steps,
        kv_capacity_tokens=steps.kv_capacity_tokens,
        replicas=1,
        limits=limits,
        local_prefill=local,
    )
    return Scenario(
        decode=pool,
        objective=DUET_OBJECTIVE,
        rule=DeflectionRule(itl_seconds=TBT_SECONDS),
        dispatch=baseline_dispatch(Baseline.ROUND_ROBIN),
        seed=SEED,
    )


def capacity(model: str, style: str, curve: CurveName, workload: str, seconds: float) -> Cell:
    """The highest rate at which GOAL of the requests keep both objectives, within 4 %."""
    scenario = duetserve_scenario(model, style, curve)
    low, high, best = 0.0, 1.0, None
    while high < 100.0 and (result := simulate(scenario, at_rate(workload, high, seconds))).attainment >= GOAL:
        low, high, best = high, high * 2, result
    while high - low > 0.04 * high and high > 0.05:
        middle = (low + high) / 2
        result = simulate(scenario, at_rate(workload, middle, seconds))
        if result.attainment >= GOAL:
            low, best = middle, result
        else:
            high = middle
    return {"rate": round(low, 3)} | (figures(best) if best else {})


# --- the page ---


def all_kairos(cells: Cells, seconds: float) -> dict[str, dict[float, Cell]]:
    return {
        policy: {
            rate: cells.get(f"kairos/{policy}/{rate}/{seconds:g}", lambda p=policy, r=rate: kairos_cell(p, r, seconds))
            for rate in KAIROS_LOADS
        }
        for policy in KAIROS_POLICIES
    }


def all_duetserve(cells: Cells, seconds: float, models: list[str]) -> dict[tuple[str, str, str, str], Cell]:
    found = {}
    for model in models:
        for workload in WORKLOADS:
            for style in STYLES:
                every = style in SPLITTING and model == models[0]
                curves = list(CurveName) if every else [CurveName.DATA_SHEET]
                for curve in curves:
                    name = f"duetserve/{model}/{workload}/{style}/{curve}/{seconds:g}"
                    found[model, workload, style, str(curve)] = cells.get(
                        name, lambda m=model, s=style, c=curve, w=workload: capacity(m, s, c, w, seconds)
                    )
    return found


KAIROS_FIGURES = {
    "ttft_p95": "s", "attainment": "", "itl_met": "", "deflected": "", "ttft_error_p50": "", "ttft_error_p95": "",
}  # fmt: skip


def rows_of(kairos: dict[str, dict[float, Cell]], duetserve: dict[tuple[str, str, str, str], Cell]) -> list[dict]:
    rows = []
    for policy, by_rate in kairos.items():
        for rate, cell in by_rate.items():
            none = kairos[NONE][rate]
            for figure, unit in KAIROS_FIGURES.items():
                name = f"Kairos 2P2D, {rate:g} req/s, {policy}: {figure}"
                rows.append(row(name, cell[figure], unit, NONE, none[figure]))
    for (model, workload, style, curve), cell in duetserve.items():
        name = f"DuetServe, {model}, {workload}, {style}, {curve} curve: rate"
        peer = duetserve[model, workload, "chunked prefill, 2048", "data-sheet"]["rate"]
        rows.append(row(name, cell["rate"], "req/s", "chunked prefill, 2048", peer))
    return rows


def row(figure: str, value: float, unit: str, peer: str, peer_value: float) -> dict[str, object]:
    ratio = round(value / peer_value, 3) if peer_value else None
    command = "make bench-papers"
    return {
        "figure": figure, "value": value, "unit": unit, "peer": peer, "peer_value": peer_value, "ratio": ratio,
        "command": command, "seed": SEED,
    }  # fmt: skip


def draw(kairos: dict[str, dict[float, Cell]], duetserve: dict[tuple[str, str, str, str], Cell]) -> None:
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4), layout="constrained")
    for policy in (NONE, DEMOTION, PRINTED, DUET):
        by_rate = kairos[policy]
        left.plot(list(by_rate), [cell["ttft_p95"] for cell in by_rate.values()], marker="o", label=policy)
        middle.plot(list(by_rate), [100 * cell["attainment"] for cell in by_rate.values()], marker="o", label=policy)
    left.set(yscale="log", xlabel="requests/s outside bursts", ylabel="P95 TTFT, s", title="2P2D with deflection")
    middle.set(xlabel="requests/s outside bursts", ylabel="attainment, %", title="2P2D with deflection")
    left.legend()
    chosen = {key: cell for key, cell in duetserve.items() if key[3] == "data-sheet" and key[0] == "Qwen/Qwen3-8B"}
    for number, style in enumerate(STYLES):
        rates = [
            chosen[key]["rate"] / chosen[key[0], key[1], "chunked prefill, 2048", "data-sheet"]["rate"]
            for key in chosen
            if key[2] == style
        ]
        right.bar([place + 0.16 * number for place in range(len(rates))], rates, width=0.15, label=style)
    right.set_xticks([place + 0.32 for place in range(len(WORKLOADS))], list(WORKLOADS))
    right.set(ylabel="rate / chunked prefill's", title="Qwen3-8B on one H100, data-sheet curve")
    right.legend(fontsize=7)
    figure.savefig(RESULTS / "papers.png", dpi=110)


def write(kairos: dict[str, dict[float, Cell]], duetserve: dict[tuple[str, str, str, str], Cell], command: str) -> None:
    (RESULTS / "papers.json").write_text(json.dumps(rows_of(kairos, duetserve), indent=2) + "\n")
    notes = (Path(__file__).parent / "papers_notes.md").read_text().split("<!-- table -->\n")
    text = notes[0] + "\n".join(kairos_table(kairos)) + "\n" + notes[1] + "\n".join(duetserve_table(duetserve)) + "\n"
    text += notes[2] + f"\n`{command}`, seed {SEED}, Python {platform.python_version()}, {os.cpu_count()} cores.\n"
    (RESULTS / "papers.md").write_text(text)


def kairos_table(kairos: dict[str, dict[float, Cell]]) -> list[str]:
    lines = ["| load, req/s | policy | P95 TTFT, s | against none | attainment | ITL kept | ITL P99, ms | deflected "]
    lines[0] += "| TTFT off by, P50 | P95 |"
    lines += ["|---" * 10 + "|"]
    for rate in KAIROS_LOADS:
        none = kairos[NONE][rate]
        for policy in KAIROS_POLICIES:
            cell = kairos[policy][rate]
            change = 100 * (cell["ttft_p95"] / none["ttft_p95"] - 1)
            lines.append(
                f"| {rate:g} | {policy} | {cell['ttft_p95']:.2f} | {change:+.0f} % | {100 * cell['attainment']:.1f} % "
                f"| {100 * cell['itl_met']:.1f} % | {1000 * cell['itl_p99']:.0f} | {100 * cell['deflected']:.1f} % "
                f"| {100 * cell['ttft_error_p50']:.0f} % | {100 * cell['ttft_error_p95']:.0f} % |"
            )
    return lines


def duetserve_table(duetserve: dict[tuple[str, str, str, str], Cell]) -> list[str]:
    lines = ["| model | trace | way | pessimistic | data-sheet | optimistic | against chunked, data-sheet |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for model, workload, style, curve in duetserve:
        if curve != "data-sheet":
            continue
        cells = [duetserve.get((model, workload, style, name)) for name in ("pessimistic", curve, "optimistic")]
        shown = [f"{cell['rate']:.2f}" if cell else "" for cell in cells]
        peer = duetserve[model, workload, "chunked prefill, 2048", curve]["rate"]
        ratio = f"{duetserve[model, workload, style, curve]['rate'] / peer:.2f}" if peer else ""
        lines.append(f"| {model} | {workload} | {style} | {' | '.join(shown)} | {ratio} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=["kairos", "duetserve"], help="only this one, and no page")
    parser.add_argument("--seconds", type=float, default=240.0, help="of each Kairos run")
    parser.add_argument("--rate-seconds", type=float, default=30.0, help="of each DuetServe run")
    parser.add_argument("--model", action="append", help="of DuetServe's part; default: Qwen3-8B and 14B")
    parser.add_argument("--fresh", action="store_true", help="forget what was finished before")
    options = parser.parse_args()
    if not TRACES.is_dir():
        sys.exit(f"{TRACES} is missing: the traces aren't part of the project, see docs/results/README or CONTRIBUTING")
    cells = Cells(fresh=options.fresh)
    models = options.model or ["Qwen/Qwen3-8B", "Qwen/Qwen3-14B"]
    kairos = all_kairos(cells, options.seconds) if options.part != "duetserve" else {}
    duetserve = all_duetserve(cells, options.rate_seconds, models) if options.part != "kairos" else {}
    if options.part is None:
        draw(kairos, duetserve)
        command = f"python tests/bench/bench_papers.py --seconds {options.seconds:g}"
        command += f" --rate-seconds {options.rate_seconds:g}"
        write(kairos, duetserve, command)


if __name__ == "__main__":
    main()
