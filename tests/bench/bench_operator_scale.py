"""What others' pods and many own pods cost the operator, and how soon it acts after a restart among them.

Run: `python tests/bench/bench_operator_scale.py [--foreign 5000] [--own 10000] [--objects 100]`; 0 leaves a part out.
Writes docs/results/operator_scale.json and operator_scale.md. The operator is a process with the chart's rights on a
real API server. This program plays controllers and nodes, and makes an object's pods as copies in etcd of one that the
API server took: thousands one by one would take ten times as long as what is measured. Memory is the process's resident
memory from /proc, once its lists are in and again at its highest; the operator acts when every object has had a pass
and the object that was changed while it was down has its new status.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.support.bench_rows import Row, row, write_results  # noqa: E402
from tests.support.duet_objects import minimal, patched  # noqa: E402
from tests.support.etcd_copies import copies  # noqa: E402
from tests.support.operator_process import OperatorProcess, install, running_operator  # noqa: E402
from tests.support.waiting import until  # noqa: E402

from duet_dev.cluster import Cluster  # noqa: E402
from duet_dev.config import API_SERVER_ONLY, ClusterConfig  # noqa: E402
from duet_dev.kubeapi import STRATEGIC_MERGE, Api, JsonObject, timestamp  # noqa: E402

NAMESPACE = "bench"
LIMIT_FOREIGN_MIB, LIMIT_SECONDS, LIMIT_MIB = 10.0, 30.0, 512.0
WAIT_SECONDS = 300.0
SETTLE_SECONDS = 10.0
CONCURRENT_REQUESTS = 24
MAKING_LEASE_SECONDS = 60
"""While thousands of objects are made, nothing is measured and renewals may be late."""
PASSES = 'duet_operator_passes_total{result="done"}'


def foreign_pod(number: int) -> JsonObject:
    """About as large as pods are."""
    environment = [{"name": f"VARIABLE_{index}", "value": "some value " * 4} for index in range(20)]
    container = {"name": "app", "image": "registry.example/app:1", "env": environment}
    metadata = {"name": f"foreign-{number}", "namespace": "foreign", "labels": {"app.kubernetes.io/name": "other"}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": [container]}}


async def make_pods(api: Api, pods: list[JsonObject], *, run: bool) -> None:
    room = asyncio.Semaphore(CONCURRENT_REQUESTS)

    async def make(pod: JsonObject) -> None:
        async with room:
            path = f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods"
            await api.post(path, pod)
            if run:
                ready = {"type": "Ready", "status": "True", "lastTransitionTime": timestamp()}
                status = {"phase": "Running", "startTime": timestamp(), "conditions": [ready], "podIP": "127.77.0.2"}
                await api.patch(f"{path}/{pod['metadata']['name']}/status", {"status": status}, kind=STRATEGIC_MERGE)

    await asyncio.gather(*(make(pod) for pod in pods))


def highest_mib(operator: OperatorProcess) -> float:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{operator.process.pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


async def settled_mib(kubeconfig: Path, folder: Path) -> float:
    """Memory of an operator that has listed everything and rested; the lower one of two."""
    found: list[float] = []
    for _ in range(2):
        log = folder / f"settled-{time.monotonic_ns()}.log"
        with running_operator(kubeconfig, log) as operator:
            await asyncio.to_thread(operator.wait_until_acting)
            await asyncio.sleep(SETTLE_SECONDS)
            found.append(operator.memory_mib())
    return min(found)


async def foreign(api: Api, kubeconfig: Path, folder: Path, *, count: int) -> list[Row]:
    before = await settled_mib(kubeconfig, folder)
    await make_pods(api, [foreign_pod(number) for number in range(count)], run=False)
    print(f"{count} foreign pods are there")
    after = await settled_mib(kubeconfig, folder)
    return [
        row(
            f"memory added by {count} foreign pods",
            max(round(after - before, 1), 0.0),
            "MiB",
            "limit",
            LIMIT_FOREIGN_MIB,
        )
    ]


def document(number: int, *, recommend: bool = False) -> JsonObject:
    patch = {"metadata.namespace": NAMESPACE, "spec.gateway.replicas": 1, "spec.scaling.mode": "Manual"}
    return patched(minimal(name=f"own-{number}"), patch | ({"spec.scaling.mode": "Recommend"} if recommend else {}))


async def own(api: Api, cluster: Cluster, kubeconfig: Path, folder: Path, *, objects: int, count: int) -> list[Row]:
    everything = json.dumps({"apiVersion": "v1", "kind": "List", "items": [document(n) for n in range(objects)]})
    cluster.kubectl("create", "-f", "-", input=everything)
    with running_operator(kubeconfig, folder / "first.log", lease_seconds=MAKING_LEASE_SECONDS) as operator:
        await asyncio.to_thread(operator.wait_until_acting)

        async def made() -> list[JsonObject] | None:
            found: list[JsonObject] = (await api.get(f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments"))["items"]
            return found if len(found) >= 3 * objects else None

        deployments = await until("all Deployments exist", made, seconds=WAIT_SECONDS)
    decode = [each for each in deployments if each["metadata"]["name"].endswith("-decode")]
    pods = [own_pod(each) for each in decode]
    await make_pods(api, pods, run=True)
    for pod in pods:
        name = pod["metadata"]["name"]
        stored = await api.get(f"/api/v1/namespaces/{NAMESPACE}/pods/{name}")
        prefix, uid = f"/registry/pods/{NAMESPACE}", stored["metadata"]["uid"]
        await copies(cluster.root, prefix, name=name, uid=uid, count=count // len(pods) - 1)
    there = await api.get(f"/api/v1/namespaces/{NAMESPACE}/pods", limit="1")
    assert there["metadata"]["remainingItemCount"] == count - 1
    print(f"{count} own pods are there")
    cluster.kubectl("apply", "-f", "-", input=json.dumps(document(0, recommend=True)))
    return await restart(api, kubeconfig, folder, objects=objects, count=count)


def own_pod(deployment: JsonObject) -> JsonObject:
    template = deployment["spec"]["template"]
    name = f"{deployment['metadata']['name']}-00000"
    metadata = {**template["metadata"], "name": name, "namespace": NAMESPACE}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


async def restart(api: Api, kubeconfig: Path, folder: Path, *, objects: int, count: int) -> list[Row]:
    path = f"/apis/duetserve.io/v1alpha1/namespaces/{NAMESPACE}/duetdeployments/own-0"
    began = time.monotonic()
    with running_operator(kubeconfig, folder / "second.log") as operator:
        try:
            await asyncio.to_thread(operator.wait_until_acting, seconds=WAIT_SECONDS)
            listed = time.monotonic() - began

            async def acted() -> bool:
                changed = await api.get(path)
                seen = changed.get("status", {}).get("observedGeneration") == changed["metadata"]["generation"]
                with suppress(TimeoutError):
                    return seen and (await asyncio.to_thread(operator.metrics))[PASSES] >= objects
                return False

            await until("it acts", acted, seconds=WAIT_SECONDS)
        except AssertionError as error:
            error.add_note(operator.log[-6000:])
            raise
        acting = round(time.monotonic() - began, 1)
        await asyncio.sleep(SETTLE_SECONDS)
        rest_mib, most_mib = operator.memory_mib(), highest_mib(operator)
    return [
        row(f"start of the process to all lists read, {count} own pods", round(listed, 1), "s"),
        row(
            f"start of the process to every object acted on, {count} own pods",
            acting,
            "s",
            "limit",
            LIMIT_SECONDS,
        ),
        row(f"resident memory after it, {count} own pods of {objects} objects", round(rest_mib, 1), "MiB"),
        row(f"highest memory since its start, {count} own pods", round(most_mib, 1), "MiB", "limit", LIMIT_MIB),
    ]


async def measure(folder: Path, options: argparse.Namespace) -> list[Row]:
    config = ClusterConfig("bench-scale", components=API_SERVER_ONLY, isolation="host")
    with Cluster(config, folder / "scale") as cluster:
        kubeconfig = await asyncio.to_thread(install, cluster)
        for namespace in (NAMESPACE, "foreign"):
            cluster.kubectl("create", "namespace", namespace)
        async with Api(cluster.kubeconfig) as api:
            rows = list[Row]()
            if options.foreign:
                rows += await foreign(api, kubeconfig, folder, count=options.foreign)
            if options.own:
                rows += await own(api, cluster, kubeconfig, folder, objects=options.objects, count=options.own)
            return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--foreign", type=int, default=5000)
    parser.add_argument("--own", type=int, default=10_000)
    parser.add_argument("--objects", type=int, default=100)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = asyncio.run(measure(Path(folder), options))
    command = (
        f"python tests/bench/bench_operator_scale.py --foreign {options.foreign} --own {options.own}"
        f" --objects {options.objects}"
    )
    write_results(rows, name="operator_scale", title="Operator at scale", command=command, seed=None)
    for each in rows:
        print(*each.values())


if __name__ == "__main__":
    main()
