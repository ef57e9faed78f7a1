"""What the operator costs at rest, and how soon it acts on a load step.

Run: `python tests/bench/bench_operator.py [--objects 50] [--seconds 60] [--phases quiet swinging steps] [--steps 5]
[--name operator]`. Writes docs/results/NAME.json and NAME.md; figures of phases that aren't run stay as they are there.
Quiet and swinging: the operator as a process with the chart's rights on a real API server, while this program plays the
Deployments' controllers and the nodes: a thousand objects are there within minutes. Every object has Ready pods and a
gateway that answers, without traffic, or with light traffic that changes by more than a tenth, and for all objects at
once, which is the worst case. Writes come from the operator's own counters, its Lease apart; CPU and memory from /proc.
Steps: the chart's release with default settings on the local cluster, an object with default interval and simulated
engines, a fresh one for each step; the time runs from the first request of the step to the patched count, at a random
moment of the interval.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.support.bench_rows import Row, row, write_results  # noqa: E402
from tests.support.documents import served  # noqa: E402
from tests.support.duet_objects import minimal, patched  # noqa: E402
from tests.support.operator_process import ACCOUNT, OperatorProcess, install, running_operator  # noqa: E402
from tests.support.operator_release import OperatorRelease  # noqa: E402
from tests.support.recorder import Recorder  # noqa: E402
from tests.support.serving import PROMPT_TOKENS, Serving  # noqa: E402
from tests.support.waiting import until  # noqa: E402

from duet_dev.cluster import Cluster  # noqa: E402
from duet_dev.config import API_SERVER_ONLY, WHOLE_CLUSTER, ClusterConfig  # noqa: E402
from duet_dev.kubeapi import STRATEGIC_MERGE, Api, JsonObject, timestamp  # noqa: E402
from duet_engine.perf import catalog  # noqa: E402
from duet_engine.protocol import DEMAND_PATH, GATEWAY_ADMIN_PORT, PLAN_PATH, GatewayDemand, Role  # noqa: E402

NAMESPACE = "bench"
GATEWAY_ADDRESS = "127.77.0.1"
"""Of this machine's loopback network, where nothing else listens on a gateway's admin port."""
SETTLE_SECONDS = 60.0
MAKE_SECONDS = 480.0
TRAFFIC_SETTLE_SECONDS = 75.0
"""Until the windows over which the status averages are full: states change once then."""
SWING_SECONDS = 20.0
"""As long as the window over which demand is averaged, so that its numbers follow."""
SETTLED = {("Ready", "Serving"), ("SignalsFresh", "AllAnswered"), ("SLOMet", "NoTraffic")}
"""What each object says once the window over which objectives are judged is full; nothing changes after that."""
PHASES = ("quiet", "swinging", "steps")
SHOWN_LOG_CHARACTERS = 6000
MODEL, GPU = "Qwen/Qwen3-8B", "h100-sxm"
INTERVAL_SECONDS = 5
BEFORE, AFTER = 1.0, 8.0
"""Requests per second; the second needs two prefill and four decode workers."""
BASELINE_SECONDS = 40.0
LIMIT_INTERVALS, LIMIT_MIB, LIMIT_WRITES_PER_SECOND = 2.0, 150.0, 20.0
LIMIT_MIB_OBJECTS = 50

# --- at rest ---


class Gateway:
    """The demand documents of all objects' gateways: no traffic, or up to two requests a second each."""

    def __init__(self) -> None:
        self.busy = False
        self._sequence = 0
        self._began = time.time()
        self._source = random.Random(1)
        self._served, self._rate = 0.0, 0.0
        self._told_at = self._swung_at = time.monotonic()
        self._profiles = tuple(catalog.profile(GPU, MODEL, role=role) for role in (Role.PREFILL, Role.DECODE))

    async def answer(self, _request: web.Request) -> web.Response:
        self._sequence += 1
        now = time.monotonic()
        if self.busy and now - self._swung_at > SWING_SECONDS:
            self._swung_at, self._rate = now, self._source.uniform(0.2, 2.0)
        self._served += (now - self._told_at) * self._rate
        self._told_at = now
        document = GatewayDemand(
            gateway="stand-in",
            instance_id="stand-in",
            sequence=self._sequence,
            written_at_seconds=time.time(),
            started_at_seconds=self._began - 3600,
            profiles=self._profiles,
            classes=(served(round(self._served)),),
        )
        return web.Response(body=document.write(), content_type="application/json")


