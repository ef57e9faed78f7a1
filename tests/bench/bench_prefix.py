"""What knowing prefixes is worth: Mooncake's conversation trace in the simulator, by who decides where a prompt goes.

Run: `python tests/bench/bench_prefix.py [--speed 0.5]`; some minutes. Writes prefix.json and prefix.md in
docs/results. Needs a trace beside the repository (../shared/traces/mooncake); 37 % of its prompt tokens occurred
before. Every fleet is the same, all engines keep prefixes, and nothing is deflected, so that the choice of the
prefill worker is all. Cache-aware is what sglang-router 0.3.2 and smg 1.13.0 do by default: the worker with the
longest match where that is over 0.3 of the prompt, the least loaded where it isn't, or where loads differ by more
than 64 requests and a factor of 1.5, by queues as the gateway knows them, and with Duet's own index.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.support.bench_rows import Row, row, write_results  # noqa: E402

from duet_engine.perf.hardware import find_gpu  # noqa: E402
from duet_engine.perf.models import find_shape  # noqa: E402
from duet_engine.perf.roofline import Roofline  # noqa: E402
from duet_engine.policy.baselines import LeastLoaded, RoundRobin, RoutingPolicy  # noqa: E402
from duet_engine.policy.deflect import DeflectionMode, DeflectionRule  # noqa: E402
from duet_engine.policy.dispatch import Hold, Local, Pair  # noqa: E402
from duet_engine.policy.fleet import Fleet, Prompt  # noqa: E402
from duet_engine.protocol import Role  # noqa: E402
from duet_engine.simulator.result import SimulationResult  # noqa: E402
from duet_engine.simulator.run import simulate  # noqa: E402
from duet_engine.simulator.scenario import EngineLimits, Immediate, LocalPrefill, Pool, Scenario  # noqa: E402
from duet_engine.simulator.workload import from_trace, limited, sped_up  # noqa: E402
from duet_engine.slo import Objective  # noqa: E402

TRACE = ROOT.parent / "shared" / "traces" / "mooncake" / "conversation_trace.jsonl"
COMMAND = "python tests/bench/bench_prefix.py"
SEED = 1
TRACE_SECONDS = 1500.0
SPEEDS = (0.5, 1.3)
"""Light load, and one under which nobody holds the objective for all."""
PREFILL, DECODE = 4, 2
OBJECTIVE = Objective(ttft_seconds=2.0, itl_seconds=0.05, ttft_unloaded_ratio=2.0)
CACHE_THRESHOLD, BALANCE_ABSOLUTE, BALANCE_RELATIVE = 0.3, 64, 1.5


class CacheAware:
    """As the Rust routers' `cache_aware`, for the prefill pool; decode by least load."""

    def __init__(self) -> None:
        self._least = LeastLoaded()

    def route(self, prompt: Prompt, fleet: Fleet) -> Pair | Local | Hold:
        """The worker that holds most of the prompt, unless that is little or loads differ."""
        route = self._least.route(prompt, fleet)
        if not isinstance(route, Pair) or not prompt.warm:
            return route
        loads = {worker.key: worker.queued_tokens for worker in fleet.prefill}
        mean_tokens = max(prompt.tokens, 1)
        most, least = max(loads.values()) / mean_tokens, min(loads.values()) / mean_tokens
        if most - least > BALANCE_ABSOLUTE and most > BALANCE_RELATIVE * least:
            return route
        warmest = max(fleet.prefill, key=lambda worker: prompt.warm.get(worker.key, 0))
        if prompt.warm.get(warmest.key, 0) <= CACHE_THRESHOLD * prompt.tokens:
            return route
        return replace(route, prefill=warmest.key, ahead_seconds=warmest.ahead_seconds)


@dataclass(frozen=True)
class Kind:
    """A gateway."""

    name: str
    routing: Callable[[], RoutingPolicy] | None = None
    index: bool = True


KINDS = (
    Kind("Duet"),
    Kind("Duet without the index", index=False),
    Kind("cache-aware", CacheAware),
    Kind("round robin", RoundRobin),
    Kind("least loaded", LeastLoaded),
)


def scenario(kind: Kind) -> Scenario:
    """DeepSeek-V2-Lite on A100s: 1.2 million tokens of KV a worker, so that a prefix lasts a minute or two."""
    steps = Roofline(find_shape("deepseek-ai/DeepSeek-V2-Lite"), find_gpu("a100-sxm"))
    limits = EngineLimits(chunked_prefill_tokens=4096, prefix_cache=True)
    worker: dict[str, Any] = {"steps": steps, "kv_capacity_tokens": steps.kv_capacity_tokens, "limits": limits}
    routing = kind.routing
    found = Scenario(
        prefill=Pool(role=Role.PREFILL, replicas=PREFILL, **worker),
        decode=Pool(role=Role.DECODE, replicas=DECODE, local_prefill=LocalPrefill.SAFE, **worker),
        objective=OBJECTIVE,
        rule=DeflectionRule(itl_seconds=OBJECTIVE.itl_seconds, mode=DeflectionMode.OFF),
        dispatch=None if routing is None else lambda: Immediate(routing()),
        seed=SEED,
        warm_up_seconds=120.0,
    )
    return replace(found, gateway=replace(found.gateway, prefix_index=kind.index))


def run(kind: Kind, speed: float) -> SimulationResult:
    requests = limited(sped_up(from_trace(TRACE), speed), TRACE_SECONDS / speed)
    return simulate(scenario(kind), requests)


def figures(speed: float) -> list[Row]:
    """Of all kinds at one pace; each beside Duet's."""
    rows: list[Row] = []
    duet: dict[str, float] = {}
    for kind in KINDS:
        result = run(kind, speed)
        judged = result.judged
        columns = result.requests
        cached = float(columns.cached_tokens[judged].sum() / columns.input_tokens[judged].sum())
        found = {
            "prompt tokens found in caches": round(100 * cached, 1),
            "TTFT P50": round(result.ttft_percentile(50), 3),
            "TTFT P95": round(result.ttft_percentile(95), 3),
            "attainment": round(100 * (result.attainment or 0.0), 2),
        }
        duet = duet or found
        print(f"{speed:g}x {kind.name}: {found}", flush=True)
        for name, value in found.items():
            unit = "s" if name.startswith("TTFT") else "%"
            peer: dict[str, Any] = {} if kind.name == "Duet" else {"peer": "Duet", "peer_value": duet[name]}
            rows.append(row(f"{speed:g} x the trace's pace, {kind.name}: {name}", value, unit, **peer))
    return rows


def main() -> None:
    if not TRACE.exists():
        sys.exit(f"{TRACE.name} isn't there: put Mooncake's conversation trace into ../shared/traces/mooncake")
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--speed", type=float, action="append", help="Only this pace; other rows stay.")
    rows = [each for speed in parser.parse_args().speed or SPEEDS for each in figures(speed)]
    title = f"Prefixes: {PREFILL} prefill and {DECODE} decode workers under Mooncake's conversation trace"
    write_results(rows, name="prefix", title=title, command=COMMAND, seed=SEED)


if __name__ == "__main__":
    main()
