"""What the plugin costs where it stands in the way: a step of the scheduler, a turn of its loop, a state document.

Run: `python tests/bench/bench_plugin.py`, by hand under an environment's Python that has SGLang too (then tensors are
real ones). Writes plugin.json and plugin.md in docs/results. CPU time of this thread, the least of several rounds: a
busy machine makes it longer, never shorter. The scheduler is a stand-in with the queues of SGLang's; everything of the
plugin is real.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from duet_engine.plugin.board import Numbers, pin_card
from duet_engine.plugin.facts import FACT_NAMES
from duet_engine.plugin.hooks import HookTable
from duet_engine.plugin.profile import replica_model
from duet_engine.plugin.scheduler_side import SchedulerSide
from duet_engine.plugin.server_side import ServerSide
from duet_engine.plugin.settings import EngineSettings
from duet_engine.protocol import Dispatch, Knobs, ProcessInfo

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
RESIDENTS, CALLS, ROUNDS, GATEWAYS = 64, 2000, 7, 8
MODEL = "meta-llama/Llama-3.1-8B"
ENVIRONMENT = {"DUET_ROLE": "decode", "DUET_MODEL_ID": MODEL, "DUET_GPU": "h100", "POD_NAME": "decode-0"}


def microseconds(call: Callable[[], object]) -> float:
    """CPU time of one call."""
    best = float("inf")
    for _ in range(ROUNDS):
        began = time.thread_time()
        for _ in range(CALLS):
            call()
        best = min(best, (time.thread_time() - began) / CALLS)
    return round(best * 1e6, 1)


def cold_microseconds(call: Callable[[], object]) -> float:
    """CPU time of one call after other work has taken the processor's caches: the median of some hundred."""
    memory, seconds = np.zeros(6_000_000), []
    for _ in range(300):
        memory.sum()
        began = time.thread_time()
        call()
        seconds.append(time.thread_time() - began)
    return round(float(np.median(seconds)) * 1e6, 1)


def scheduler() -> Any:
    """SGLang's decode scheduler with a batch that runs, as far as the plugin looks at it."""
    mode = SimpleNamespace(is_decode=lambda: True, is_extend=lambda: False)
    batch = SimpleNamespace(
        forward_mode=mode, reqs=[object()] * RESIDENTS, seq_lens_cpu=np.arange(1000, 1000 + RESIDENTS), forward_iter=0
    )
    queue = SimpleNamespace(queue=[], retracted_queue=[], num_reserved_decode_tokens=512)
    return SimpleNamespace(
        running_batch=batch,
        max_total_num_tokens=400_000,
        max_running_requests=256,
        chunked_prefill_size=2048,
        device="cuda",
        waiting_queue=[],
        chunked_req=None,
        grammar_manager=SimpleNamespace(grammar_queue=[]),
        disaggregation_mode=SimpleNamespace(value="decode"),
        disagg_decode_prealloc_queue=queue,
        disagg_decode_transfer_queue=queue,
        token_to_kv_pool_allocator=SimpleNamespace(available_size=lambda: 300_000),
        tree_cache=SimpleNamespace(evictable_size=lambda: 1000),
        _engine_paused=False,
    )


def measure(board: Path) -> list[tuple[str, float, str, float | None]]:
    """(figure, value, unit, limit or None)."""
    settings, stand_in = EngineSettings.read(ENVIRONMENT), scheduler()
    numbers = Numbers(board / "scheduler-0.numbers", FACT_NAMES, create=True)
    model = replica_model(settings, model_path="", ranks=1)
    side = SchedulerSide(stand_in, numbers, knobs=Knobs(generation=0, itl_milliseconds=50), model=model)
    batch = stand_in.running_batch

    def step() -> None:
        batch.forward_iter += 1
        side.loop_turned()
        side.step_begins(batch)
        side.timer.launched(batch)
        side.step_ended(batch)

    step_cost, cold_cost = microseconds(step), cold_microseconds(step)
    server = ServerSide(settings, board, HookTable(), sglang_version="0.5.23")
    for gateway in range(GATEWAYS):
        server.let_in(Dispatch(gateway=f"{gateway:032x}", sequence=10**6))
    pin_card(board, ProcessInfo(name="scheduler"))
    time.sleep(0.02)
    return [
        (f"hooks in a decode step of {RESIDENTS} requests", step_cost, "µs", 20.0),
        ("the same with the processor's caches cold", cold_cost, "µs", None),
        ("hook in a turn of the loop without a step", microseconds(side.loop_turned), "µs", 20.0),
        ("state document, made", microseconds(lambda: server.state().write()), "µs", 1000.0),
        (f"state document with {GATEWAYS} gateways", float(len(server.state().write())), "bytes", 2048.0),
    ]


def main() -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as board:
        measured = measure(Path(board))
    command = "python tests/bench/bench_plugin.py"
    rows = [
        {
            "figure": figure,
            "value": value,
            "unit": unit,
            "peer": "limit",
            "peer_value": limit,
            "ratio": round(value / limit, 3) if limit else None,
            "command": command,
            "seed": 0,
        }
        for figure, value, unit, limit in measured
    ]
    (RESULTS / "plugin.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    lines = ["# What the plugin costs", "", "| figure | value | unit | limit | ratio |", "|---|---|---|---|---|"]
    lines += [
        f"| {row['figure']} | {row['value']} | {row['unit']} | {row['peer_value']} | {row['ratio']} |" for row in rows
    ]
    lines += ["", f"`{command}`, Python {platform.python_version()}, {os.cpu_count()} cores."]
    (RESULTS / "plugin.md").write_text("\n".join(lines) + "\n")
    for row in rows:
        print(row["figure"], row["value"], row["unit"])
    sys.exit(1 if any(limit is not None and value > limit for _, value, _, limit in measured) else 0)


if __name__ == "__main__":
    main()
