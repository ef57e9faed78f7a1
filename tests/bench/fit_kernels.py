"""Fits the all-reduce and expert figures of the shipped efficiencies to kernel tables, and says how well they fit.

Run: `python tests/bench/fit_kernels.py [--data ../shared/perfdata/kernels] [--write]`, with pyarrow (extra `simulate`).
The times are the roofline's own terms, so there is no second formula. Messages of the all-reduce table are taken as
numbers of bf16 values, as the composed steps count them. Experts: the fused kernel, bf16, tokens spread by a power
law, of Qwen3-30B-A3B, Qwen3-235B-A22B and Mixtral-8x7B at tensor-parallel sizes up to 8. `--write` puts the figures
into data/efficiencies.json; `bench_perf.py --fit` then fits the rest.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from duet_engine.perf.efficiencies import Calibrated, shipped, to_document
from duet_engine.perf.hardware import Gpu, find_gpu
from duet_engine.perf.interface import StepBatch
from duet_engine.perf.models import find_shape
from duet_engine.perf.roofline import Roofline
from duet_engine.perf.shape import ModelShape

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "engine" / "duet_engine" / "perf" / "data" / "efficiencies.json"
ALLREDUCE_NAMES = ("allreduce_launch_seconds", "allreduce_hop_seconds", "link_bandwidth")
EXPERT_NAMES = ("expert_compute", "expert_bandwidth", "expert_launch_seconds")
ALLREDUCE_MODEL = "Qwen/Qwen3-8B"
EXPERT_MODELS = ("Qwen/Qwen3-30B-A3B", "Qwen/Qwen3-235B-A22B", "mistralai/Mixtral-8x7B-v0.1")
DISTRIBUTION = "power_law_1.01"
MOST_RANKS = 8
OUTLIER = 0.1


@dataclass(frozen=True, slots=True)
class KernelRow:
    """One timed kernel, as a step of a model that makes it."""

    shape: ModelShape
    ranks: int
    tokens: float
    seconds: float


def read(data: Path, gpu: Gpu, table: str) -> list[dict[str, Any]]:
    import pyarrow.parquet

    (path,) = data.glob(f"{gpu.name.replace('-', '_')}__{table}_perf.parquet")
    rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
    return rows


def allreduces(data: Path, gpu: Gpu) -> list[KernelRow]:
    shape = find_shape(ALLREDUCE_MODEL)
    return [
        KernelRow(shape, row["num_gpus"], row["message_size"] / shape.hidden_size, row["latency"] / 1e3)
        for row in read(data, gpu, "comm_sglang_*_custom_allreduce")
        if row["backend"] == "sglang_graph"
    ]


def experts(data: Path, gpu: Gpu) -> list[KernelRow]:
    shapes = {
        (shape.hidden_size, shape.experts.intermediate_size, shape.experts.per_token, shape.experts.count): shape
        for shape in map(find_shape, EXPERT_MODELS)
        if shape.experts
    }
    found = []
    for row in read(data, gpu, "moe_sglang_*_moe"):
        key = row["hidden_size"], row["inter_size"], row["topk"], row["num_experts"]
        ranks = row["moe_tp_size"]
        fused = row["kernel_source"] == "sglang_fused_moe_triton" and row["moe_dtype"] == "bfloat16"
        spread = row["moe_ep_size"] == 1 and row["distribution"] == DISTRIBUTION
        if key in shapes and fused and spread and ranks <= MOST_RANKS:
            found.append(KernelRow(shapes[key], ranks, row["num_tokens"], row["latency"] / 1e3))
    return found


def allreduce_seconds(roofline: Roofline, batch: StepBatch) -> float:
    return float(roofline.terms(batch).communication / (2 * roofline.shape.layers))


def expert_seconds(roofline: Roofline, batch: StepBatch) -> float:
    return float(roofline.terms(batch).experts / roofline.shape.expert_layers)


def fit(
    rows: Sequence[KernelRow],
    gpu: Gpu,
    start: Calibrated,
    names: Sequence[str],
    term: Callable[[Roofline, StepBatch], float],
) -> tuple[Calibrated, float]:
    """The figures that fit best, and the mean error."""
    observed = np.array([row.seconds for row in rows])
    batches = [StepBatch(prefill_tokens=row.tokens, prefill_pairs=1.0) for row in rows]

    def at(logarithms: Any) -> Calibrated:
        values = {name: float(f"{value:.3g}") for name, value in zip(names, np.exp(logarithms), strict=True)}
        return replace(start, efficiencies=start.efficiencies.with_values(values))

    def deviations(logarithms: Any) -> Any:
        exact = dict(zip(names, map(float, np.exp(logarithms)), strict=True))
        return np.log(predicted(replace(start, efficiencies=start.efficiencies.with_values(exact))) / observed)

    def predicted(calibrated: Calibrated) -> Any:
        kept: dict[tuple[ModelShape, int], Roofline] = {}
        times = []
        for row, batch in zip(rows, batches, strict=True):
            key = row.shape, row.ranks
            kept[key] = kept.get(key) or Roofline(row.shape, gpu, ranks=row.ranks, calibrated=calibrated)
            times.append(term(kept[key], batch))
        return np.array(times)

    origin = np.log([getattr(start.efficiencies, name) for name in names])
    best = least_squares(deviations, origin, loss="soft_l1", f_scale=OUTLIER)
    found = at(best.x)
    return found, float(np.abs(predicted(found) / observed - 1).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "perfdata" / "kernels")
    parser.add_argument("--write", action="store_true", help="put the figures into data/efficiencies.json")
    options = parser.parse_args()
    if not options.data.is_dir():
        print(f"SKIPPED: {options.data} isn't there; nothing was fitted", file=sys.stderr)
        return
    documents = {}
    for name, calibrated in shipped().items():
        gpu = find_gpu(name)
        parts = (
            ("all-reduce", allreduces(options.data, gpu), ALLREDUCE_NAMES, allreduce_seconds),
            ("experts", experts(options.data, gpu), EXPERT_NAMES, expert_seconds),
        )
        for title, rows, names, term in parts:
            calibrated, error = fit(rows, gpu, calibrated, names, term)
            values = ", ".join(f"{part} {getattr(calibrated.efficiencies, part):.3g}" for part in names)
            print(f"{name} {title}: {len(rows)} kernels, mean error {error:.1%}: {values}")
        documents[name] = to_document(calibrated)
    if options.write:
        SHIPPED.write_text(json.dumps(documents, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
