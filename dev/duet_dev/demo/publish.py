"""`python -m duet_dev.demo.publish REPORT…`: from reports of the demo to docs/results and the README's picture.

Invariant: no figure in the documentation is typed by hand. The first report is the bundled sample's, whose picture
becomes the README's. `--engine sglang` takes reports of `make demo ENGINE=sglang`, which have a page of their own and
no picture.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from duet_dev.demo.engines import BY_NAME, SIMULATED
from duet_dev.paths import REPOSITORY

RESULTS = REPOSITORY / "docs" / "results"
PICTURE = REPOSITORY / "docs" / "images" / "demo-timeline.png"
HEADINGS = ("figure", "value", "unit", "peer", "peer_value", "ratio")
INTRODUCTION = """\
What `make demo` measured, each figure beside its peer from the same run. GPU-hours count MIG slices, from pod scheduled
to pod gone, between the first request and the last answer; TTFT and ITL are the load generator's.

A run of the bundled sample passes when every line under its table holds. A run of another trace needs no failed request
and a scale-down; the rest is told. An invalid run was measured on a machine too busy to trust the times."""
OF_REAL_ENGINES = """\
What `make demo ENGINE=sglang` measured: the real SGLang with a tiny model on this machine's own cores, which load
generator, gateways, operator and control plane share with its workers. A run passes without a failed request and with a
scale-down; the rest is told. GPU-hours count workers, from pod scheduled to pod gone, between the first request and the
last answer; TTFT and ITL are the load generator's."""

type_report = Mapping[str, Any]
type_row = dict[str, Any]


def rows(report: type_report) -> list[type_row]:
    """The figures of one run, each beside what it is measured against."""
    settings = report["settings"]
    common = {"command": settings["command"], "seed": settings["seed"]}
    return [
        {
            "figure": f"{figure}, {settings['trace']}",
            "value": value,
            "unit": unit,
            "peer": peer,
            "peer_value": peer_value,
            "ratio": round(value / peer_value, 3) if peer_value else None,
            **common,
        }
        for figure, value, unit, peer, peer_value in _figures(report)
    ]


def _figures(report: type_report) -> Iterator[tuple[str, float, str, str, float]]:
    figures, slo = report["figures"], report["settings"]["spec"]["slo"]
    lag = report["loop_lag_p99_seconds"]
    most_lag_seconds = BY_NAME[report["settings"].get("engine", SIMULATED.name)].highest_loop_lag_seconds
    yield (
        "GPU-hours",
        round(report["gpu_hours"], 3),
        "slice-hours",
        "peak held all the time",
        round(report["peak_held_gpu_hours"], 3),
    )
    yield "attainment", round(100 * figures["attainment"], 2), "%", "goal", 100 * report["attainment_goal"]
    yield "failed requests", figures["failed"], "requests", "sent", report["planned_requests"]
    yield "TTFT P95", round(1000 * figures["ttft_p95_seconds"]), "ms", "objective", slo["ttftMilliseconds"]
    yield "ITL P95", round(1000 * figures["itl_p95_seconds"]), "ms", "objective", slo["itlMilliseconds"]
    yield "gateway loop lag P99", round(1000 * lag["gateway"], 1), "ms", "limit", round(1000 * most_lag_seconds)


def page(reports: Sequence[type_report], *, engine: str = SIMULATED.name) -> str:
    """The results as Markdown."""
    real = engine != SIMULATED.name
    parts = ["# Demo with real engines", OF_REAL_ENGINES] if real else ["# Demo", INTRODUCTION]
    for report in reports:
        settings, found = report["settings"], rows(report)
        parts.append(f"## {settings['trace']}: {report['verdict']}")
        parts.append("\n".join([_cells(HEADINGS), _cells(["---"] * len(HEADINGS)), *map(_row, found)]))
        parts.append("\n".join(f"- {each['name']}: {each['text']}" for each in report["criteria"]))
        seed = "" if settings["seed"] is None else f", seed {settings['seed']}"
        wall_seconds = sum(report["stages_seconds"].values())
        parts.append(
            f"`{settings['command']}`{seed}, {wall_seconds:.0f} s before the report, "
            f"{settings['machine']}. Decisions: {len(report['scale_actions'])}, for example:"
        )
        parts.extend(f"> {action['message']}" for action in report["scale_actions"][:3])
    return "\n\n".join(parts) + "\n"


def _row(row: type_row) -> str:
    return _cells(["–" if row[name] is None else str(row[name]) for name in HEADINGS])


def _cells(values: Sequence[str]) -> str:
    return f"| {' | '.join(values)} |"


@click.command(help="Write docs/results/demo.* and the README's picture from report folders of the demo.")
@click.option("--engine", type=click.Choice(list(BY_NAME)), default=SIMULATED.name, show_default=True)
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, file_okay=False))
def main(folders: tuple[Path, ...], engine: str) -> None:
    reports = [json.loads((folder / "report.json").read_text()) for folder in folders]
    RESULTS.mkdir(parents=True, exist_ok=True)
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    found = [row for report in reports for row in rows(report)]
    name = "demo" if engine == SIMULATED.name else f"demo_{engine}"
    (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n")
    (RESULTS / f"{name}.md").write_text(page(reports, engine=engine))
    if engine == SIMULATED.name:
        shutil.copyfile(folders[0] / "timeline.png", PICTURE)


if __name__ == "__main__":
    main()
