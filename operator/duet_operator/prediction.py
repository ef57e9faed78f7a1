"""`duet predict` and `duet calibrate`: tables of steps, or step logs, in; predictions or efficiencies out.

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
from duet_engine.perf.models import find_shape
from duet_engine.protocol import StepKind
from duet_engine.step_log import StepLogEntry, durations, read_step_log

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MOST_NAMED = 20
MOST_STEPS_OF_A_KIND = 500
"""An hour's log has hundreds of thousands, and they don't tell more."""
FITTED_KINDS = (StepKind.PREFILL, StepKind.DECODE, StepKind.MIXED)


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
    _fit_and_write(_timed_rows(table), out, parameters, source=table.name)


def calibrate_logs(
    logs: Sequence[TextIO], out: TextIO | None, parameters: Sequence[str], *, gpu: str | None, model: str | None
) -> None:
    """The same from step logs of live engines. `gpu` and `model` stand in for what a log's first line says.

    Raises:
        ValueError: for a line that isn't understood, an unknown GPU or model, or steps that can't tell a parameter.
    """
    rows_by_gpu: dict[str, list[CalibrationRow]] = defaultdict(list)
    for log in logs:
        head, entries = read_step_log(log, name=log.name)
        if not (gpu or head.gpu):
            raise ValueError(f"{log.name}:1: gpu: the log doesn't say which; give --gpu")
        shape, name = find_shape(model or head.model), find_gpu(gpu or head.gpu).name
        rows_by_gpu[name] += [
            CalibrationRow(shape, head.ranks, entry.batch, seconds) for entry, seconds in _some(list(entries))
        ]
    source = ", ".join(log.name for log in logs)
    if not any(rows_by_gpu.values()):
        raise ValueError(f"{source}: no prefill, decode or mixed step to fit to")
    _fit_and_write(rows_by_gpu, out, parameters, source=source)


def _some(entries: Sequence[StepLogEntry]) -> list[tuple[StepLogEntry, float]]:
    """At most so many steps of each kind, evenly over the log, each with how long the next one had to wait for it: the
    engine's own work between two is part of that. A split step's time isn't one batch's."""
    by_kind: dict[StepKind, list[tuple[StepLogEntry, float]]] = {kind: [] for kind in FITTED_KINDS}
    for entry, seconds in zip(entries, durations(entries), strict=True):
        if entry.kind in by_kind:
            by_kind[entry.kind].append((entry, max(seconds, entry.seconds)))
    return [entry for kind in by_kind.values() for entry in kind[:: max(1, -(-len(kind) // MOST_STEPS_OF_A_KIND))]]


def _fit_and_write(
    rows_by_gpu: Mapping[str, Sequence[CalibrationRow]], out: TextIO | None, parameters: Sequence[str], *, source: str
) -> None:
    found: dict[str, Calibration] = {}
    for name, rows in rows_by_gpu.items():
        gpu = find_gpu(name)
        try:
            found[name] = fit(
                rows, gpu, efficiencies_for(gpu), names=parameters or STEP_NAMES, source=f"steps of {source}"
            )
        except ValueError as error:
            raise ValueError(f"{source}: {name}: {error}") from error
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
