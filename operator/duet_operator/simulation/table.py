"""The end of a simulation on a terminal: a column for each variant, then what it rests on.

Invariant: no figure is shown here that the JSON hasn't.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table

from duet_operator.simulation.words import number, percent, seconds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from duet_operator.simulation.outcome import Outcome
    from duet_operator.simulation.study import Study


def print_outcomes(console: Console, study: Study, outcomes: Sequence[Outcome]) -> None:
    """The table and its notes."""
    console.print(_table(study, outcomes))
    for line in notes(study, outcomes):
        console.print(line, style="dim", soft_wrap=True)


def _table(study: Study, outcomes: Sequence[Outcome]) -> Table:
    title = f"{study.name}: {study.workload.name} ({_promise(study)})"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    for outcome in outcomes:
        table.add_column(outcome.name, justify="right", overflow="fold")
    rows = [_cells(outcome, study.spec.attainment_goal) for outcome in outcomes]
    for index, name in enumerate(NAMES):
        table.add_row(name, *(cells[index] for cells in rows))
    return table


def _promise(study: Study) -> str:
    objective = study.spec.objective
    return (
        f"TTFT {seconds(objective.ttft_seconds)}, ITL {seconds(objective.itl_seconds)}, "
        f"for {percent(study.spec.attainment_goal)}"
    )


NAMES = (
    "attainment",
    "TTFT P50",
    "TTFT P95",
    "TTFT P99",
    "TPOT P95",
    "ITL P99",
    "deflected",
    "failed",
    "GPU-hours",
    "GPUs, mean / peak",
    "scale actions",
)


def _cells(outcome: Outcome, goal: float) -> tuple[str, ...]:
    figures = outcome.figures
    held = figures.attainment is not None and figures.attainment >= goal
    return (
        f"[{'green' if held else 'red'}]{percent(figures.attainment, 2)}[/]",
        *map(seconds, (figures.ttft_p50_seconds, figures.ttft_p95_seconds, figures.ttft_p99_seconds)),
        seconds(figures.tpot_p95_seconds),
        seconds(figures.itl_p99_seconds),
        percent(figures.deflected_share),
        str(figures.failed),
        f"{figures.gpu_hours:.2f}",
        f"{figures.mean_gpus:.1f} / {figures.peak_gpus}",
        str(figures.scale_actions),
    )


def notes(study: Study, outcomes: Sequence[Outcome]) -> list[str]:
    """What a reader must know to judge the figures."""
    first = outcomes[0]
    wall = sum(outcome.wall_seconds for outcome in outcomes)
    requests = sum(len(outcome.result.requests) for outcome in outcomes)
    lines = [
        f"{number(first.figures.requests)} requests judged, {first.figures.requests_per_second:.2f}/s; "
        f"{requests} simulated in {wall:.1f} s; seed {study.seed}.",
        f"Workers: {hardware(study)}. Step times: {basis(study)}.",
    ]
    if first.result.warm_up_seconds:
        lines.append(f"The first {first.result.warm_up_seconds / 60:g} minutes aren't judged, but paid for.")
    if study.document.model_error_percent:
        lines.append(f"Steps take {study.document.model_error_percent:+g} % of what policies and planners believe.")
    return lines


def hardware(study: Study) -> str:
    """The workers of both pools, in words."""
    decode = f"{'unified' if study.unified else 'decode'} {study.decode.hardware}"
    if study.prefill is None:
        return f"{decode}, {study.decode.hardware.model}"
    return f"prefill {study.prefill.hardware}, {decode}, {study.decode.hardware.model}"


def basis(study: Study) -> str:
    """What the step times rest on, in words."""
    return ", ".join(f"{use} {found}" for use, found in study.bases.items())
