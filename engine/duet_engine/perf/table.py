"""Steps in a CSV table: read for predicting and calibrating, written with what was predicted.

Invariant: every row is either understood or named by file, line and reason; none is dropped.

Columns: system, model, tp, phase (prefill or decode), batch, isl_or_ctx (tokens of each prompt, or mean context of each
decoding request); latency_ms where a step was timed. Others are carried along. A model is a known id or the path of a
config.json.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from duet_engine.perf.calibrate import CalibrationRow
from duet_engine.perf.efficiencies import Calibrated, efficiencies_for
from duet_engine.perf.hardware import Gpu, find_gpu
from duet_engine.perf.interface import Basis, StepBatch
from duet_engine.perf.models import find_shape
from duet_engine.perf.roofline import Roofline
from duet_engine.perf.shape import ModelShape

REQUIRED = ("system", "model", "tp", "phase", "batch", "isl_or_ctx")
ADDED = ("predicted_ms", "kv_fits", "calibration", "basis")


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that isn't understood."""

    place: str
    reason: str
    cells: Mapping[str, str]

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


@dataclass(frozen=True, slots=True)
class TableRow:
    """A step on one GPU (or several), as a row describes it."""

    place: str
    cells: Mapping[str, str]
    gpu: Gpu
    shape: ModelShape
    ranks: int
    batch: StepBatch
    kv_tokens: int

    def timed(self) -> CalibrationRow:
        """The row as a measurement.

        Raises:
            ValueError: when latency_ms is missing or no time.
        """
        try:
            seconds = float(self.cells.get("latency_ms") or "") / 1e3
        except ValueError:
            raise ValueError(f"{self.place}: latency_ms: must be a number") from None
        if not seconds > 0:
            raise ValueError(f"{self.place}: latency_ms: must be above 0, got {self.cells['latency_ms']}")
        return CalibrationRow(self.shape, self.ranks, self.batch, seconds)


def read(lines: Iterable[str], *, name: str) -> Iterator[TableRow | BadRow]:
    """The rows of a table; `name` is what its places are called by.

    Raises:
        ValueError: when a required column is missing.
    """
    reader = csv.DictReader(lines)
    if missing := set(REQUIRED) - set(reader.fieldnames or ()):
        raise ValueError(f"{name}: the columns {', '.join(sorted(missing))} are missing")
    for cells in reader:
        place = f"{name}:{reader.line_num}"
        if None in cells or None in cells.values():
            texts = {column: text or "" for column, text in cells.items() if column is not None}
            yield BadRow(place, "has more or fewer cells than the header", texts)
            continue
        try:
            yield _row(place, cells)
        except (ValueError, OSError) as error:
            yield BadRow(place, str(error), cells)


def _row(place: str, cells: Mapping[str, str]) -> TableRow:
    batch, tokens = _count(cells, "batch"), _count(cells, "isl_or_ctx")
    if cells["phase"] not in ("prefill", "decode"):
        raise ValueError(f"phase: must be prefill or decode, got {cells['phase']!r}")
    prefill = cells["phase"] == "prefill"
    row = TableRow(
        place=place,
        cells=cells,
        gpu=find_gpu(cells["system"]),
        shape=find_shape(cells["model"]),
        ranks=_count(cells, "tp"),
        batch=StepBatch.prefill(tokens, requests=batch) if prefill else StepBatch.decode(batch, batch * tokens),
        kv_tokens=batch * tokens,
    )
    row.shape.check_ranks(row.ranks)
    return row


def _count(cells: Mapping[str, str], column: str) -> int:
    try:
        count = int(cells[column])
    except ValueError:
        count = 0
    if count < 1:
        raise ValueError(f"{column}: must be a whole number from 1 on, got {cells[column]!r}")
    return count


class Predictor:
    """Predicts rows with the shipped efficiencies, or with a file's where it has the GPU."""

    def __init__(self, calibrations: Mapping[str, Calibrated] | None = None) -> None:
        self._calibrations = {find_gpu(name).name: calibrated for name, calibrated in (calibrations or {}).items()}
        self._rooflines: dict[tuple[str, ModelShape, int], Roofline] = {}

    def predicted(self, row: TableRow | BadRow) -> dict[str, str]:
        """The row's cells with the added ones; these are empty for a row that isn't understood."""
        if isinstance(row, BadRow):
            return {**row.cells, **dict.fromkeys(ADDED, "")}
        roofline = self._roofline(row)
        seconds, basis = roofline.step(row.batch)
        data_sheet = Basis.DATA_SHEET in (roofline.calibrated.bases.prefill, roofline.calibrated.bases.decode)
        return {
            **row.cells,
            "predicted_ms": f"{seconds * 1e3:.3f}",
            "kv_fits": "yes" if row.kv_tokens <= roofline.kv_capacity_tokens else "no",
            "calibration": "data-sheet only" if data_sheet else "calibrated",
            "basis": str(basis),
        }

    def _roofline(self, row: TableRow) -> Roofline:
        key = row.gpu.name, row.shape, row.ranks
        if key not in self._rooflines:
            calibrated = self._calibrations.get(row.gpu.name) or efficiencies_for(row.gpu)
            self._rooflines[key] = Roofline(row.shape, row.gpu, ranks=row.ranks, calibrated=calibrated)
        return self._rooflines[key]