async def play_controllers(api: Api, objects: int) -> None:
    """Each Deployment gets its pods, and each pod a node that runs it; all gateways are at one address."""
    pods = f"/api/v1/namespaces/{NAMESPACE}/pods"

    path = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments"

    async def all_made() -> bool:
        # Counted, not listed: thousands of them again and again would be most of what this machine does.
        first = await api.get(path, limit="1")
        return int(len(first["items"]) + first["metadata"].get("remainingItemCount", 0)) >= 3 * objects

    room = asyncio.Semaphore(16)

    async def play(deployment: JsonObject) -> None:
        async with room:
            for number in range(deployment["spec"]["replicas"]):
                name = f"{deployment['metadata']['name']}-{number}"
                template = deployment["spec"]["template"]
                metadata = {**template["metadata"], "name": name, "namespace": NAMESPACE}
                await api.post(
                    pods, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
                )
                ready = {"type": "Ready", "status": "True", "lastTransitionTime": timestamp()}
                address = {"podIP": GATEWAY_ADDRESS, "podIPs": [{"ip": GATEWAY_ADDRESS}]}
                status = {"phase": "Running", "startTime": timestamp(), "conditions": [ready], **address}
                await api.patch(f"{pods}/{name}/status", {"status": status}, kind=STRATEGIC_MERGE)
            told = {"observedGeneration": deployment["metadata"]["generation"]}
            await api.patch(f"{path}/{deployment['metadata']['name']}/status", {"status": told})

    await until(f"{3 * objects} Deployments exist", all_made, seconds=MAKE_SECONDS)
    print(f"{3 * objects} Deployments exist")
    await asyncio.gather(*(play(each) for each in (await api.get(path))["items"]))


def writes(operator: OperatorProcess) -> float:
    return sum(value for name, value in operator.writes().items() if 'kind="Lease"' not in name)


def saves(operator: OperatorProcess) -> float:
    """Writes of memories, which have their own pace."""
    return sum(value for name, value in operator.writes().items() if 'kind="ConfigMap"' in name)


def told(operator: OperatorProcess) -> float:
    return writes(operator) - saves(operator)


def passes(operator: OperatorProcess) -> float:
    return operator.metrics()['duet_operator_passes_total{result="done"}']


