"""How far predicted step times are from measured ones, and what a prediction costs.

Run: `make bench-perf`, or `python tests/bench/bench_perf.py [--data ../shared/perfdata] [--fit]`. Writes
docs/results/perf.json and perf.md. Errors are |predicted / measured - 1| over all rows of sglang_step_latency.csv, also
those whose KV doesn't fit. "Fitted": the efficiencies that Duet ships. "From the other model": fitted to one model's
rows, judged on the other's. "From the other GPUs": data-sheet figures with the efficiencies of the calibrated GPUs that
are left. Splitwise's measurements (2023, other kernels, whole iterations) are an outside check: the median of measured
over predicted. `--fit` writes the shipped efficiencies anew; launch, link and expert figures stay as they are.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import statistics
import sys
import time
import timeit
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from os import cpu_count
from pathlib import Path

import numpy as np

from duet_engine.perf import table
from duet_engine.perf.calibrate import CalibrationRow, Errors, calibrate, relative_errors
from duet_engine.perf.efficiencies import Calibrated, efficiencies_for, shipped, to_document
from duet_engine.perf.hardware import find_gpu
from duet_engine.perf.interface import Basis, StepBatch
from duet_engine.perf.models import find_shape
from duet_engine.perf.roofline import Roofline
from duet_engine.perf.shape import ModelShape

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results"
SHIPPED = ROOT / "engine" / "duet_engine" / "perf" / "data" / "efficiencies.json"
SOURCE = "steps that aiconfigurator 0.12.0 composed from SGLang kernels timed on this GPU"
NEUTRAL = {
    "linear_compute": 0.75,
    "linear_bandwidth": 0.83,
    "attention_compute": 0.6,
    "attention_bandwidth": 0.9,
    "overlap": 2.5,
    "sustained_slowdown": 1.1,
}
"""What every fit starts from, so that none knows another's result."""
LIMIT_MEAN, LIMIT_P95, LIMIT_A100_DECODE = 2.5, 8.0, 5.0
LIMIT_OTHER_MODEL, LIMIT_OTHER_GPUS, LIMIT_CALL_MICROSECONDS = 7.0, 15.0, 10.0
SPLITWISE_GPUS = {"a100-80gb": "a100-sxm", "h100-80gb": "h100-sxm"}
SPLITWISE_MODEL = "meta-llama/Llama-2-70b-hf"
CANDIDATES = 60

Row = dict[str, object]


def row(figure: str, value: float, unit: str, peer: str, peer_value: float | None) -> Row:
    ratio = round(value / peer_value, 3) if peer_value else None
    return {"figure": figure, "value": value, "unit": unit, "peer": peer, "peer_value": peer_value, "ratio": ratio}


def timed_rows(data: Path) -> dict[str, list[CalibrationRow]]:
    """The rows of the step data by GPU."""
    by_gpu: dict[str, list[CalibrationRow]] = defaultdict(list)
    with (data / "sglang_step_latency.csv").open(encoding="utf-8") as file:
        for found in table.read(file, name=file.name):
            if isinstance(found, table.BadRow):
                raise SystemExit(str(found))
            by_gpu[found.gpu.name].append(found.timed())
    return by_gpu


def neutral(calibrated: Calibrated) -> Calibrated:
    return replace(calibrated, efficiencies=calibrated.efficiencies.with_values(NEUTRAL))


def fit(name: str, rows: Sequence[CalibrationRow]) -> Calibrated:
    start = neutral(shipped()[name])
    return calibrate(rows, find_gpu(name), start, basis=Basis.KERNEL_COMPOSED, source=SOURCE).calibrated


def errors(name: str, rows: Sequence[CalibrationRow], calibrated: Calibrated) -> Errors:
    return Errors.of(relative_errors(rows, find_gpu(name), calibrated))


def fits(name: str, timed: CalibrationRow) -> bool:
    tokens = timed.batch.decode_context_tokens + timed.batch.prefill_tokens
    return tokens <= Roofline(timed.shape, find_gpu(name), ranks=timed.ranks).kv_capacity_tokens


