"""`python -m duet_dev.demo`: the whole demo, from an empty machine to a report.

Invariant: however it ends (done, failed, Ctrl-C), the cluster it started is gone, unless `--keep` was asked for.
"""

from __future__ import annotations

import asyncio
import os
import platform
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import click
from rich.console import Console

from duet_dev import build, packages
from duet_dev.cluster import Cluster
from duet_dev.demo.engines import BY_NAME, SIMULATED, Engines
from duet_dev.demo.observer import Observer
from duet_dev.demo.report import document, print_report, write_json
from duet_dev.demo.results import Results, UnloadedTtft
from duet_dev.demo.run import Run
from duet_dev.demo.sample import SEED, bundled_sample
from duet_dev.demo.stages import Stages, apply_and_wait, install_operator, read_object, run_load
from duet_dev.demo.view import View
from duet_dev.errors import DevError
from duet_dev.kubeapi import Api
from duet_dev.paths import REPOSITORY
from duet_engine.traces import Arrival, TraceError, cut, read_trace
from duet_operator.api.v1alpha1 import DuetDeployment, InvalidObjectError
from duet_operator.planner.spec import objective

REPORT_FOLDER = REPOSITORY / "demo-report"
OPERATOR_VALUES = ("settings.demandWindowSeconds=10",)
"""A burst of the sample lasts as long as the operator's usual window."""
SECONDS_PER_MINUTE = 60.0
FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the person at the terminal chose."""

    trace: Path | None
    speed: float
    minutes: float
    manifest: Path
    report: Path
    keep: bool
    name: str
    engines: Engines

    def arrivals(self) -> list[Arrival]:
        """The requests to send. `minutes` are minutes of the trace, so they take `minutes / speed` of the clock's."""
        source = read_trace(self.trace) if self.trace else bundled_sample(kinds=self.engines.sample)
        found = list(cut(source, speed=self.speed, limit_seconds=self.minutes * SECONDS_PER_MINUTE))
        if not found:
            raise DevError("no request arrives within the minutes chosen; choose more")
        return found

    def described(self) -> dict[str, Any]:
        """What was run, for the report."""
        chosen = "" if self.engines is SIMULATED else f" ENGINE={self.engines.name}"
        chosen += f" TRACE={self.trace.name} MINUTES={self.minutes:g}" if self.trace else ""
        return {
            "trace": self.source,
            "engine": self.engines.name,
            "seed": None if self.trace else SEED,
            "speed": self.speed,
            "minutes": self.minutes,
            "command": f"make demo{chosen}" + (f" SPEED={self.speed:g}" if self.speed != 1 else ""),
        }

    @property
    def source(self) -> str:
        """What the load is, in words."""
        if self.trace:
            return self.trace.name
        return "bundled sample" if self.engines is SIMULATED else f"bundled sample, {self.engines.name}"

    @property
    def title(self) -> str:
        return f"Duet: {self.source}" + (f" at {self.speed:g} x its speed" if self.speed != 1 else "")


