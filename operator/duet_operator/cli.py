"""`duet`: the command line for people; what it needs is imported when a command needs it.

Invariant: works on a machine without Kopf or a cluster. Exit status 1 means that something given isn't right, and the
message names it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TextIO

import click

from duet_operator.simulation.commands import simulate
from duet_operator.simulation.size_commands import size

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PASS_ALL_ON: dict[str, Any] = {"ignore_unknown_options": True, "help_option_names": []}


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Duet: SLO-driven autoscaling and serving of SGLang with separate prefill and decode pools."""


@main.command()
def version() -> None:
    """Print the version."""
    from duet_operator.settings import package_version

    click.echo(package_version())


@main.command()
def crd() -> None:
    """Print the CustomResourceDefinition, for `kubectl apply --server-side -f -`."""
    from duet_operator.api.crd import to_yaml

    click.echo(to_yaml(), nl=False)


@main.command()
@click.argument("manifest", type=click.File("r", encoding="utf-8"))
def validate(manifest: TextIO) -> None:
    """Check the DuetDeployments in MANIFEST (YAML or JSON, - for standard input).

    Types, bounds and names of fields are checked here; rules between fields are the API server's, see
    `kubectl apply --dry-run=server`.
    """
    from duet_operator.api.v1alpha1 import KIND

    checked = 0
    for document in _documents(manifest):
        if document.get("kind") != KIND:
            continue
        problems = _problems(document)
        if problems:
            raise click.ClickException("\n".join(problems))
        metadata = document["metadata"]
        click.echo(f"{KIND} {metadata.get('namespace', 'default')}/{metadata['name']} is valid")
        checked += 1
    if not checked:
        raise click.ClickException(f"{manifest.name} holds no {KIND}")


@main.command(context_settings=PASS_ALL_ON, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def gateway(arguments: tuple[str, ...]) -> None:
    """Run the gateway, as `duet-gateway` does; needs the extra `gateway`."""
    try:
        from duet_engine.gateway.__main__ import main as run_gateway
    except ImportError as error:
        raise click.ClickException(f"{error.name} is missing: install duet-serve[gateway]") from error
    run_gateway.main(args=list(arguments), prog_name="duet gateway")


@main.command()
@click.option("--csv", "table", type=click.File("r", encoding="utf-8"), required=True, help="Steps to predict.")
@click.option("--out", type=click.File("w", encoding="utf-8"), required=True, help="The same rows with predictions.")
@click.option("--calibration", type=click.File("r", encoding="utf-8"), help="Efficiencies from `duet calibrate`.")
def predict(table: TextIO, out: TextIO, calibration: TextIO | None) -> None:
    """Predict step times: columns system, model, tp, phase, batch, isl_or_ctx.

    Adds predicted_ms, kv_fits, calibration (calibrated, or data-sheet only) and basis. A model is a known id or the
    path of a config.json. Rows that aren't understood stay empty, are named, and make the exit status 1.
    """
    from duet_operator.prediction import predict_table

    try:
        bad = predict_table(table, out, calibration)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    if bad:
        raise click.ClickException("\n".join(bad))


@main.command()
@click.option("--csv", "table", type=click.File("r", encoding="utf-8"), help="A table of timed steps.")
@click.option(
    "--steps", "logs", type=click.File("r", encoding="utf-8"), multiple=True, help="A live engine's step log."
)
@click.option("--gpu", help="Of the step logs, where they don't say it.")
@click.option("--model", help="Of the step logs: an id or a config.json, in place of what they say.")
@click.option("--out", type=click.File("w", encoding="utf-8", lazy=True), help="Where the efficiencies go.")
@click.option("--parameter", "parameters", multiple=True, help="Fit only these; can be given several times.")
def calibrate(
    table: TextIO | None,
    logs: tuple[TextIO, ...],
    gpu: str | None,
    model: str | None,
    out: TextIO | None,
    parameters: tuple[str, ...],
) -> None:
    """Fit the efficiencies of GPUs to timed steps, for `duet predict` and for engines.

    From a table with the columns of `duet predict` and latency_ms, or from step logs that engines wrote with
    DUET_STEP_LOG. Prints the error before and after. Refuses steps that can't tell a parameter, and names it.
    """
    from duet_operator.prediction import calibrate_logs, calibrate_table

    if (table is None) == (not logs):
        raise click.UsageError("give either --csv or --steps")
    try:
        if table is not None:
            calibrate_table(table, out, parameters)
        else:
            calibrate_logs(logs, out, parameters, gpu=gpu, model=model)
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error


main.add_command(simulate)
main.add_command(size)


def _documents(manifest: TextIO) -> Iterator[Mapping[str, Any]]:
    try:
        import yaml
    except ImportError as error:
        raise click.ClickException("PyYAML is missing: install duet-serve[operator]") from error
    try:
        for document in yaml.safe_load_all(manifest):
            if isinstance(document, dict):
                yield document
    except yaml.YAMLError as error:
        raise click.ClickException(f"{manifest.name} isn't YAML: {error}") from error


def _problems(document: Mapping[str, Any]) -> list[str]:
    """What is wrong with one object: fields that don't exist, and what the models say."""
    from duet_operator.api.crd import custom_resource_definition
    from duet_operator.api.v1alpha1 import InvalidObjectError, parse

    schema = custom_resource_definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    unknown = [f"{path} isn't a field; look for a typing error" for path in _unknown(document, schema, "")]
    try:
        parse(document)
    except InvalidObjectError as error:
        return [str(error), *unknown]
    return unknown


def _unknown(value: object, schema: Mapping[str, Any], path: str) -> Iterator[str]:
    """Paths of fields that the schema doesn't have; where it takes anything, anything goes."""
    if isinstance(value, list) and "items" in schema:
        for index, item in enumerate(value):
            yield from _unknown(item, schema["items"], f"{path}[{index}]")
    if not isinstance(value, dict) or "properties" not in schema:
        return
    for name, part in value.items():
        place = f"{path}.{name}".lstrip(".")
        if name in schema["properties"]:
            yield from _unknown(part, schema["properties"][name], place)
        else:
            yield place
