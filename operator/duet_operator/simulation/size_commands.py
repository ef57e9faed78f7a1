"""`duet size`: from objectives and a load to pools, tried out in a simulation, with a what-if table.

Invariant: the answer says what it rests on, and whether a simulation held it; figures of the sizing law alone are
marked as such.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from duet_operator.simulation.commands import EXISTING_FILE, need

if TYPE_CHECKING:
    from rich.console import Console

    from duet_operator.simulation.study import Study

DEFAULT_WINDOW_MINUTES = 5.0


class Tokens(click.ParamType[dict[str, float]]):
    """MEAN or MEAN:P95."""

    name = "MEAN[:P95]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, float]:  # noqa: ANN401
        try:
            mean, _, p95 = str(value).partition(":")
            return {"mean": float(mean)} | ({"p95": float(p95)} if p95 else {})
        except ValueError:
            self.fail(f"{value!r} isn't MEAN or MEAN:P95 in tokens, such as 1500:6000", param, ctx)


@click.command(context_settings={"max_content_width": 120})
@click.argument("file", type=EXISTING_FILE, required=False)
@click.option("--model", help="A known id, or the path of a config.json.")
@click.option("--gpu", help="Such as h100-sxm or a100-3g.40gb.")
@click.option("--tensor-parallel", "ranks", type=click.IntRange(min=1), help="GPUs of one worker.")
@click.option("--ttft", "ttft_milliseconds", type=float, metavar="MS", help="Objective: time to first token.")
@click.option("--ttft-unloaded", "ttft_unloaded_percent", type=float, metavar="PERCENT", help="Of long prompts.")
@click.option("--itl", "itl_milliseconds", type=float, metavar="MS", help="Objective: between two tokens.")
@click.option("--attainment", type=float, metavar="PERCENT", help="Share of requests that must meet both. [99]")
@click.option("--rate", type=float, metavar="PER_SECOND", help="Requests per second.")
@click.option("--input", "input_tokens", type=Tokens(), help="Prompt lengths.")
@click.option("--output", "output_tokens", type=Tokens(), help="Answer lengths.")
@click.option("--variation", type=float, help="Of the gaps between arrivals: 1 is Poisson, more is bursty. [1]")
@click.option("--trace", type=EXISTING_FILE, help="The load as an Azure CSV or a Mooncake JSONL.")
@click.option("--speed", type=click.FloatRange(min=0, min_open=True), help="The trace so many times as fast.")
@click.option("--copies", type=click.IntRange(min=1), help="Each of its requests so many times, jittered.")
@click.option("--skip-bad-lines", is_flag=True, help="Leave lines of the trace out that are wrong.")
@click.option(
    "--window",
    type=float,
    default=DEFAULT_WINDOW_MINUTES,
    show_default=True,
    metavar="MINUTES",
    help="The busiest so many minutes are sized for.",
)
@click.option("--seed", type=click.IntRange(min=0), help="Of the simulations.")
@click.option("--no-verify", is_flag=True, help="Only the sizing law, no simulation.")
@click.option("--json", "as_json", is_flag=True, help="The answer as JSON.")
def size(file: Path | None, **options: Any) -> None:  # noqa: ANN401 - click's values, named above
    """How many prefill and decode workers, and GPUs, hold the objectives under a load.

    Give FILE (as for `duet simulate`; its counts are ignored), or --model, --gpu, --ttft, --itl and a load: --trace, or
    --rate, --input and --output.
    """
    from rich.console import Console

    from duet_engine.traces import TraceError
    from duet_operator.simulation.documents import InvalidFileError

    console = Console(stderr=options["as_json"])
    need({}, options)
    try:
        study = _study(file, options)
        document = _answer(console, study, options)
    except (InvalidFileError, TraceError) as error:
        raise click.ClickException(str(error)) from error
    if options["as_json"]:
        click.echo(json.dumps(document, indent=1, allow_nan=False))


def _study(file: Path | None, options: dict[str, Any]) -> Study:
    from duet_operator.simulation.files import read_study
    from duet_operator.simulation.questions import asked, refuse_beside_a_file

    changes = {name: options[name] for name in ("gpu", "seed")}
    workload = {name: options[name] for name in ("trace", "speed", "copies", "skip_bad_lines")}
    if file is not None:
        refuse_beside_a_file(options)
        return read_study(file, changes, workload=workload)
    return asked(options, base=Path())


def _answer(console: Console, study: Study, options: dict[str, Any]) -> dict[str, Any]:
    from duet_operator.simulation import size_report
    from duet_operator.simulation.resolve import knowledge_of
    from duet_operator.simulation.sizing import answer, summarise
    from duet_operator.simulation.verification import Verifier
    from duet_operator.simulation.whatif import rows

    summary = summarise(study.workload.requests(), window_seconds=60 * options["window"])
    by_law = answer(study, summary)
    verifier, settled, more = Verifier(study, summary), None, None
    if by_law.feasible and not options["no_verify"]:
        with console.status("simulating the answer") as status:
            verifier.told = lambda trial: status.update(f"simulated {size_report.trial_words(trial)}")
            settled = verifier.settle(by_law.counts)
            more = None if settled is None else verifier.headroom(settled.counts)
    questions = rows(study, summary, knowledge_of(study.document, study.workload.base))
    report = size_report.Report(
        study=study,
        summary=summary,
        by_law=by_law,
        settled=settled,
        simulated_headroom=more,
        trials=tuple(verifier.trials),
        questions=tuple(questions),
    )
    if not options["as_json"]:
        size_report.print_report(console, report)
    return {"options": {name: _plain(value) for name, value in options.items() if value}, **report.document()}


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value