def timed_kernel(data: Path, name: str) -> Callable[[CalibrationRow], bool]:
    """Whether a decode row lies inside the GPU's table of timed attention kernels: some kernel of its heads was timed
    with at least its batch and its context. The others were extrapolated by whoever composed the steps."""
    import pyarrow.parquet

    (path,) = (data / "kernels").glob(f"{name.replace('-', '_')}__attention_*_generation_attention_perf.parquet")
    timed: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for kernel in pyarrow.parquet.read_table(path).to_pylist():
        heads = kernel["num_heads"], kernel["num_key_value_heads"]
        timed[heads].append((kernel["batch_size"], kernel["isl"] + kernel["step"]))

    def inside(judged: CalibrationRow) -> bool:
        shape, ranks, batch = judged.shape, judged.ranks, judged.batch
        context = batch.decode_context_tokens / batch.decode_requests
        known = timed[shape.query_heads // ranks, int(shape.key_value_heads_on(ranks))]
        return any(requests >= batch.decode_requests and tokens >= context for requests, tokens in known)

    return inside


def percent(share: float) -> float:
    return round(100 * share, 2)


# --- errors ---


def inside_errors(by_gpu: dict[str, list[CalibrationRow]], data: Path) -> Iterable[Row]:
    for name, rows in by_gpu.items():
        inside = timed_kernel(data, name)
        decode = [timed for timed in rows if not timed.prefill]
        judged = [timed for timed in decode if inside(timed)]
        found = errors(name, judged, shipped()[name])
        figure = f"fitted, {name} decode, the {len(judged)} of {len(decode)} rows inside the kernel table"
        yield row(f"{figure}, mean error", percent(found.mean), "%", "limit", LIMIT_MEAN)
        yield row(f"{figure}, P95 error", percent(found.p95), "%", "limit", LIMIT_P95)


def fitted_errors(by_gpu: dict[str, list[CalibrationRow]]) -> Iterable[Row]:
    for name, rows in by_gpu.items():
        for phase in ("prefill", "decode"):
            found = errors(name, [timed for timed in rows if timed.prefill == (phase == "prefill")], shipped()[name])
            limit = LIMIT_A100_DECODE if (name, phase) == ("a100-sxm", "decode") else LIMIT_MEAN
            yield row(f"fitted, {name} {phase}, mean error", percent(found.mean), "%", "limit", limit)
            yield row(f"fitted, {name} {phase}, P95 error", percent(found.p95), "%", "limit", LIMIT_P95)
        found = errors(name, [timed for timed in rows if fits(name, timed)], shipped()[name])
        yield row(f"fitted, {name}, rows whose KV fits, P95 error", percent(found.p95), "%", "limit", LIMIT_P95)


def other_model_errors(by_gpu: dict[str, list[CalibrationRow]]) -> Iterable[Row]:
    for name, rows in by_gpu.items():
        by_model: dict[ModelShape, list[CalibrationRow]] = defaultdict(list)
        for timed in rows:
            by_model[timed.shape].append(timed)
        for shape, judged in by_model.items():
            calibrated = fit(name, [timed for timed in rows if timed.shape != shape])
            figure = (
                f"from the other model, {name}, {shape.parameters / 1e9:.0f}B with TP {judged[0].ranks}, mean error"
            )
            yield row(figure, percent(errors(name, judged, calibrated).mean), "%", "limit", LIMIT_OTHER_MODEL)


def other_gpu_errors(by_gpu: dict[str, list[CalibrationRow]]) -> Iterable[Row]:
    for name, rows in by_gpu.items():
        others = {other: calibrated for other, calibrated in shipped().items() if other != name}
        found = errors(name, rows, efficiencies_for(find_gpu(name), known=others))
        yield row(f"from the other GPUs, {name}, mean error", percent(found.mean), "%", "limit", LIMIT_OTHER_GPUS)


def splitwise(data: Path) -> Iterable[Row]:
    ratios: dict[tuple[str, int, str], list[float]] = defaultdict(list)
    with (data / "splitwise_perf_model.csv").open(encoding="utf-8") as file:
        for cells in csv.DictReader(file):
            if cells["model"] != "llama2-70b" or cells["hardware"] not in SPLITWISE_GPUS:
                continue
            name, ranks = SPLITWISE_GPUS[cells["hardware"]], int(cells["tensor_parallel"])
            prompt, output, batch = (int(cells[column]) for column in ("prompt_size", "token_size", "batch_size"))
            roofline = Roofline(find_shape(SPLITWISE_MODEL), find_gpu(name), ranks=ranks)
            prefill = roofline.step_seconds(StepBatch.prefill(prompt, requests=batch))
            decode = roofline.step_seconds(StepBatch.decode(batch, batch * (prompt + output / 2)))
            ratios[name, ranks, "prompt"].append(float(cells["prompt_time"]) / 1e3 / prefill)
            ratios[name, ranks, "token"].append(float(cells["token_time"]) / 1e3 / decode)
    for (name, ranks, phase), values in sorted(ratios.items()):
        figure = f"Splitwise, llama2-70b on {name} with TP {ranks}, {phase} time over predicted, median"
        yield row(figure, round(statistics.median(values), 2), "x", "-", None)


# --- cost ---


def least_seconds(call: Callable[[], object], *, number: int = 40, repeat: int = 300) -> float:
    """CPU time of one call in the quickest of many short series: what the call costs, and not its neighbours."""
    return min(timeit.repeat(call, time.process_time, number=number, repeat=repeat)) / number


def call_costs() -> Iterable[Row]:
    roofline = Roofline(find_shape("Qwen/Qwen3-8B"), find_gpu("h100-sxm"))
    batch = StepBatch.decode(64, 128_000).with_chunks(512, 1024)
    shares = np.linspace(0.1, 0.9, CANDIDATES)
    whole = least_seconds(lambda: roofline.step_seconds(batch))
    alone = least_seconds(lambda: roofline.step_seconds(batch, sm_share=0.5))
    many = least_seconds(lambda: roofline.step_seconds_over(batch, shares))
    yield row("one mixed batch on all SMs", round(whole * 1e6, 1), "µs", "limit", LIMIT_CALL_MICROSECONDS)
    yield row("one mixed batch at half of the SMs", round(alone * 1e6, 1), "µs", "limit", LIMIT_CALL_MICROSECONDS)
    figure = f"one mixed batch at {CANDIDATES} shares in one call, each"
    yield row(figure, round(many * 1e6 / CANDIDATES, 1), "µs", "limit", LIMIT_CALL_MICROSECONDS)


# --- report ---


def report(rows: Sequence[Row]) -> None:
    command = "python tests/bench/bench_perf.py"
    written = [{**found, "command": command, "seed": None} for found in rows]
    (RESULTS / "perf.json").write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    lines = [
        "# Performance model",
        "",
        "Errors are \\|predicted / measured - 1\\| over all 390 rows of the step data; KV need not fit.",
        "What the figures mean: [performance-model.md](../performance-model.md).",
        "",
        "| figure | value | unit | peer | peer value | ratio |",
        "|---|---|---|---|---|---|",
    ]
    for found in rows:
        cells = [found[name] for name in ("figure", "value", "unit", "peer", "peer_value", "ratio")]
        lines.append(f"| {' | '.join('-' if cell is None else str(cell) for cell in cells)} |")
    system = f"Python {platform.python_version()}, {cpu_count()} cores"
    lines += ["", f"`{command}`; errors don't depend on the machine; costs are CPU time on {system}.", ""]
    (RESULTS / "perf.md").write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


def write_fit(by_gpu: dict[str, list[CalibrationRow]]) -> None:
    documents = {name: to_document(fit(name, rows)) for name, rows in by_gpu.items()}
    SHIPPED.write_text(json.dumps(documents, indent=2) + "\n", encoding="utf-8")
    shipped.cache_clear()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "perfdata")
    parser.add_argument("--fit", action="store_true", help="write the shipped efficiencies anew")
    options = parser.parse_args()
    if not (options.data / "sglang_step_latency.csv").is_file():
        print(f"SKIPPED: {options.data} holds no sglang_step_latency.csv; nothing was measured", file=sys.stderr)
        return
    by_gpu = timed_rows(options.data)
    if options.fit:
        write_fit(by_gpu)
    fitted = [*fitted_errors(by_gpu), *inside_errors(by_gpu, options.data)]
    errors_rows = [*fitted, *other_model_errors(by_gpu), *other_gpu_errors(by_gpu)]
    report([*errors_rows, *splitwise(options.data), *call_costs()])


if __name__ == "__main__":
    main()
