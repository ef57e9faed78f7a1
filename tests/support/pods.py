"""Manifests of pods that run as processes of the local cluster, and waiting for what becomes of them."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, TypeVar

from tests.support.rest import Rest

from duet_dev.cluster import Cluster
from duet_operator.cluster import POD, Kind

JsonObject = dict[str, Any]
T = TypeVar("T")

SERVER = Path(__file__).with_name("pod_server.py")
POD_IP = {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}


def container(*command: str, name: str = "main", **fields: Any) -> JsonObject:
    """A container that runs a command of this machine."""
    return {"name": name, "image": "busybox", "command": list(command), **fields}


def shell(script: str, *, name: str = "main", **fields: Any) -> JsonObject:
    return container("sh", "-c", script, name=name, **fields)


def server(*, name: str = "main", env: list[JsonObject] | None = None, **fields: Any) -> JsonObject:
    """The HTTP server of tests/support/pod_server.py on port 8000, named http, with a readiness probe."""
    return {
        "name": name,
        "image": "registry.example:5000/group/python:3@sha256:0123",
        "args": [str(SERVER)],
        "env": [POD_IP, *(env or [])],
        "ports": [{"name": "http", "containerPort": 8000}],
        "readinessProbe": {"httpGet": {"path": "/readyz", "port": "http"}, "periodSeconds": 1, "failureThreshold": 1},
        **fields,
    }


def pod(name: str, *containers: JsonObject, labels: dict[str, str] | None = None, **spec: Any) -> JsonObject:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels or {}},
        "spec": {"containers": list(containers), "terminationGracePeriodSeconds": 5, **spec},
    }


def deployment(name: str, *containers: JsonObject, replicas: int, **spec: Any) -> JsonObject:
    labels = {"app": name}
    template = {
        "metadata": {"labels": labels},
        "spec": {"containers": list(containers), "terminationGracePeriodSeconds": 5, **spec},
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template},
    }


def service(name: str, *, selector: dict[str, str] | None = None, **spec: Any) -> JsonObject:
    """Port 80 to the port named http of the pods labelled app=NAME."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {
            "selector": selector or {"app": name},
            "ports": [{"name": "web", "port": 80, "targetPort": "http"}],
            **spec,
        },
    }


class Namespace:
    """One namespace of a cluster: changed through kubectl, and looked at again and again over one connection."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster, self.name = cluster, name
        self._rest = Rest(cluster)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._rest.close()

    def kubectl(self, *arguments: str, input: str | None = None) -> str:
        return self.cluster.kubectl("--namespace", self.name, *arguments, input=input).stdout

    def refused(self, *arguments: str) -> str:
        """What kubectl says when the call fails, as it must."""
        result = self.cluster.kubectl("--namespace", self.name, *arguments, check=False)
        assert result.returncode != 0, f"kubectl {' '.join(arguments)} was expected to fail"
        return result.stderr

    def apply(self, *items: JsonObject) -> None:
        document = {"apiVersion": "v1", "kind": "List", "items": list(items)}
        self.kubectl("apply", "-f", "-", input=json.dumps(document))

    def get(self, kind: Kind, name: str) -> JsonObject:
        return self._rest.get(kind, self.name, name)

    def pods(self, app: str | None = None) -> list[JsonObject]:
        return self._rest.list(POD, self.name, selector=f"app={app}" if app else "")

    def wait(self, condition: str, *what: str, seconds: float = 30) -> None:
        self.kubectl("wait", f"--for={condition}", f"--timeout={seconds:g}s", *what)

    def ready(self, name: str) -> JsonObject:
        """The pod, once it is Ready."""
        self.wait("condition=Ready", f"pod/{name}")
        return self.get(POD, name)

    def scaled(self, name: str, replicas: int) -> list[JsonObject]:
        """The Deployment's pods, once so many are ready and no other is left."""

        def settled() -> list[JsonObject] | None:
            found = self.pods(name)
            return found if len(found) == replicas and all(map(is_ready, found)) else None

        return until(settled, f"{replicas} ready pods of {name}")

    def exec(self, pod_name: str, *command: str, options: tuple[str, ...] = ()) -> str:
        return self.kubectl("exec", pod_name, *options, "--", *command)

    def status_of(self, pod_name: str, container_name: str = "main") -> JsonObject:
        status = self.get(POD, pod_name)["status"]
        every = status.get("initContainerStatuses", []) + status.get("containerStatuses", [])
        return next((one for one in every if one["name"] == container_name), {"state": {}, "restartCount": 0})


def is_ready(item: JsonObject) -> bool:
    return condition(item, "Ready").get("status") == "True" and "deletionTimestamp" not in item["metadata"]


def condition(item: JsonObject, kind: str) -> JsonObject:
    return next((c for c in item["status"].get("conditions", []) if c["type"] == kind), {})


def until(look: Callable[[], T | None], what: str, *, seconds: float = 75) -> T:
    """The first result that is neither None nor False."""
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if found is not None and found is not False:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(0.2)
