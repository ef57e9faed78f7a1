"""Reading a file to simulate, with what the command line changes of it, and writing what came out.

Invariant: what the command line says goes before what the file says; output files are written only after a whole run.
"""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError

from duet_engine.simulator.workload_document import WorkloadDocument, problems
from duet_operator.simulation.documents import InvalidFileError, read_documents
from duet_operator.simulation.resolve import study
from duet_operator.simulation.table import hardware

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from duet_engine.simulator.result import RequestColumns, SimulationResult
    from duet_operator.simulation.outcome import Outcome
    from duet_operator.simulation.study import Study


def read_study(path: Path, changes: Mapping[str, Any], *, workload: Mapping[str, Any]) -> Study:
    """The study of a file; `changes` and `workload` replace fields of the simulation and of its workload.

    Raises:
        InvalidFileError: naming every field that is wrong.
    """
    deployment, document = read_documents(_documents(path), source=str(path))
    given = {name: value for name, value in changes.items() if value is not None}
    document = document.model_copy(update={**given, "workload": _workload(document.workload, workload)})
    name = deployment.metadata.name if deployment else path.stem
    return study(deployment, document, name=name, base=path.parent, seed=document.seed)


def _documents(path: Path) -> list[Any]:
    try:
        return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidFileError(f"{path}: can't be read: {error}") from error
    except yaml.YAMLError as error:
        raise InvalidFileError(f"{path}: isn't YAML: {error}") from error


def _workload(document: WorkloadDocument | None, changes: Mapping[str, Any]) -> WorkloadDocument | None:
    """The file's workload with the command line's changes; a trace takes the place of what there was."""
    given = {name: value for name, value in changes.items() if value is not None and value is not False}
    if "trace" in given:
        given["trace"] = str(Path(given["trace"]).absolute())
    if document is None and "trace" not in given:
        return None
    present = {} if document is None else document.model_dump(exclude_none=True)
    if "trace" in given:
        present = {name: value for name, value in present.items() if name not in ("traffic", "classes", "minutes")}
    try:
        return WorkloadDocument.model_validate({**present, **given})
    except ValidationError as error:
        raise InvalidFileError("\n".join(f"workload: {problem}" for problem in problems(error))) from error


def results_document(study: Study, outcomes: Sequence[Outcome], *, command: str) -> dict[str, Any]:
    """Everything that a report shows, as JSON values."""
    objective = study.spec.objective
    return {
        "command": command,
        "name": study.name,
        "workload": {
            "name": study.workload.name,
            **study.workload.document.model_dump(exclude_none=True, by_alias=True),
        },
        "workers": hardware(study),
        "basis": {use: str(found) for use, found in study.bases.items()},
        "objective": {
            "ttft_seconds": objective.ttft_seconds,
            "ttft_unloaded_ratio": objective.ttft_unloaded_ratio,
            "itl_seconds": objective.itl_seconds,
            "attainment_goal": study.spec.attainment_goal,
        },
        "variants": [outcome.document() for outcome in outcomes],
    }


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """One line a value would be long, so: indented by one."""
    path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def write_records(path: Path, outcomes: Sequence[Outcome]) -> None:
    """A row for each request of each variant, as parquet."""
    import pyarrow as arrow
    from pyarrow import parquet

    tables = [arrow.table(_columns(outcome.name, outcome.result)) for outcome in outcomes]
    parquet.write_table(arrow.concat_tables(tables), path)


def _columns(variant: str, result: SimulationResult) -> dict[str, Any]:
    rows: RequestColumns = result.requests
    names = {field.name: getattr(rows, field.name) for field in fields(rows)}
    classes = names.pop("class_index")
    return {
        "variant": [variant] * len(rows),
        "class_name": [result.class_names[index] for index in classes],
        **names,
        "ttft_seconds": rows.ttft_seconds,
        "tpot_seconds": rows.tpot_seconds,
        "ttft_met": result.ttft_met,
        "itl_met": result.itl_met,
        "judged": result.judged,
    }
