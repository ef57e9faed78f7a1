"""The shipped efficiencies against the step data they were fitted to; skipped where the data isn't there."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

from duet_engine.perf import table
from duet_engine.perf.calibrate import CalibrationRow, Errors, relative_errors
from duet_engine.perf.efficiencies import efficiencies_for, shipped
from duet_engine.perf.hardware import find_gpu

STEPS = Path(__file__).resolve().parents[4] / "shared" / "perfdata" / "sglang_step_latency.csv"
ROWS_OF_EACH = 130

needs_data = pytest.mark.skipif(not STEPS.is_file(), reason=f"no step data at {STEPS.parent}")


def _rows() -> dict[str, list[table.TableRow]]:
    by_gpu: dict[str, list[table.TableRow]] = defaultdict(list)
    with STEPS.open(encoding="utf-8") as file:
        for row in table.read(file, name=STEPS.name):
            assert isinstance(row, table.TableRow), row
            by_gpu[row.gpu.name].append(row)
    return by_gpu


def _errors(name: str, rows: list[CalibrationRow], *, without: str = "") -> Errors:
    known = {other: calibrated for other, calibrated in shipped().items() if other != without}
    return Errors.of(relative_errors(rows, find_gpu(name), efficiencies_for(find_gpu(name), known=known)))


@needs_data
@pytest.mark.parametrize(
    ("name", "prefill", "mean", "p95"),
    [
        ("a100-sxm", True, 0.025, 0.08),
        ("a100-sxm", False, 0.05, 0.10),
        ("h100-sxm", True, 0.025, 0.08),
        ("h100-sxm", False, 0.025, 0.08),
        ("h200-sxm", True, 0.025, 0.08),
        ("h200-sxm", False, 0.025, 0.08),
    ],
)
def test_errors_stay_within_their_goals(name: str, prefill: bool, mean: float, p95: float) -> None:
    rows = [row.timed() for row in _rows()[name]]
    assert len(rows) == ROWS_OF_EACH
    found = _errors(name, [row for row in rows if row.prefill == prefill])
    assert found.mean <= mean
    assert found.p95 <= p95


@needs_data
@pytest.mark.parametrize("name", ["a100-sxm", "h100-sxm", "h200-sxm"])
def test_a_gpu_is_predicted_from_its_data_sheet_and_the_others(name: str) -> None:
    assert _errors(name, [row.timed() for row in _rows()[name]], without=name).mean <= 0.15


@needs_data
def test_it_says_of_each_row_whether_its_kv_fits() -> None:
    predictor = table.Predictor()
    rows = [row for rows in _rows().values() for row in rows]
    assert [predictor.predicted(row)["kv_fits"] for row in rows] == [row.cells["kv_fits"] for row in rows]
