"""The gateway follows pods and its own DuetDeployment on a real API server; the pods' engines run beside it."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.support.crd_server import CrdServer
from tests.support.duet_objects import minimal, patched
from tests.support.fleet import (
    MODEL,
    EngineProcess,
    Fleet,
    GatewayProcess,
    all_usable,
    ask,
    completion,
    demand,
    eventually,
    fleet,
    get_json,
)

from duet_dev.cluster import Cluster
from duet_operator.api.crd import custom_resource_definition

pytestmark = pytest.mark.apiserver

NAME = "example"


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Fleet]:
    with fleet(tmp_path) as started:
        yield started


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as opened:
        yield opened


class Pods:
    """Pod objects that no kubelet runs: their status is what the test says."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self._cluster = cluster
        self._namespace = namespace

    def create(self, engine: EngineProcess, *, revision: str = "r1", ready: bool = True) -> None:
        labels = {"duetserve.io/name": NAME, "duetserve.io/role": engine.role, "duetserve.io/revision": revision}
        ports = [{"name": "http", "containerPort": engine.port}]
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": engine.name, "labels": labels},
            "spec": {"containers": [{"name": "engine", "image": "engine", "ports": ports}]},
        }
        self._run("create", "-f", "-", text=json.dumps(pod))
        self.set_ready(engine, ready)

    def set_ready(self, engine: EngineProcess, ready: bool) -> None:
        status = {
            "phase": "Running",
            "podIP": "127.0.0.1",
            "podIPs": [{"ip": "127.0.0.1"}],
            "conditions": [{"type": "Ready", "status": str(ready)}],
        }
        self._run("patch", "pod", engine.name, "--subresource=status", "--patch", json.dumps({"status": status}))

    def delete(self, engine: EngineProcess) -> None:
        self._run("delete", "pod", engine.name, "--grace-period=0", "--force")

    def apply(self, deployment: dict[str, Any]) -> None:
        self._run("apply", "-f", "-", text=json.dumps(deployment))

    def _run(self, *arguments: str, text: str | None = None) -> None:
        self._cluster.kubectl("--namespace", self._namespace, *arguments, input=text)


@pytest.fixture
def pods(control_plane: Cluster, namespace: str) -> Pods:
    with CrdServer(control_plane) as server:
        server.install(custom_resource_definition())
    return Pods(control_plane, namespace)


def start_gateway(processes: Fleet, cluster: Cluster, namespace: str) -> GatewayProcess:
    return processes.gateway_process(
        "--namespace", namespace, "--name", NAME, environment={"KUBECONFIG": str(cluster.kubeconfig)}
    )


async def route(session: aiohttp.ClientSession, gateway: GatewayProcess) -> str:
    answer = await ask(session, gateway.url, completion(2))
    assert answer.whole, answer
    return answer.route


async def test_pods_come_turn_unready_and_go(
    processes: Fleet, session: aiohttp.ClientSession, control_plane: Cluster, namespace: str, pods: Pods
) -> None:
    prefill, decode, other = (processes.engine(role) for role in ("prefill", "decode", "decode"))
    pods.create(prefill)
    pods.create(decode)
    gateway = start_gateway(processes, control_plane, namespace)
    await all_usable(session, gateway, 2)
    assert await route(session, gateway) == f"prefill={prefill.name} decode={decode.name}"

    pods.set_ready(prefill, False)

    async def deflected() -> bool:
        return await route(session, gateway) == f"deflected={decode.name} reason=no-prefill-worker"

    await eventually(deflected, "the unready prefill pod to be left alone")
    pods.set_ready(prefill, True)

    async def paired() -> bool:
        return (await route(session, gateway)).startswith(f"prefill={prefill.name}")

    await eventually(paired, "the prefill pod to be used again")
    pods.create(other, revision="r2")
    await all_usable(session, gateway, 3)
    assert {await route(session, gateway) for _ in range(4)} == {f"prefill={prefill.name} decode={decode.name}"}
    pods.delete(decode)

    async def other_revision() -> bool:
        return await route(session, gateway) == f"deflected={other.name} reason=no-prefill-worker"

    await eventually(other_revision, "the deleted pod to be gone and no pair across revisions")
    names = {worker["worker"] for worker in (await demand(session, gateway))["workers"]}
    assert names == {prefill.name, other.name}


async def test_live_fields_reach_gateway_and_engines(
    processes: Fleet, session: aiohttp.ClientSession, control_plane: Cluster, namespace: str, pods: Pods
) -> None:
    decode = processes.engine("decode")
    pods.create(decode)
    deployment = patched(minimal(name=NAME), {"metadata.namespace": namespace, "spec.model.id": MODEL})
    pods.apply(deployment)
    gateway = start_gateway(processes, control_plane, namespace)
    await all_usable(session, gateway, 1)

    async def generation_everywhere(generation: int) -> bool:
        state = await get_json(session, decode.url + "/duet/state")
        document = await demand(session, gateway)
        return bool(state["knobs_generation"] == document["generation"] == generation)

    await eventually(lambda: generation_everywhere(1), "the object's settings")
    async with session.post(gateway.url + "/v1/completions", json=completion(2, model="other")) as response:
        assert response.status == 404 and MODEL in (await response.json())["error"]["message"]
    changed = {"spec.deflection": {"mode": "Off"}, "spec.pools": {"prefill": {"minReplicas": 1}}}
    pods.apply(patched(deployment, changed))
    await eventually(lambda: generation_everywhere(2), "the changed settings")
    assert not (await get_json(session, decode.url + "/duet/state"))["deflection_active"]


async def test_without_its_object_or_pods_a_gateway_is_ready_and_holds(
    processes: Fleet, session: aiohttp.ClientSession, control_plane: Cluster, namespace: str, pods: Pods
) -> None:
    gateway = start_gateway(processes, control_plane, namespace)

    async def ready() -> bool:
        async with session.get(gateway.admin + "/readyz") as response:
            return response.status == 200

    await eventually(ready, "the gateway to be ready")
    answer = asyncio.create_task(ask(session, gateway.url, completion(2)))
    decode = processes.engine("decode")
    pods.create(decode)
    assert (await answer).route == f"deflected={decode.name} reason=no-prefill-worker"