def cpu_seconds(operator: OperatorProcess) -> float:
    fields = Path(f"/proc/{operator.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def make_objects(cluster: Cluster, operator: OperatorProcess, *, objects: int) -> None:
    """All there, Ready, and nothing more to write about them."""
    documents = [
        patched(
            minimal(name=f"quiet-{number}"),
            {"metadata.namespace": NAMESPACE, "spec.model.id": MODEL, "spec.gateway.replicas": 1},
        )
        for number in range(objects)
    ]
    cluster.kubectl("create", "namespace", NAMESPACE)
    everything = json.dumps({"apiVersion": "v1", "kind": "List", "items": documents})
    cluster.kubectl("create", "-f", "-", input=everything)
    async with Api(cluster.kubeconfig) as api:
        await play_controllers(api, objects)
        print(f"{objects} objects have their pods")

        async def all_quiet() -> bool:
            before = await asyncio.to_thread(told, operator)
            await asyncio.sleep(3 * INTERVAL_SECONDS)
            if await asyncio.to_thread(told, operator) != before:
                return False
            found = (await api.get(f"/apis/duetserve.io/v1alpha1/namespaces/{NAMESPACE}/duetdeployments"))["items"]
            conditions = [each for one in found for each in one.get("status", {}).get("conditions", ())]
            return sum((each["type"], each["reason"]) in SETTLED for each in conditions) == len(SETTLED) * objects

        await until("all objects are Ready and nothing is written", all_quiet, seconds=MAKE_SECONDS)


@dataclass(frozen=True, slots=True)
class Measured:
    """What the operator did over a while."""

    wall: float
    writes: float
    saves: float
    most_writes_in_a_second: float
    passes: float
    cpu: float


async def measured(operator: OperatorProcess, *, seconds: float) -> Measured:
    def state() -> tuple[float, ...]:
        return writes(operator), saves(operator), passes(operator), cpu_seconds(operator)

    before = await asyncio.to_thread(state)
    began = last_at = time.monotonic()
    last, most = before[0], 0.0
    while time.monotonic() - began < seconds:
        await asyncio.sleep(1.0)
        now, written = time.monotonic(), await asyncio.to_thread(writes, operator)
        most, last, last_at = max(most, (written - last) / (now - last_at)), written, now
    wall = time.monotonic() - began
    after = await asyncio.to_thread(state)
    written, saved, passed, cpu = (late - early for late, early in zip(after, before, strict=True))
    print(f"{written:.0f} writes in {passed:.0f} passes over {wall:.0f} s")
    return Measured(wall, written, saved, most, passed, cpu)


async def quiet(operator: OperatorProcess, *, objects: int, seconds: float) -> list[Row]:
    seen = await measured(operator, seconds=seconds)
    per_pass = f"a pass each {seen.wall * objects / seen.passes:.1f} s"
    limit = LIMIT_MIB if objects <= LIMIT_MIB_OBJECTS else None
    memory = round(operator.memory_mib(), 1)
    told_each = round((seen.writes - seen.saves) / seen.passes * objects, 3)
    whole = f"over {objects} quiet objects"
    return [
        row(f"writes per pass {whole}, saved memories apart", told_each, "writes", "goal", 0),
        row(f"writes per second {whole}", round(seen.writes / seen.wall, 2), "1/s", "limit", LIMIT_WRITES_PER_SECOND),
        row(f"resident memory at {objects} objects", memory, "MiB", "limit" if limit else "-", limit),
        row(f"CPU at {objects} quiet objects, {per_pass}", round(seen.cpu / seen.wall, 3), "cores", "-", None),
        row(f"CPU of one pass of one of {objects} objects", round(1e3 * seen.cpu / seen.passes, 2), "ms", "-", None),
    ]


async def swinging(operator: OperatorProcess, gateway: Gateway, *, objects: int, seconds: float) -> list[Row]:
    gateway.busy = True
    print(f"traffic begins; {TRAFFIC_SETTLE_SECONDS:g} s until it is measured")
    await asyncio.sleep(TRAFFIC_SETTLE_SECONDS)
    seen = await measured(operator, seconds=seconds)
    swings = f"over {objects} objects whose numbers swing"
    most = round(seen.most_writes_in_a_second, 1)
    return [
        row(f"writes per second {swings}", round(seen.writes / seen.wall, 2), "1/s", "limit", LIMIT_WRITES_PER_SECOND),
        row(f"most writes in one second {swings}", most, "1/s", "-", None),
        row(f"CPU {swings}", round(seen.cpu / seen.wall, 3), "cores", "-", None),
        row(f"seconds between two passes of an object, {swings}", round(seen.wall * objects / seen.passes, 1), "s"),
    ]


async def rest(folder: Path, *, objects: int, seconds: float, phases: list[str]) -> list[Row]:
    gateway, rows = Gateway(), list[Row]()
    app = web.Application()
    app.add_routes([web.get(DEMAND_PATH, gateway.answer), web.put(PLAN_PATH, taken)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, GATEWAY_ADDRESS, GATEWAY_ADMIN_PORT).start()
    try:
        config = ClusterConfig("bench-operator", components=API_SERVER_ONLY, isolation="host")
        with Cluster(config, folder / "rest") as cluster:
            kubeconfig = await asyncio.to_thread(install, cluster)
            with running_operator(kubeconfig, folder / "operator.log", service_account=ACCOUNT) as operator:
                await asyncio.to_thread(operator.wait_until_acting)
                try:
                    await make_objects(cluster, operator, objects=objects)
                    if "quiet" in phases:
                        rows += await quiet(operator, objects=objects, seconds=seconds)
                    if "swinging" in phases:
                        rows += await swinging(operator, gateway, objects=objects, seconds=seconds)
                    return rows
                except AssertionError as error:
                    error.add_note(operator.log[-SHOWN_LOG_CHARACTERS:])
                    raise
    finally:
        await runner.cleanup()


async def taken(_request: web.Request) -> web.Response:
    """A gateway's answer to a routing plan."""
    return web.Response()


# --- load steps ---


@dataclass(frozen=True, slots=True)
class Step:
    """One load step."""

    seconds: float
    failures: int

    @property
    def intervals(self) -> float:
        return self.seconds / INTERVAL_SECONDS


async def one_step(cluster: Cluster, number: int, source: random.Random) -> Step:
    namespace = f"step-{number}"
    cluster.kubectl("create", "namespace", namespace)
    async with Api(cluster.kubeconfig) as api:
        serving = Serving(cluster, api, namespace)
        slow = {"spec.scaling.intervalSeconds": INTERVAL_SECONDS, "spec.scaling.scaleDown.stabilizationSeconds": 180}
        await serving.apply_and_wait(slow)
        async with Recorder(serving) as recorder, serving.load((PROMPT_TOKENS, 20)) as load:
            load.requests_per_second = BEFORE
            await asyncio.sleep(BASELINE_SECONDS + source.random() * INTERVAL_SECONDS)
            began = time.monotonic()
            load.requests_per_second = AFTER

            async def patched_at() -> float | None:
                later = [at for seen in recorder.seen_at.values() for at in seen if at > began]
                return min(later, default=None)

            seconds = await until("a count is patched", patched_at, seconds=SETTLE_SECONDS) - began
            await serving.settled()
            load.requests_per_second = 0.0
        await serving.delete()
    print(f"step {number}: {seconds:.1f} s, {recorder.counts}, {len(load.failures)} of {len(load.records)} failed")
    return Step(seconds, len(load.failures))


async def steps(folder: Path, *, count: int, seed: int) -> list[Row]:
    source = random.Random(seed)
    with Cluster(ClusterConfig("bench-steps", components=WHOLE_CLUSTER), folder / "steps") as cluster:
        await asyncio.to_thread(OperatorRelease(cluster).install)
        done = [await one_step(cluster, number, source) for number in range(count)]
    intervals = [step.intervals for step in done]
    figure = f"load step {BEFORE:g} to {AFTER:g} requests/s to patched scale, interval {INTERVAL_SECONDS} s"
    return [
        row(f"{figure}, median", round(statistics.median(intervals), 2), "intervals", "limit", LIMIT_INTERVALS),
        row(f"{figure}, longest of {count}", round(max(intervals), 2), "intervals", "limit", LIMIT_INTERVALS),
        row("failed requests over all steps", sum(step.failures for step in done), "requests", "goal", 0),
    ]


# --- all of it ---


async def measure(folder: Path, options: argparse.Namespace) -> list[Row]:
    rows = list[Row]()
    if {"quiet", "swinging"} & set(options.phases):
        rows += await rest(folder, objects=options.objects, seconds=options.seconds, phases=options.phases)
    if "steps" in options.phases and options.steps:
        rows += await steps(folder, count=options.steps, seed=options.seed)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objects", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=list(PHASES))
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--name", default="operator", help="of the files in docs/results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = asyncio.run(measure(Path(folder), options))
    command = f"python tests/bench/bench_operator.py --objects {options.objects} --seconds {options.seconds:g}"
    command += f" --steps {options.steps}"
    if options.phases != list(PHASES):
        command += f" --phases {' '.join(options.phases)}"
    if options.name != "operator":
        command += f" --name {options.name}"
    write_results(rows, name=options.name, title="Operator", command=command, seed=options.seed)
    for each in rows:
        print(*each.values())


if __name__ == "__main__":
    main()
