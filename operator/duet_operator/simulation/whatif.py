"""The what-if table: the same load more and less, other objectives, other GPUs, MIG slices and MPS
shares, other tensor parallelism.

Invariant: every row is the sizing law's answer to a study that differs in the one thing that it names; combinations
that can't run (weights that don't fit, heads that don't divide) are left out, not guessed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from duet_engine.perf.hardware import gpus
from duet_operator.simulation.replicas import Hardware, Replica, replica
from duet_operator.simulation.sizing import Answer, LoadSummary, answer, with_objective

if TYPE_CHECKING:
    from collections.abc import Iterator

    from duet_operator.simulation.replicas import Knowledge
    from duet_operator.simulation.study import Study

LOAD_FACTORS = (0.5, 0.8, 1.2, 1.5, 2.0)
OBJECTIVE_FACTORS = (0.5, 2.0)
RANKS = (1, 2, 4, 8)
MPS_PERCENTS = (50, 25)
"""As many workers as there is room for share a GPU evenly."""
NO_GPU = "cpu"
"""The entry for machines without one."""
WHOLE_SLICE = "7g"
"""A slice that is the whole GPU answers nothing new."""


@dataclass(frozen=True, slots=True)
class Row:
    """One question and its answer."""

    group: str
    what: str
    answer: Answer


def rows(study: Study, summary: LoadSummary, knowledge: Knowledge) -> list[Row]:
    """All of them, the present question first."""
    return [
        Row("as asked", _hardware(study), answer(study, summary)),
        *_loads(study, summary),
        *_objectives(study, summary),
        *_hardwares(study, summary, knowledge),
    ]


def _loads(study: Study, summary: LoadSummary) -> Iterator[Row]:
    for factor in LOAD_FACTORS:
        yield Row("load", f"{100 * (factor - 1):+.0f} %", answer(study, summary, factor=factor))


def _objectives(study: Study, summary: LoadSummary) -> Iterator[Row]:
    objective = study.spec.objective
    for factor in OBJECTIVE_FACTORS:
        changed = with_objective(study, ttft=factor)
        yield Row("TTFT", f"{1000 * objective.ttft_seconds * factor:.0f} ms", answer(changed, summary))
    for factor in OBJECTIVE_FACTORS:
        changed = with_objective(study, itl=factor)
        yield Row("ITL", f"{1000 * objective.itl_seconds * factor:.0f} ms", answer(changed, summary))


def _hardwares(study: Study, summary: LoadSummary, knowledge: Knowledge) -> Iterator[Row]:
    """Each GPU and slice with the fewest ranks that fit, then shares of the present GPU, then others of it together."""
    own = study.decode.hardware
    for name, gpu in gpus().items():
        if name == own.gpu or gpu.architecture == NO_GPU or (gpu.mig and f"-{WHOLE_SLICE}." in name):
            continue
        fitting = (_made(own.model, name, ranks, knowledge) for ranks in RANKS if ranks == 1 or not gpu.mig)
        found = next((each for each in fitting if each is not None), None)
        if found is not None:
            yield Row("GPU", str(found.hardware), answer(_on(study, found), summary))
    if gpus()[own.gpu].mig:
        return
    for percent in MPS_PERCENTS:
        found = _made(own.model, own.gpu, own.ranks, knowledge, mps_percent=percent)
        if found is not None:
            yield Row("MPS", str(found.hardware), answer(_on(study, found), summary))
    for ranks in RANKS:
        found = None if ranks == own.ranks else _made(own.model, own.gpu, ranks, knowledge)
        if found is not None:
            yield Row("TP", str(found.hardware), answer(_on(study, found), summary))


def _made(model: str, gpu: str, ranks: int, knowledge: Knowledge, *, mps_percent: int = 100) -> Replica | None:
    try:
        return replica(Hardware(model, gpu, ranks, mps_percent), knowledge)
    except ValueError:
        return None


def _on(study: Study, workers: Replica) -> Study:
    """The study with both pools on such workers."""
    return replace(study, decode=workers, prefill=None if study.prefill is None else workers)


def _hardware(study: Study) -> str:
    if study.prefill is None or study.prefill.hardware == study.decode.hardware:
        return str(study.decode.hardware)
    return f"{study.prefill.hardware} and {study.decode.hardware}"
