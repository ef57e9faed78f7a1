"""The simulator beside NVIDIA Dynamo's replay with its mocker (`engine_type=vllm`): the same answers, and how fast?

Run: `make bench-simulator DYNAMO=FOLDER`, or `python tests/bench/bench_simulator_peer.py --python FOLDER/bin/python`.
FOLDER is a virtual environment of its own with ai-dynamo 1.4.2 (Apache-2.0), which nothing of Duet's needs:

    uv venv FOLDER && echo 'certifi>=2024' > override.txt
    VIRTUAL_ENV=FOLDER uv pip install --override override.txt ai-dynamo==1.4.2 pmdarima prophet filterpy scikit-learn \\
        plotly pydantic grpcio protobuf prometheus-api-client dash

Both play the same requests on 6 prefill and 14 decode workers, round robin, without noise, hops and prefix caches, with
step times from the same model (the mocker's from a table of them) and KV at the same rate. Speed is CPU time of one
process, less what importing takes. Writes docs/results/simulator_peer.{md,json}.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from bench_simulator import SEED, conversations  # noqa: E402
from bench_simulator import scenario as with_live_dispatch  # noqa: E402
from tests.support.bench_rows import RESULTS, Row, row, write_results  # noqa: E402

from duet_engine.perf.interface import StepBatch, StepTimes  # noqa: E402
from duet_engine.policy.baselines import Baseline  # noqa: E402
from duet_engine.simulator.result import SimulationResult  # noqa: E402
from duet_engine.simulator.run import simulate  # noqa: E402
from duet_engine.simulator.scenario import (  # noqa: E402
    NO_NOISE,
    EngineLimits,
    GatewayLimits,
    Network,
    Scenario,
    baseline_dispatch,
)
from duet_engine.simulator.workload import PREFIX_BLOCK_TOKENS, Request, from_trace, mooncake_lines  # noqa: E402

ROUNDS = 3
BLOCK_TOKENS = 16
KV_BYTES_PER_TOKEN = 131_072
"""Llama-3.1-8B's: 32 layers, 8 heads of 128, keys and values, two bytes."""
NOTES = """
Tokens come at the same gaps. TTFTs differ by more than a tenth, for these reasons, seen request by request:

- A prompt stays on the mocker's prefill worker until the batch after its own has been computed, where there is one
  (*held*, about a sixth of the prompts). SGLang hands it over when its own batch is done, and so do the simulator and
  the simulated engine.
- The mocker's first token comes with a decode step of its own after the KV's arrival. SGLang's decode worker sends the
  token that the prefill made, at once.
- The mocker takes prompts of a batch for one prompt of all their tokens, so that each attends to the others: 2 to 4 %
  more for batches of two to four.
- In the simulator, as in SGLang, a prompt waits until its decode worker has ended its step and has claimed KV for it:
  half a decode step, which the mocker doesn't have. That is the whole difference in the wait for the prefill worker.

With held batches and first steps taken off, TTFTs agree within 5 %. Speeds are of one run on a machine that had other
work, best of three rounds each: only their ratio means anything. The replay's includes a line written for each request.
`engine_type=sglang` isn't compared: in that release it charges the whole decode to the prefill worker.
"""


@dataclass(frozen=True, slots=True)
class Theirs:
    """What the replay said of each request, in order of arrival, in milliseconds."""

    rows: Sequence[dict[str, float]]
    cpu_seconds: float

    def of(self, later: str, earlier: str = "") -> np.ndarray:
        return np.array([each[later] - (each[earlier] if earlier else 0.0) for each in self.rows])


def plain(base: Scenario) -> Scenario:
    """As the mocker can have it."""
    limits = EngineLimits(graph_batch_sizes=())
    assert base.prefill is not None
    return replace(
        base,
        prefill=replace(base.prefill, limits=limits),
        decode=replace(base.decode, limits=limits, local_prefill=None),
        dispatch=baseline_dispatch(Baseline.ROUND_ROBIN),
        noise=NO_NOISE,
        network=Network(hop_seconds=0.0),
        gateway=GatewayLimits(state_interval_seconds=0.0, state_age_seconds=0.0),
    )