class Demo:
    """One run, stage by stage."""

    def __init__(self, options: Options, console: Console) -> None:
        self.options = options
        self.console = console
        self.stages = Stages(console)

    def run(self) -> int:
        arrivals, serving = self.options.arrivals(), read_object(self.options.manifest)
        engines = self.options.engines
        cluster = Cluster(engines.config(self.options.name))
        # Outside of what follows: a cluster of this name that runs already isn't this demo's to end.
        with self.stages.stage("local cluster"):
            cluster.up()
        try:
            with self.stages.stage("operator (helm install)"):
                install_operator(cluster, engine_image=engines.image, values=OPERATOR_VALUES)
            engines.prepare(cluster)
            with self.stages.stage(f"{serving.metadata.name} ready (kubectl apply)"):
                apply_and_wait(cluster, self.options.manifest, serving, timeout_seconds=engines.ready_timeout_seconds)
            run = asyncio.run(self._load(cluster, serving, arrivals))
            with self.stages.stage("report"):
                self._write(run, serving)
            print_report(self.console, run)
            self.console.print(f"report: {self.options.report}")
            return run.exit_status()
        finally:
            self._leave(cluster, serving)

    async def _load(self, cluster: Cluster, serving: DuetDeployment, arrivals: Sequence[Arrival]) -> Run:
        name, namespace = serving.metadata.name, serving.metadata.namespace
        url = f"http://127.0.0.1:{cluster.forward(f'service/{namespace}/{name}:80')}"
        spec = serving.spec
        async with Api(cluster.kubeconfig) as api:
            observer = Observer(api, namespace, name)
            looking = asyncio.create_task(observer.run())
            results = Results(objective(spec.slo), UnloadedTtft(await observer.prefill_profile()))
            view = View(
                observer=observer,
                results=results,
                planned_requests=len(arrivals),
                planned_seconds=arrivals[-1].time_seconds,
            )
            with self.stages.stage("load", shows_itself=True):
                showing = asyncio.create_task(view.show(self.console))
                try:
                    await run_load(url, spec.model.public_name, arrivals, results, word=self.options.engines.word)
                finally:
                    await _ended(showing, looking)
        if not results.records:
            raise DevError("the load generator reported no request")
        return Run(
            results=results,
            samples=observer.samples,
            actions=sorted(observer.actions.values(), key=lambda action: action.time_seconds),
            leases=observer.leases.all,
            attainment_goal=spec.slo.attainment_basis_points / 10_000,
            bundled=self.options.trace is None and self.options.engines.judged_by_sample,
            planned_requests=len(arrivals),
            gateway_lag_seconds=observer.gateway_lag_p99_seconds,
            highest_loop_lag_seconds=self.options.engines.highest_loop_lag_seconds,
        )

    def _write(self, run: Run, serving: DuetDeployment) -> None:
        # Only here, because it imports for a second and a half what a demo that fails early never needs.
        from duet_dev.demo.timeline import draw_timeline

        folder = self.options.report
        folder.mkdir(parents=True, exist_ok=True)
        settings = {
            **self.options.described(),
            "machine": f"Python {platform.python_version()}, {os.cpu_count()} cores",
            "spec": serving.spec.model_dump(mode="json", by_alias=True, exclude_none=True),
        }
        write_json(folder / "report.json", document(run, settings=settings, stages_seconds=self.stages.seconds))
        draw_timeline(run, folder / "timeline.png", title=self.options.title)

    def _leave(self, cluster: Cluster, serving: DuetDeployment) -> None:
        if self.options.keep and cluster.running:
            cluster.detach()
            self.console.print(
                f"the cluster is still there. Look around:\n"
                f"  export KUBECONFIG={cluster.kubeconfig}\n"
                f"  export PATH={build.binary_path(build.KUBECTL).parent}:$PATH\n"
                f"  kubectl get duet {serving.metadata.name} -n {serving.metadata.namespace} -o yaml\n"
                f"end it with: python -m duet_dev down --name {self.options.name}",
                highlight=False,
            )
            return
        with self.stages.stage("cluster down"):
            cluster.down()


async def _ended(*tasks: asyncio.Task[None]) -> None:
    """Cancel tasks that run until cancelled; one that failed by itself tells why."""
    for task in tasks:
        task.cancel()
    for task in tasks:
        with suppress(asyncio.CancelledError):
            await task


def _interrupted(*_: object) -> NoReturn:
    raise KeyboardInterrupt


@click.command(
    help="A local cluster, a DuetDeployment, a trace through its gateway, a report of what it cost.",
    epilog="Exit status: 0 passed, 1 failed, 3 invalid because this machine was too busy to measure, 130 interrupted.",
)
@click.option("--trace", type=FILE, help="Azure LLM inference CSV or Mooncake JSONL; default: the bundled sample.")
@click.option("--speed", type=click.FloatRange(min=0.01, max=100), default=1.0, show_default=True)
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), default=10.0, help="How much of the trace.")
@click.option(
    "--engine",
    type=click.Choice(tuple(BY_NAME)),
    default=SIMULATED.name,
    show_default=True,
    help="Simulated engines, or the real SGLang on the CPU.",
)
@click.option("--manifest", type=FILE, help="Manifest with the DuetDeployment to apply; default: the engine's example.")
@click.option("--report", type=click.Path(path_type=Path), default=REPORT_FOLDER, help="Folder for the report.")
@click.option("--keep", is_flag=True, help="Leave the cluster running.")
@click.option("--name", default="demo", show_default=True, help="The cluster's name.")
def main(*, engine: str, manifest: Path | None, **chosen: Any) -> None:  # noqa: ANN401
    engines = BY_NAME[engine]
    signal.signal(signal.SIGTERM, _interrupted)
    console = Console()
    try:
        packages.ensure()
        build.build()
        engines.ensure()
        options = Options(engines=engines, manifest=manifest or engines.manifest, **chosen)
        status = Demo(options, console).run()
    except (DevError, TraceError, InvalidObjectError) as error:
        raise click.ClickException(str(error)) from None
    except KeyboardInterrupt:
        console.print("interrupted")
        status = 130
    sys.exit(status)


if __name__ == "__main__":
    main()
