"""`duet predict` and `duet calibrate`: tables of steps in, predictions or efficiencies out.

Invariant: what isn't understood is said with its file and line, and nothing is written over a refusal.
"""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.table import Table

from duet_engine.perf import table as tables
from duet_engine.perf.calibrate import Calibration, CalibrationRow
from duet_engine.perf.calibrate import calibrate as fit
from duet_engine.perf.efficiencies import STEP_NAMES, Calibrated, efficiencies_for, from_document, to_document
from duet_engine.perf.hardware import find_gpu

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MOST_NAMED = 20


def predict_table(table: TextIO, out: TextIO, calibration: TextIO | None) -> list[str]:
    """Write the table with predictions; returns the rows that weren't understood, as people read them."""
    predictor = tables.Predictor(read_calibrations(calibration) if calibration else None)
    rows = list(tables.read(table, name=table.name))
    columns = list(dict.fromkeys([*(rows[0].cells if rows else tables.REQUIRED), *tables.ADDED]))
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(predictor.predicted(row) for row in rows)
    return _named([row for row in rows if isinstance(row, tables.BadRow)])


def calibrate_table(table: TextIO, out: TextIO | None, parameters: Sequence[str]) -> None:
    """Fit each GPU of the table, print the errors, and write the efficiencies.

    Raises:
        ValueError: for rows that aren't understood, or that can't tell a parameter.
    """
    rows_by_gpu = _timed_rows(table)
    found: dict[str, Calibration] = {}
    for name, rows in rows_by_gpu.items():
        gpu = find_gpu(name)
        try:
            found[name] = fit(
                rows, gpu, efficiencies_for(gpu), names=parameters or STEP_NAMES, source=f"steps of {table.name}"
            )
        except ValueError as error:
            raise ValueError(f"{table.name}: {name}: {error}") from error
    console = Console()
    console.print(_errors(found))
    for name, fitted in found.items():
        console.print(f"{name}: {_values(fitted)}")
    if out is not None:
        json.dump({name: to_document(fitted.calibrated) for name, fitted in found.items()}, out, indent=2)
        out.write("\n")


def read_calibrations(file: TextIO) -> Mapping[str, Calibrated]:
    """What `duet calibrate` wrote.

    Raises:
        ValueError: naming the file, the GPU and the field that is wrong.
    """
    try:
        documents = json.load(file)
        return {find_gpu(name).name: from_document(document) for name, document in documents.items()}
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{file.name}: {error}") from error


def _timed_rows(table: TextIO) -> dict[str, list[CalibrationRow]]:
    rows = list(tables.read(table, name=table.name))
    if bad := _named([row for row in rows if isinstance(row, tables.BadRow)]):
        raise ValueError("\n".join(bad))
    by_gpu: dict[str, list[CalibrationRow]] = defaultdict(list)
    for row in rows:
        if isinstance(row, tables.TableRow):
            by_gpu[row.gpu.name].append(row.timed())
    if not by_gpu:
        raise ValueError(f"{table.name} holds no rows")
    return by_gpu


def _named(bad: Sequence[tables.BadRow]) -> list[str]:
    more = [f"and {len(bad) - MOST_NAMED} more"] if len(bad) > MOST_NAMED else []
    return [str(row) for row in bad[:MOST_NAMED]] + more


def _errors(found: Mapping[str, Calibration]) -> Table:
    table = Table("GPU", "rows", "mean error before", "after", "P95 before", "after")
    for name, fitted in found.items():
        before, after = fitted.before, fitted.after
        table.add_row(
            name, str(after.rows), *(f"{share:.1%}" for share in (before.mean, after.mean, before.p95, after.p95))
        )
    return table


def _values(fitted: Calibration) -> str:
    efficiencies = fitted.calibrated.efficiencies
    return ", ".join(f"{part} {getattr(efficiencies, part):.3g}" for part in fitted.fitted)