def with_own_blocks(requests: Iterable[Request]) -> Iterator[Request]:
    """Hashes that no two prompts share: the replay wants some."""
    numbers = count()
    for request in requests:
        blocks = -(-request.input_tokens // PREFIX_BLOCK_TOKENS)
        yield replace(request, prefix_block_hashes=tuple(islice(numbers, blocks)))


def write_table(path: Path, steps: StepTimes, kv_capacity_tokens: int) -> None:
    """Our step times as the mocker reads them."""
    prompts = np.concatenate([np.linspace(1, 2048, 256), np.linspace(2080, 32_768, 256)])
    contexts = np.concatenate([np.linspace(64, 4096, 127), np.linspace(4224, 32_768, 100)])
    used = np.linspace(0, kv_capacity_tokens, 401)

    def decode(tokens: float, context: float) -> float:
        return 1000 * steps.step_seconds(StepBatch.decode(max(1.0, tokens / context), max(tokens, context)))

    np.savez(
        path,
        prefill_isl=prompts,
        prefill_ttft_ms=np.array([1000 * steps.step_seconds(StepBatch.prefill(int(tokens))) for tokens in prompts]),
        decode_active_kv_tokens=used,
        decode_context_length=contexts,
        decode_itl=np.minimum([[decode(tokens, context) for context in contexts] for tokens in used], 200.0),
    )


def replayed(python: str, trace: Path, base: Scenario, folder: Path) -> Theirs:
    """One run of Dynamo's replay."""
    assert base.prefill is not None
    steps = base.prefill.steps
    write_table(folder / "table.npz", steps, base.decode.kv_capacity_tokens)
    link = (steps.transfer_seconds(1 << 20) - steps.transfer_seconds(0)) / (1 << 20)
    engine = {
        "engine_type": "vllm", "max_model_len": 32_768, "block_size": BLOCK_TOKENS, "max_num_seqs": 256,
        "num_gpu_blocks": base.decode.kv_capacity_tokens // BLOCK_TOKENS, "max_num_batched_tokens": 8192,
        "planner_profile_data": str(folder / "table.npz"), "kv_bytes_per_token": KV_BYTES_PER_TOKEN,
        "kv_transfer_bandwidth": KV_BYTES_PER_TOKEN / link / 1e9, "enable_prefix_caching": False,
    }  # fmt: skip
    command = [python, "-m", "dynamo.replay", str(trace), "--trace-format", "mooncake", "--router-mode", "round_robin"]
    command += ["--num-prefill-workers", str(base.prefill.replicas), "--num-decode-workers", str(base.decode.replicas)]
    command += ["--prefill-engine-args", json.dumps(engine | {"worker_type": "prefill"})]
    command += ["--decode-engine-args", json.dumps(engine | {"worker_type": "decode"})]
    command += ["--report-json", str(folder / "report.json"), "--report-jsonl", str(folder / "rows.jsonl")]
    command += ["--sla-ttft-ms", "1000", "--sla-itl-ms", "50"]
    imports = cpu_seconds([python, "-c", "import dynamo.replay.main"])
    seconds = cpu_seconds(command) - imports
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    rows.sort(key=lambda each: (each["arrival_time_ms"], each["input_length"], each["output_length"]))
    return Theirs(rows, seconds)


def cpu_seconds(command: list[str]) -> float:
    """The least of the rounds."""
    best = float("inf")
    for _ in range(ROUNDS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        quiet = {"RUST_LOG": "error", "DYN_LOG": "error", "TRANSFORMERS_VERBOSITY": "error"}
        subprocess.run(command, check=True, env=os.environ | quiet, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return best


def simulated(scenario: Scenario, requests: Sequence[Request]) -> tuple[SimulationResult, float]:
    """The result, and the least CPU seconds of the rounds."""
    best = float("inf")
    for _ in range(ROUNDS):
        started = time.process_time()
        result = simulate(scenario, requests)
        best = min(best, time.process_time() - started)
    return result, best


def compared(theirs: Theirs, ours: SimulationResult, requests: Sequence[Request]) -> list[Row]:
    """Percentiles of both, request by request where parts are taken off."""
    rows = ours.requests
    order = sorted(
        range(len(requests)),
        key=lambda each: (
            round(1000 * float(rows.arrival_seconds[each])),
            rows.input_tokens[each],
            rows.output_tokens[each],
        ),
    )
    batch = 1000 * (rows.prefill_ended_seconds - rows.prefill_started_seconds)[order]
    held = np.maximum(theirs.of("source_held_ms", "prefill_admit_ms") - batch, 0.0)
    first_step = theirs.of("first_token_ms", "destination_activated_ms")
    pairs = {
        "wait for the prefill worker": (
            1000 * (rows.prefill_started_seconds - rows.arrival_seconds),
            theirs.of("prefill_admit_ms", "arrival_time_ms"),
        ),
        "TPOT": (1000 * rows.tpot_seconds[rows.output_tokens > 1], tpot(theirs)),
        "TTFT as it is": (1000 * rows.ttft_seconds, theirs.of("ttft_ms")),
        "TTFT less held and first step": (1000 * rows.ttft_seconds, theirs.of("ttft_ms") - held - first_step),
    }
    found = []
    for name, (own, other) in pairs.items():
        for percent in (50, 95):
            value, peer = float(np.percentile(own, percent)), float(np.percentile(other, percent))
            found.append(row(f"{name}: P{percent}", round(value, 3), "ms", "Dynamo's mocker", round(peer, 3)))
        value, peer = float(own.mean()), float(other.mean())
        found.append(row(f"{name}: mean", round(value, 3), "ms", "Dynamo's mocker", round(peer, 3)))
    found.append(
        row("prompts held for another batch", 0.0, "share", "Dynamo's mocker", round(float((held > 1).mean()), 3))
    )
    return found


def tpot(theirs: Theirs) -> np.ndarray:
    """Of answers with more than one token."""
    return np.array(
        [
            (each["last_token_ms"] - each["first_token_ms"]) / (each["output_length"] - 1)
            for each in theirs.rows
            if each["output_length"] > 1
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="of the environment that has ai-dynamo")
    parser.add_argument("--requests", type=int, default=6000)
    parser.add_argument("--rate", type=float, default=100.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trace = folder / "trace.jsonl"
        unlike = with_own_blocks(conversations(options.rate, options.requests))
        trace.write_text("".join(f"{line}\n" for line in mooncake_lines(unlike)))
        requests = list(from_trace(trace))
        theirs = replayed(options.python, trace, plain(with_live_dispatch()), folder)
    ours, seconds = simulated(plain(with_live_dispatch()), requests)
    live, live_seconds = simulated(with_live_dispatch(), requests)
    rows = compared(theirs, ours, requests)
    speed = len(theirs.rows) / theirs.cpu_seconds
    for figure, result, taken in (("round robin", ours, seconds), ("live dispatch, noise", live, live_seconds)):
        own = len(result.requests) / taken
        rows.append(row(f"{figure}: requests a CPU second", round(own), "1/s", "Dynamo's replay", round(speed)))
    for each in rows:
        print(
            f"{each['figure']}: {each['value']} {each['unit']}, {each['peer']} {each['peer_value']} ({each['ratio']})"
        )
    command = f"python tests/bench/bench_simulator_peer.py --rate {options.rate:g} --requests {options.requests}"
    title = "The simulator beside Dynamo's replay (ai-dynamo 1.4.2, mocker, engine_type=vllm)"
    write_results(rows, name="simulator_peer", title=title, command=command, seed=SEED)
    page = RESULTS / "simulator_peer.md"
    page.write_text(page.read_text() + NOTES)


if __name__ == "__main__":
    main()
