"""The local cluster as a person uses it: up, in use from both sides, down, and killed at any moment."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from tests.support.processes import carrying, left_after

from duet_dev.cluster import Cluster
from duet_dev.config import CONTROL_PLANE, ClusterConfig
from duet_dev.errors import DevError
from duet_dev.paths import PACKAGE_PARENT

pytestmark = pytest.mark.cluster

GONE_SECONDS = 20.0

T = TypeVar("T")


def labelled(name: str, command: list[str], **container: Any) -> dict[str, Any]:
    """A pod that runs this command, with its name as label `app`."""
    # Any image that the cluster knows will do: the pod brings its own command.
    spec = {"name": "main", "image": "duet-operator", "command": command, **container}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"containers": [spec], "terminationGracePeriodSeconds": 1},
    }


def create(cluster: Cluster, namespace: str, document: dict[str, Any]) -> None:
    cluster.kubectl("create", "-n", namespace, "-f", "-", input=json.dumps(document))


def eventually(attempt: Callable[[], T], *, seconds: float = 30) -> T:
    """What `attempt` returns once it no longer raises."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return attempt()
        except (OSError, DevError, AssertionError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def test_nodes_are_ready_and_have_gpus(local_cluster: Cluster) -> None:
    nodes = json.loads(local_cluster.kubectl("get", "nodes", "-o", "json").stdout)["items"]
    assert [node["metadata"]["name"] for node in nodes] == ["gpu-0", "gpu-1", "gpu-2"]
    for node in nodes:
        conditions = {condition["type"]: condition["status"] for condition in node["status"]["conditions"]}
        assert conditions["Ready"] == "True"
        assert node["status"]["allocatable"]["nvidia.com/gpu"] == "8"
        assert node["status"]["allocatable"]["nvidia.com/mig-3g.40gb"] == "8"


def test_a_service_answers_inside_by_name_and_outside_by_forward(local_cluster: Cluster, namespace: str) -> None:
    serve = [sys.executable, "-m", "http.server", "--directory=/etc", "8000"]
    create(local_cluster, namespace, labelled("web", serve, ports=[{"containerPort": 8000}]))
    local_cluster.kubectl("expose", "pod", "web", "-n", namespace, "--port=80", "--target-port=8000")
    local_cluster.kubectl("wait", "pod/web", "-n", namespace, "--for=condition=Ready", "--timeout=30s")
    expected = Path("/etc/os-release")

    port = local_cluster.forward(f"service/{namespace}/web:80")
    url = f"http://127.0.0.1:{port}/{expected.name}"
    assert eventually(lambda: urllib.request.urlopen(url, timeout=5).read()) == expected.read_bytes()

    pod = local_cluster.forward(f"pod/{namespace}/web:8000")
    answer = urllib.request.urlopen(f"http://127.0.0.1:{pod}/{expected.name}", timeout=5)
    assert answer.read() == expected.read_bytes()

    address = local_cluster.kubectl("get", "service", "web", "-n", namespace, "-o", "jsonpath={.spec.clusterIP}").stdout
    fetch = f"import urllib.request; print(urllib.request.urlopen('http://{address}/{expected.name}').read())"
    inside = local_cluster.run([sys.executable, "-c", fetch], capture_output=True, timeout=30)
    assert inside.stdout.strip() == str(expected.read_bytes())


def test_pod_addresses_exist_only_inside(local_cluster: Cluster) -> None:
    inside = local_cluster.run(["ip", "route", "get", "10.244.0.1"], capture_output=True)
    assert inside.stdout.startswith("local 10.244.0.1 dev lo")
    outside = subprocess.run(["ip", "route", "get", "10.244.0.1"], capture_output=True, text=True)
    assert "local 10.244.0.1" not in outside.stdout


def test_a_second_cluster_of_that_folder_is_refused(local_cluster: Cluster) -> None:
    with pytest.raises(DevError, match="a cluster already runs in"):
        Cluster(local_cluster.config, local_cluster.root).up()
    assert local_cluster.running


def test_two_clusters_at_once_see_only_their_own_objects(local_cluster: Cluster, tmp_path: Path) -> None:
    with Cluster(ClusterConfig("second", components=CONTROL_PLANE), tmp_path / "second") as second:
        second.kubectl("create", "namespace", "only-in-second")
        names = local_cluster.kubectl("get", "namespaces", "-o", "name").stdout.split()
        assert "namespace/only-in-second" not in names
        assert second.url != local_cluster.url
    assert not second.running
    assert local_cluster.kubectl("get", "nodes", "-o", "name").stdout.count("node/") == 3


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(DevError, match="holds files that no cluster put there"):
        Cluster(ClusterConfig("careless", components=CONTROL_PLANE), tmp_path).up()
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_start_that_fails_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    config = ClusterConfig("broken", kubelet={"heartbeatSeconds": -1})
    with pytest.raises(DevError, match=r"(kubelet|services) exited with status 1:\n.*\nheartbeatSeconds"):
        Cluster(config, tmp_path / "broken").up()
    assert left_after(str(tmp_path), seconds=GONE_SECONDS) == []


# The command line


def duet_dev(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE_PARENT)}
    command = [sys.executable, "-m", "duet_dev", *arguments]
    return subprocess.Popen(command, env=environment, text=True, start_new_session=True, **options)


