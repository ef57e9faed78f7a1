"""The command line of the local cluster: build, engine-env, up, down, status, forward, shell, run.

Invariant: thin; what a command does is a call on `Cluster` or `build`.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click
from rich.console import Console
from rich.table import Table

from duet_dev import build as building
from duet_dev import engine_environment, packages
from duet_dev.cluster import Cluster, default_root
from duet_dev.config import ClusterConfig, default_nodes
from duet_dev.errors import DevError
from duet_dev.progress import announced, say

FORWARD_HELP = "service/NAMESPACE/NAME:PORT, with =HOSTPORT for a fixed port of 127.0.0.1"


class SentenceErrors(click.Group):
    """Shows what a person can mend as a sentence; everything else keeps its traceback."""

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401
        try:
            return super().invoke(ctx)
        except DevError as error:
            raise click.ClickException(str(error)) from None


@click.group(cls=SentenceErrors, help="A real Kubernetes as ordinary processes of this machine.")
def main() -> None:
    # SIGTERM unwinds like Ctrl-C does, so that every `finally` runs.
    signal.signal(signal.SIGTERM, _interrupted)


def _interrupted(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def cluster_option(command: Callable[..., None]) -> Callable[..., None]:
    """`--name`, and `--root` for a folder of one's own."""
    command = click.option("--root", type=click.Path(path_type=Path), help="The cluster's folder.")(command)
    return click.option("--name", default="default", show_default=True, help="The cluster's name.")(command)


def attached(name: str, root: Path | None) -> Cluster:
    cluster = Cluster.attached(root or default_root(name))
    if not cluster.running:
        raise DevError(f"cluster {name!r} isn't running; start it with `python -m duet_dev up`")
    return cluster


@main.command(help="Build the binaries into the cache; does nothing when they are there.")
@click.option("--only", type=click.Choice([*building.PARTS]), default="all", show_default=True)
def build(only: str) -> None:
    packages.ensure()
    building.build(building.PARTS[only])
    for tool in building.PARTS[only]:
        click.echo(building.binary_path(tool))


@main.command("engine-env", help="Put the real SGLang, for machines without a GPU, into the cache (10 GB).")
def engine_env() -> None:
    packages.ensure()
    engine_environment.ensure()
    click.echo(engine_environment.engine_python())


@main.command(help="Start a cluster and keep it until Ctrl-C.")
@cluster_option
@click.option("--nodes", type=click.IntRange(1, 64), default=3, show_default=True)
@click.option("--detach", is_flag=True, help="Return when it is ready and leave it running.")
@click.option("--forward", "forwards", multiple=True, metavar="TARGET", help=FORWARD_HELP)
def up(name: str, root: Path | None, nodes: int, detach: bool, forwards: tuple[str, ...]) -> None:
    packages.ensure()
    building.build()
    cluster = Cluster(ClusterConfig(name, nodes=default_nodes(nodes)), root)
    try:
        with announced(f"cluster {name!r}: starting"):
            cluster.up()
        for text in forwards:
            forward_and_say(cluster, text)
        click.echo(f"export KUBECONFIG={cluster.kubeconfig}")
        click.echo(f"export PATH={building.binary_path(building.KUBECTL).parent}:$PATH")
        if detach:
            cluster.detach()
            say(f"logs: {cluster.logs}; end it with: python -m duet_dev down --name {name}")
        else:
            say(f"logs: {cluster.logs}; Ctrl-C ends the cluster and everything in it")
            cluster.wait()
            raise DevError(f"the cluster ended by itself or was taken down; logs: {cluster.logs}")
    except KeyboardInterrupt:
        say(f"cluster {name!r}: ending")
        cluster.down()


@main.command(help="End a cluster and everything in it.")
@cluster_option
def down(name: str, root: Path | None) -> None:
    folder = root or default_root(name)
    if not folder.exists():
        say(f"no cluster lies in {folder}")
        return
    Cluster.attached(folder).down()


@main.command(help="What runs, since when, and which ports lead in.")
@cluster_option
def status(name: str, root: Path | None) -> None:
    cluster = attached(name, root)
    answer = cluster.status()
    table = Table("component", "state", "restarts", box=None)
    for component, state in answer["components"].items():
        table.add_row(component, "running" if state["running"] else "stopped", str(state["restarts"]))
    console = Console()
    console.print(f"{name}: up {answer['seconds']} s, isolation {answer['isolation']}, logs {cluster.logs}")
    console.print(table)
    for line in answer["forwards"]:
        console.print(f"forward {line}", highlight=False)


@main.command(help=f"Open a port of 127.0.0.1 for {FORWARD_HELP}. It stays open as long as the cluster runs.")
@cluster_option
@click.argument("target")
def forward(name: str, root: Path | None, target: str) -> None:
    forward_and_say(attached(name, root), target)


def forward_and_say(cluster: Cluster, text: str) -> None:
    target, _, port = text.partition("=")
    if port and not port.isdigit():
        raise DevError(f"forward {text!r}: {port!r} is no port number; write {FORWARD_HELP}")
    click.echo(f"http://127.0.0.1:{cluster.forward(target, host_port=int(port or 0))}  {target}")


@main.command(help="A shell inside the cluster's namespaces, with KUBECONFIG, kubectl and helm.")
@cluster_option
def shell(name: str, root: Path | None) -> None:
    replace_process(attached(name, root), [os.environ.get("SHELL", "/bin/sh")])


@main.command(help="Run a command inside the cluster's namespaces: run -- kubectl get pods.")
@cluster_option
@click.argument("command", nargs=-1, required=True)
def run(name: str, root: Path | None, command: tuple[str, ...]) -> None:
    replace_process(attached(name, root), list(command))


def replace_process(cluster: Cluster, command: list[str]) -> NoReturn:
    line = cluster.inside(command)
    sys.stdout.flush()
    os.execvpe(line[0], line, cluster.environment(inside=True))


if __name__ == "__main__":
    main(prog_name="python -m duet_dev")
