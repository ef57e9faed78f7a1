"""The end report: a table for people, a JSON document for programs.

Invariant: the JSON holds every figure that the table and the picture show, with its unit in its name, so both can be
made again from it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from duet_dev.demo.run import Criterion, ExitStatus, Run
from duet_dev.demo.words import milliseconds, percent

WINDOW_SECONDS = 5.0
VERDICTS = {
    ExitStatus.PASSED: "[bold green]PASSED[/]",
    ExitStatus.FAILED: "[bold red]FAILED[/]",
    ExitStatus.INVALID: "[bold yellow]INVALID RUN[/]: the machine was too busy to measure; try with less beside it",
}
SHOWN_FAILURES = 5


def document(run: Run, *, settings: Mapping[str, Any], stages_seconds: Mapping[str, float]) -> dict[str, Any]:
    """Every figure of a run."""
    return {
        "settings": dict(settings),
        "stages_seconds": {name: round(seconds, 2) for name, seconds in stages_seconds.items()},
        "verdict": run.exit_status().name.lower(),
        "criteria": [asdict(criterion) for criterion in (run.clock(), *run.criteria())],
        "figures": asdict(run.figures),
        "planned_requests": run.planned_requests,
        "attainment_goal": run.attainment_goal,
        "duration_seconds": run.duration_seconds,
        "gpu_hours": run.gpu_hours,
        "peak_gpus": run.peak_gpus,
        "peak_held_gpu_hours": run.peak_gpu_hours,
        "gpu_hours_ratio": run.gpu_hours_ratio,
        "loop_lag_p99_seconds": {"load_generator": run.generator_lag_seconds, "gateway": run.gateway_lag_seconds},
        "failures": [record.model_dump(exclude={"gaps_milliseconds"}) for record in run.results.failed],
        "scale_actions": [asdict(action) for action in run.loaded_actions],
        "pods": [asdict(lease) for lease in run.leases],
        "timeline": _timeline(run),
    }


def _timeline(run: Run) -> dict[str, Any]:
    """Samples of the cluster and windows of requests, by seconds since the first request."""
    start = run.start_seconds
    windows = []
    for index in range(int(run.duration_seconds // WINDOW_SECONDS) + 1):
        since = index * WINDOW_SECONDS
        windows.append(
            {"since_seconds": since, **asdict(run.results.figures(start + since, start + since + WINDOW_SECONDS))}
        )
    samples = [{**asdict(sample), "time_seconds": sample.time_seconds - start} for sample in run.loaded_samples]
    return {"start_seconds": start, "window_seconds": WINDOW_SECONDS, "windows": windows, "samples": samples}


def write_json(path: Path, report: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(report, indent=1) + "\n")


def print_report(console: Console, run: Run) -> None:
    """The table, then one line per criterion, then the verdict."""
    console.print(_table(run))
    for record in run.results.failed[:SHOWN_FAILURES]:
        console.print(f"  [red]failed[/] request {record.index} ({record.endpoint}): {record.failure}", markup=True)
    for criterion in (run.clock(), *run.criteria()):
        console.print(_line(criterion), soft_wrap=True)
    console.print(VERDICTS[run.exit_status()])


def _line(criterion: Criterion) -> str:
    mark = "[green]ok  [/]" if criterion.passed else "[red]miss[/]" if criterion.required else "[yellow]miss[/]"
    return f"{mark} {criterion.name}: {criterion.text}"


def _table(run: Run) -> Table:
    figures = run.figures
    table = Table(title="What the run's users saw and what it cost", show_header=False, title_justify="left")
    table.add_column()
    table.add_column(justify="right")
    rows = (
        ("requests", f"{figures.requests} in {run.duration_seconds:.0f} s ({figures.requests_per_second:.1f}/s)"),
        ("output tokens/s", f"{figures.output_tokens_per_second:.0f}"),
        ("TTFT P50 / P95", f"{milliseconds(figures.ttft_p50_seconds)} / {milliseconds(figures.ttft_p95_seconds)}"),
        ("ITL P50 / P95", f"{milliseconds(figures.itl_p50_seconds)} / {milliseconds(figures.itl_p95_seconds)}"),
        ("attainment (TTFT, ITL)", " / ".join(map(percent, (figures.ttft_attainment, figures.itl_attainment)))),
        ("attainment (both)", percent(figures.attainment)),
        ("deflected prompts", percent(figures.deflected_share)),
        ("GPU-hours billed", f"{run.gpu_hours:.3f}"),
        (f"GPU-hours of {run.peak_gpus} held all the time", f"{run.peak_gpu_hours:.3f}"),
        ("scale actions", str(len(run.loaded_actions))),
    )
    for row in rows:
        table.add_row(*row)
    return table