def finished(*arguments: str) -> subprocess.CompletedProcess[str]:
    process = duet_dev(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    output, errors = process.communicate(timeout=60)
    return subprocess.CompletedProcess(arguments, process.returncode, output, errors)


def test_a_detached_cluster_is_used_and_ended_by_other_commands(tmp_path: Path) -> None:
    root = f"--root={tmp_path / 'detached'}"
    up = finished("up", root, "--nodes=1", "--detach")
    try:
        assert up.returncode == 0, up.stderr
        assert f"export KUBECONFIG={tmp_path / 'detached' / 'kubeconfig'}" in up.stdout
        assert "kubelet" in finished("status", root).stdout
        assert finished("run", root, "--", "kubectl", "get", "nodes", "-o", "name").stdout == "node/gpu-0\n"
    finally:
        down = finished("down", root)
    assert down.returncode == 0, down.stderr
    assert left_after(str(tmp_path), seconds=GONE_SECONDS) == []
    assert "isn't running" in finished("status", root).stderr


@pytest.fixture
def starting(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """`up` in the foreground, just begun."""
    log = tmp_path / "up.log"
    with log.open("w") as output:
        process = duet_dev("up", f"--root={tmp_path / 'cluster'}", stdout=output, stderr=output)
    yield process
    process.kill()
    process.wait()


# A file whose appearance shows how far the start has come; the kubeconfig is written last.
MOMENTS = ("lock", "control.sock", "logs/etcd.log", "logs/kube-scheduler.log", "logs/kubelet.log", "kubeconfig")


CASES = [
    *((signal.SIGKILL, moment) for moment in MOMENTS),
    *((number, moment) for number in (signal.SIGINT, signal.SIGTERM) for moment in ("logs/etcd.log", "kubeconfig")),
]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "moment"), CASES)
def test_a_signal_at_any_moment_leaves_no_process(
    starting: subprocess.Popen[str], tmp_path: Path, number: signal.Signals, moment: str
) -> None:
    reached(starting, tmp_path, moment)
    starting.send_signal(number)
    starting.wait(GONE_SECONDS)
    assert left_after(str(tmp_path), seconds=GONE_SECONDS) == []


def test_pods_and_their_daemons_end_with_the_cluster(starting: subprocess.Popen[str], tmp_path: Path) -> None:
    reached(starting, tmp_path, "kubeconfig")
    cluster = Cluster.attached(tmp_path / "cluster")
    unique = f"86400.{os.getpid()}{time.monotonic_ns()}"
    script = f"setsid sleep {unique} & exec sleep {unique}"
    create(cluster, "default", labelled("daemon", ["sh", "-c", script]))
    eventually(lambda: two_run(unique))
    starting.kill()
    starting.wait()
    assert left_after(unique, seconds=GONE_SECONDS) == []
    assert left_after(str(tmp_path), seconds=GONE_SECONDS) == []


def two_run(unique: str) -> None:
    assert len(carrying(unique)) >= 2


def reached(starting: subprocess.Popen[str], tmp_path: Path, moment: str) -> None:
    def appeared() -> None:
        assert starting.poll() is None, (tmp_path / "up.log").read_text()
        assert (tmp_path / "cluster" / moment).exists()

    eventually(appeared, seconds=60)
