"""What the demo does around the load: install the operator, apply the object, wait until it serves, run the load.

Invariant: every step says what it does and how long it took, and a step that fails says what the cluster said.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from rich.console import Console

from duet_dev.cluster import Cluster
from duet_dev.demo.load import arrivals_to_lines
from duet_dev.demo.records import LINE
from duet_dev.demo.results import Results
from duet_dev.errors import DevError
from duet_dev.paths import PACKAGE_PARENT, REPOSITORY
from duet_dev.processes import guarded
from duet_engine.traces import Arrival
from duet_operator.api.v1alpha1 import DuetDeployment, parse

CHART = REPOSITORY / "charts" / "duet"
RELEASE, OPERATOR_NAMESPACE = "duet", "duet-system"
LOCAL_IMAGES = (
    "images.operator=duet-operator:dev",
    "images.gateway=duet-gateway:dev",
)
SIMULATED_ENGINE = "duet-simulated-engine:dev"
READY_TIMEOUT_SECONDS = 120
LONGEST_LINE_BYTES = 16 * 2**20
GENERATOR_GRACE_SECONDS = 30.0


@dataclass(slots=True)
class Stages:
    """Says each stage and keeps its seconds."""

    console: Console
    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def stage(self, name: str, *, shows_itself: bool = False) -> Iterator[None]:
        """A stage that `shows_itself` has a live view of its own in place of the spinner."""
        started = time.monotonic()
        quiet = shows_itself or not self.console.is_terminal
        if quiet:
            self.console.print(f"{name} …")
        with contextlib.nullcontext() if quiet else self.console.status(f"{name} …"):
            yield
        self.seconds[name] = time.monotonic() - started
        self.console.print(f"[green]✓[/] {name}: {self.seconds[name]:.1f} s", highlight=False)


def read_object(path: Path) -> DuetDeployment:
    """The DuetDeployment of a manifest, which may hold other objects too."""
    documents = [document for document in yaml.safe_load_all(path.read_text()) if document]
    found = [document for document in documents if document.get("kind") == "DuetDeployment"]
    if len(found) != 1:
        raise DevError(f"{path} must hold exactly one DuetDeployment, it holds {len(found)}")
    return parse(found[0])


def install_operator(cluster: Cluster, *, engine_image: str = SIMULATED_ENGINE, values: Sequence[str] = ()) -> None:
    """`helm install` of the chart with local images, until the operator is ready."""
    options = [f"--set={value}" for value in (*LOCAL_IMAGES, f"images.engine={engine_image}", *values)]
    command = ["helm", "install", RELEASE, str(CHART), f"--namespace={OPERATOR_NAMESPACE}", "--create-namespace"]
    waiting = ["--wait", f"--timeout={READY_TIMEOUT_SECONDS}s"]
    result = subprocess.run(
        [*command, *waiting, *options], env=cluster.environment(inside=False), capture_output=True, text=True
    )
    if result.returncode:
        raise DevError(f"helm install: {result.stderr.strip()}\n{_operator_log(cluster)}")


def apply_and_wait(
    cluster: Cluster, manifest: Path, serving: DuetDeployment, *, timeout_seconds: int = READY_TIMEOUT_SECONDS
) -> None:
    """`kubectl apply`, until the object says that it is Ready."""
    name, namespace = serving.metadata.name, serving.metadata.namespace
    cluster.kubectl("apply", f"--namespace={namespace}", "-f", str(manifest))
    waited = cluster.kubectl(
        "wait",
        f"--namespace={namespace}",
        "--for=condition=Ready",
        f"--timeout={timeout_seconds}s",
        f"duetdeployment/{name}",
        check=False,
    )
    if waited.returncode:
        shown = cluster.kubectl("get", "duetdeployment,pods", f"--namespace={namespace}", "-o", "wide", check=False)
        raise DevError(f"{name} didn't become Ready: {waited.stderr.strip()}\n{shown.stdout}\n{_operator_log(cluster)}")


def _operator_log(cluster: Cluster) -> str:
    shown = cluster.kubectl(
        "logs", f"--namespace={OPERATOR_NAMESPACE}", "deployment/duet-operator", "--tail=20", check=False
    )
    return shown.stdout + shown.stderr


async def run_load(url: str, model: str, arrivals: Sequence[Arrival], results: Results, *, word: str) -> None:
    """The load generator as a process of its own; its lines go to `results` as they come."""
    command = [sys.executable, "-m", "duet_dev.demo.load", f"--url={url}", f"--model={model}", f"--word={word}"]
    process = await asyncio.create_subprocess_exec(
        *guarded(command),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=PACKAGE_PARENT,
        limit=LONGEST_LINE_BYTES,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(arrivals_to_lines(arrivals))
        process.stdin.close()
        async for line in process.stdout:
            results.add(LINE.validate_json(line))
        if status := await asyncio.wait_for(process.wait(), GENERATOR_GRACE_SECONDS):
            raise DevError(f"the load generator ended with status {status}")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
