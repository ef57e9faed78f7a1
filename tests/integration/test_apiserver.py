"""The two small sizes of the real API server: what they do and what they leave undone."""

import json
import ssl
import time
import urllib.request
from typing import Any

import pytest

from duet_dev.cluster import Cluster

pytestmark = pytest.mark.apiserver

DEPLOYMENT = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "web"},
    "spec": {
        "replicas": 2,
        "selector": {"matchLabels": {"app": "web"}},
        "template": {
            "metadata": {"labels": {"app": "web"}},
            "spec": {"containers": [{"name": "web", "image": "web"}]},
        },
    },
}


def test_token_and_authority_open_the_api(apiserver: Cluster) -> None:
    context = ssl.create_default_context(cafile=str(apiserver.ca))
    request = urllib.request.Request(f"{apiserver.url}/version", headers={"Authorization": f"Bearer {apiserver.token}"})
    with urllib.request.urlopen(request, context=context) as response:
        version = json.load(response)
    assert version["major"] == "1"
    assert version["gitVersion"].startswith(f"v1.{version['minor']}.")


def test_pods_are_stored_without_a_controller_manager(apiserver: Cluster, namespace: str) -> None:
    apiserver.kubectl("create", "-n", namespace, "-f", "-", input=json.dumps(pod("lonely")))
    assert apiserver.kubectl("get", "pods", "-n", namespace, "-o", "name").stdout.split() == ["pod/lonely"]


def test_deployments_make_pods_and_take_them_along(control_plane: Cluster, namespace: str) -> None:
    control_plane.kubectl("create", "-n", namespace, "-f", "-", input=json.dumps(DEPLOYMENT))
    wait_for_pods(control_plane, namespace, count=2)
    control_plane.kubectl("delete", "deployment", "web", "-n", namespace)
    wait_for_pods(control_plane, namespace, count=0)


def pod(name: str) -> dict[str, Any]:
    spec = DEPLOYMENT["spec"]["template"]["spec"]  # type: ignore[index]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


def wait_for_pods(cluster: Cluster, namespace: str, *, count: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        names = cluster.kubectl("get", "pods", "-n", namespace, "-o", "name").stdout.split()
        if len(names) == count:
            return
        time.sleep(0.2)
    pytest.fail(f"{len(names)} pods after 30 s, expected {count}")
