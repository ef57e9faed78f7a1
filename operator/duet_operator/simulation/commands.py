"""`duet simulate`: the command line around a study, its variants and its reports.

Invariant: what is wrong with what was given is said by field and fix, with exit status 1, before anything is written.
"""

from __future__ import annotations

import shlex
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console
    from rich.progress import TaskID

    from duet_engine.traces import SkippedLines
    from duet_operator.simulation.outcome import Outcome
    from duet_operator.simulation.study import Study

EXISTING_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
OUTPUT_FILE = click.Path(dir_okay=False, writable=True, path_type=Path)


@click.command(context_settings={"max_content_width": 120})
@click.argument("file", type=EXISTING_FILE)
@click.option("--trace", type=EXISTING_FILE, help="An Azure CSV or a Mooncake JSONL in place of the file's workload.")
@click.option("--skip-bad-lines", is_flag=True, help="Leave lines of the trace out that are wrong, and count them.")
@click.option("--speed", type=click.FloatRange(min=0, min_open=True), help="So many times as fast.")
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), help="Only the first, by the workload's clock.")
@click.option("--copies", type=click.IntRange(min=1), help="Each request so many times, jittered.")
@click.option("--gpu", help="GPU of pools that name none of their own, such as h100-sxm.")
@click.option("--planner", help="Who sizes the pools, in place of the file's.")
@click.option("--routing", help="Who routes, in place of the file's.")
@click.option(
    "--compare",
    multiple=True,
    metavar="NAME",
    help="Run it again with another planner or routing, planner+routing, or package.module:factory. Several times, or "
    "with commas.",
)
@click.option("--seed", type=click.IntRange(min=0), help="Of arrivals, lengths and noise.")
@click.option("--json", "json_path", type=OUTPUT_FILE, help="Every figure and series.")
@click.option("--records", type=OUTPUT_FILE, help="A row for each request, as parquet.")
@click.option("--html", type=OUTPUT_FILE, help="The report, one file.")
@click.option("--png", type=OUTPUT_FILE, help="The timeline of the first variant.")
@click.option("--write-trace", type=OUTPUT_FILE, help="Only write the workload as a Mooncake JSONL, for other tools.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def simulate(file: Path, **options: Any) -> None:  # noqa: ANN401 - click's values, named above
    """Simulate FILE: a DuetDeployment with a workload, or a plain scenario (docs/simulate.md).

    The gateway's routing, the planner and the performance model are the ones that serve; the fleet is simulated.
    """
    from rich.console import Console

    from duet_engine.traces import TraceError
    from duet_operator.simulation.documents import InvalidFileError
    from duet_operator.simulation.variants import UnknownVariantError

    console = Console()
    need({"records": "pyarrow", "png": "matplotlib"}, options)
    try:
        study = _study(file, options)
        if options["write_trace"]:
            _write_trace(console, study, options["write_trace"])
            return
        outcomes = _run(console, study, [name for given in options["compare"] for name in given.split(",")], options)
        _report(console, study, outcomes, options)
    except (InvalidFileError, UnknownVariantError, TraceError) as error:
        raise click.ClickException(str(error)) from error


def need(libraries: Mapping[str, str], options: Mapping[str, Any]) -> None:
    """Refuse at once what a library that isn't installed would have to do later; `yaml` is always needed."""
    for option, library in {"": "yaml", **libraries}.items():
        if (not option or options[option]) and find_spec(library) is None:
            raise click.ClickException(f"{library} is missing: install duet-serve[simulate]")


def _study(file: Path, options: dict[str, Any]) -> Study:
    from duet_operator.simulation.files import read_study

    changes = {name: options[name] for name in ("gpu", "planner", "routing", "seed")}
    workload = {name: options[name] for name in ("trace", "speed", "minutes", "copies", "skip_bad_lines")}
    return read_study(file, changes, workload=workload)


def _run(console: Console, study: Study, names: Sequence[str], options: dict[str, Any]) -> list[Outcome]:
    """All variants, with a bar for each."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from duet_operator.simulation.runs import run
    from duet_operator.simulation.variants import chosen

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[reached]}"),
        TimeRemainingColumn(),
    )
    outcomes: list[Outcome] = []
    variants = chosen(names, study)
    with Progress(*columns, console=console, disable=options["quiet"], transient=True) as bars:
        for variant in variants:
            bar = bars.add_task(variant.name, total=study.workload.seconds, reached="")

            def tell(now: float, bar: TaskID = bar) -> None:
                bars.update(bar, completed=now, reached=f"{now / 60:.1f} min")

            outcome, skipped = run(study, variant, progress=tell)
            outcomes.append(outcome)
    _say_skipped(console, skipped)
    return outcomes


def _write_trace(console: Console, study: Study, path: Path) -> None:
    from duet_engine.simulator.workload import mooncake_lines

    lines = list(mooncake_lines(study.workload.requests()))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    console.print(f"wrote {len(lines)} requests to {path}", highlight=False)


def _say_skipped(console: Console, skipped: SkippedLines) -> None:
    if skipped.count:
        console.print(f"[yellow]{skipped.count} bad lines were left out[/], the first of them:")
        for reason in skipped.reasons:
            console.print(f"  {reason}", highlight=False)


def _report(console: Console, study: Study, outcomes: Sequence[Outcome], options: dict[str, Any]) -> None:
    from duet_operator.simulation import files
    from duet_operator.simulation.html_report import html_report
    from duet_operator.simulation.table import print_outcomes

    command = shlex.join(["duet", *sys.argv[1:]])
    if options["json_path"]:
        files.write_json(options["json_path"], files.results_document(study, outcomes, command=command))
    if options["records"]:
        files.write_records(options["records"], outcomes)
    if options["html"]:
        options["html"].write_text(html_report(study, outcomes, command=command), encoding="utf-8")
    if options["png"]:
        from duet_operator.simulation.timeline import draw_timeline

        draw_timeline(study, outcomes[0], options["png"])
    print_outcomes(console, study, outcomes)
    for name in ("json_path", "records", "html", "png"):
        if options[name]:
            console.print(f"wrote {options[name]}", highlight=False)
