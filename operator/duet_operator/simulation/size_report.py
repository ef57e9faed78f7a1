"""The answer of `duet size`, for people and as JSON.

Invariant: the JSON holds every figure that the terminal shows.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from duet_operator.simulation.table import basis, hardware
from duet_operator.simulation.words import ABSENT, counts, number, percent, seconds

if TYPE_CHECKING:
    from rich.console import Console

    from duet_operator.simulation.sizing import Answer, LoadSummary
    from duet_operator.simulation.study import Study
    from duet_operator.simulation.verification import Trial
    from duet_operator.simulation.whatif import Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything that was found."""

    study: Study
    summary: LoadSummary
    by_law: Answer
    settled: Trial | None
    """The smallest size that a simulation held; None where nothing was simulated, or none held."""
    simulated_headroom: float | None
    trials: tuple[Trial, ...]
    questions: tuple[Row, ...]

    @property
    def gpus(self) -> int:
        """Of the answer."""
        chosen = self.settled.counts if self.settled else self.by_law.counts
        spec = self.study.spec
        return chosen.prefill * spec.prefill.gpus_per_replica + chosen.decode * spec.decode.gpus_per_replica

    def document(self) -> dict[str, Any]:
        """As JSON values."""
        chosen = self.settled.counts if self.settled else self.by_law.counts
        return {
            "load": asdict(self.summary),
            "workers": hardware(self.study),
            "basis": {use: str(found) for use, found in self.study.bases.items()},
            "answer": {
                **asdict(chosen),
                "gpus": self.gpus,
                "verified": self.settled is not None,
                "headroom": self.simulated_headroom if self.settled else self.by_law.headroom,
            },
            "sizing_law": asdict(self.by_law),
            "trials": [asdict(trial) for trial in self.trials],
            "what_if": [{"group": row.group, "what": row.what, **asdict(row.answer)} for row in self.questions],
        }


def trial_words(trial: Trial) -> str:
    """One trial, for a progress line."""
    return f"{counts(trial.counts.prefill, trial.counts.decode)} workers: {percent(trial.attainment, 2)}"


def print_report(console: Console, report: Report) -> None:
    """The load, the answer, what was tried, what if."""
    _print_load(console, report)
    _print_answer(console, report)
    if report.trials:
        console.print(_trials(report))
    console.print(_questions(report))
    console.print(
        "By the sizing law of the live planner, not simulated. GPUs of a MIG or MPS row are shares. A red "
        "objective is missed by a request alone. Basis: the weakest of the step times that the row uses.",
        style="dim",
    )


def _print_load(console: Console, report: Report) -> None:
    summary, objective = report.summary, report.study.spec.objective
    console.print(
        f"Load: {summary.requests_per_second:.2f} requests/s in the busiest {summary.window_seconds / 60:.3g} min "
        f"({summary.mean_requests_per_second:.2f} on average), prompts {summary.mean_input_tokens:.0f} tokens "
        f"(P95 {summary.p95_input_tokens:.0f}), answers {summary.mean_output_tokens:.0f}.",
        highlight=False,
    )
    unloaded = objective.ttft_unloaded_ratio
    console.print(
        f"Objectives: TTFT {seconds(objective.ttft_seconds)}"
        + (f" or {unloaded:g} x unloaded" if unloaded else "")
        + f", ITL {seconds(objective.itl_seconds)}, for {percent(report.study.spec.attainment_goal)} of the requests.",
        highlight=False,
    )
    console.print(f"Workers: {hardware(report.study)}. Step times: {basis(report.study)}.", highlight=False)


def _print_answer(console: Console, report: Report) -> None:
    law, settled = report.by_law, report.settled
    console.print()
    if not law.feasible:
        why = f"one request alone misses {law.misses}" if law.misses else "no number of workers is enough"
        console.print(f"[bold red]No size holds this: {why}.[/] See the what-if table for what would.")
        return
    if settled is None:
        said = "no simulated size held; the largest tried are below" if report.trials else "by the sizing law alone"
        size = f"{law.counts.prefill} prefill + {law.counts.decode} decode workers, {law.gpus} GPUs"
        console.print(f"[bold]{size}[/] ({said}; headroom by the law {percent(law.headroom, 0)})")
        return
    chosen = settled.counts
    more = report.simulated_headroom or 0.0
    console.print(
        f"[bold green]{chosen.prefill} prefill + {chosen.decode} decode workers, {report.gpus} GPUs[/]: "
        f"{percent(settled.attainment, 2)} of {settled.requests} simulated requests met both objectives, "
        f"TTFT P95 {seconds(settled.ttft_p95_seconds)}, TPOT P95 {seconds(settled.tpot_p95_seconds)}. "
        + (f"Held {percent(more, 0)} more load too." if more else "5 % more load was too much."),
        highlight=False,
    )
    if law.counts != chosen:
        console.print(
            f"The sizing law alone says {counts(law.counts.prefill, law.counts.decode)}, {law.gpus} GPUs.", style="dim"
        )


def _trials(report: Report) -> Table:
    table = Table(title="Simulated", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in ("prefill + decode", "load", "attainment", "TTFT met", "ITL met", "TTFT P95", "TPOT P95"):
        table.add_column(name, justify="right")
    goal = report.study.spec.attainment_goal
    for trial in report.trials:
        table.add_row(
            counts(trial.counts.prefill, trial.counts.decode),
            f"x {trial.speed:g}",
            f"[{'green' if trial.attainment >= goal else 'red'}]{percent(trial.attainment, 2)}[/]",
            percent(trial.ttft_attainment, 2),
            percent(trial.itl_attainment, 2),
            seconds(trial.ttft_p95_seconds),
            seconds(trial.tpot_p95_seconds),
        )
    return table


def _questions(report: Report) -> Table:
    table = Table(title="What if (workers: prefill + decode)", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    for name in ("workers", "GPUs", "headroom", "deflected"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("basis", no_wrap=True)
    for row in report.questions:
        table.add_row(f"{row.group} {row.what}", *_cells(row.answer))
    return table


def _cells(answer: Answer) -> tuple[str, ...]:
    if not answer.feasible:
        return (f"[red]{answer.misses or ABSENT}[/]", ABSENT, ABSENT, ABSENT, str(answer.basis))
    return (
        counts(answer.counts.prefill, answer.counts.decode),
        number(answer.gpus),
        percent(answer.headroom, 0),
        percent(answer.deflected_share, 0),
        str(answer.basis),
    )
