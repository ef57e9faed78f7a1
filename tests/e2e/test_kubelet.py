"""A pod's life on the process kubelet: start, probes, restarts, ends, and what the rest of Kubernetes makes of it."""

import concurrent.futures
import http.client
import json
import signal
import subprocess
import time
import urllib.request

import pytest
from tests.support.pods import (
    JsonObject,
    Namespace,
    condition,
    container,
    deployment,
    is_ready,
    pod,
    server,
    service,
    shell,
    until,
)

from duet_dev import build
from duet_dev.cluster import Cluster
from duet_operator.cluster import DISRUPTION_BUDGET, POD, SERVICE

pytestmark = pytest.mark.cluster


def processes(cluster: Cluster, command: str) -> set[str]:
    """The ids of the processes in the cluster whose command line is exactly this."""
    listed = cluster.run(["ps", "-eo", "pid=,args="], capture_output=True).stdout
    return {pid for pid, _, rest in (line.strip().partition(" ") for line in listed.splitlines()) if rest == command}


def test_init_containers_run_in_order_and_a_sidecar_before_the_main_one(pods: Namespace) -> None:
    shared = {"volumeMounts": [{"name": "shared", "mountPath": "/shared/notes"}]}
    note = "echo $0 >> /shared/notes/order"
    pods.apply(
        pod(
            "ordered",
            container("sh", "-c", "cat /shared/notes/order; sleep 60", **shared),
            initContainers=[
                container("sh", "-c", note, "first", name="first", **shared),
                container("sh", "-c", f"{note}; sleep 60", "sidecar", name="side", restartPolicy="Always", **shared),
                container("sh", "-c", note, "second", name="second", **shared),
            ],
            volumes=[{"name": "shared", "emptyDir": {}}],
        )
    )
    pods.ready("ordered")
    assert until(lambda: pods.kubectl("logs", "ordered", "-c", "main") or None, "the log").split() == [
        "first",
        "sidecar",
        "second",
    ]
    assert "running" in pods.status_of("ordered", "side")["state"]


def test_a_failing_init_container_is_tried_again_and_holds_the_pod_back(pods: Namespace) -> None:
    pods.apply(pod("held", shell("sleep 60"), initContainers=[shell("exit 3", name="init")]))
    until(lambda: pods.status_of("held", "init")["restartCount"] >= 1, "a second try")
    held = pods.get(POD, "held")
    assert held["status"]["phase"] == "Pending"
    assert condition(held, "Initialized")["reason"] == "ContainersNotInitialized"
    assert pods.status_of("held", "init")["lastState"]["terminated"]["exitCode"] == 3


def test_a_crashing_container_is_restarted_with_growing_pauses_and_keeps_its_last_log(pods: Namespace) -> None:
    pods.apply(pod("crashing", shell("echo run; exit 7")))

    def status() -> JsonObject:
        return pods.status_of("crashing")

    def back_off() -> str | None:
        return status()["state"].get("waiting", {}).get("message")

    first = until(back_off, "the first pause")
    until(lambda: status()["restartCount"] == 2 and back_off(), "the third run")
    assert first == "back-off 1s restarting failed container=main"
    assert back_off() == "back-off 4s restarting failed container=main"
    assert status()["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    assert status()["lastState"]["terminated"]["exitCode"] == 7
    assert pods.get(POD, "crashing")["status"]["phase"] == "Running"
    assert pods.kubectl("logs", "crashing", "-p") == "run\n"


def test_a_command_that_does_not_exist_is_a_start_error(pods: Namespace) -> None:
    pods.apply(pod("missing", container("/no/such/program")))
    ended = until(lambda: pods.status_of("missing").get("lastState", {}).get("terminated"), "the failed start")
    assert (ended["reason"], ended["exitCode"]) == ("StartError", 128)
    assert "/no/such/program" in ended["message"]


def test_a_job_runs_to_its_end_and_its_pod_succeeds(pods: Namespace) -> None:
    template = {"spec": {"restartPolicy": "Never", "containers": [shell("echo done")]}}
    pods.apply({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "once"}, "spec": {"template": template}})
    pods.wait("condition=Complete", "job/once")
    (finished,) = pods.pods()
    assert finished["status"]["phase"] == "Succeeded"
    assert condition(finished, "Ready")["reason"] == "PodCompleted"
    assert pods.kubectl("logs", "job/once") == "done\n"


def test_an_image_without_a_local_command_is_never_pulled(pods: Namespace) -> None:
    pods.apply(pod("unknown", {"name": "main", "image": "registry.example/nobody/knows:1"}))

    def reason() -> str | None:
        return pods.status_of("unknown")["state"].get("waiting", {}).get("reason")

    until(lambda: reason() == "ImagePullBackOff", "ImagePullBackOff")
    message = pods.status_of("unknown")["state"]["waiting"]["message"]
    assert 'Back-off pulling image "registry.example/nobody/knows:1"' in message
    assert pods.get(POD, "unknown")["status"]["phase"] == "Pending"
    pods.kubectl("delete", "pod", "unknown", "--timeout=10s")


def test_readiness_follows_the_probe_and_the_gates(pods: Namespace) -> None:
    pods.apply(pod("gated", server(), readinessGates=[{"conditionType": "example.com/open"}]))
    until(lambda: condition(pods.get(POD, "gated"), "ContainersReady").get("status") == "True", "the probe")
    assert condition(pods.get(POD, "gated"), "Ready")["reason"] == "ReadinessGatesNotReady"
    gate = {"status": {"conditions": [{"type": "example.com/open", "status": "True"}]}}
    pods.kubectl("patch", "pod", "gated", "--subresource=status", "-p", json.dumps(gate))
    address = pods.ready("gated")["status"]["podIP"]

    pods.cluster.run(["curl", "-sf", f"http://{address}:8000/unready"], check=True)
    pods.wait("condition=Ready=False", "pod/gated")
    assert condition(pods.get(POD, "gated"), "Ready")["reason"] == "ContainersNotReady"
    pods.cluster.run(["curl", "-sf", f"http://{address}:8000/ready"], check=True)
    pods.ready("gated")
    assert pods.status_of("gated")["restartCount"] == 0


def test_a_pod_that_was_taken_for_lost_is_ready_again(pods: Namespace) -> None:
    """The controller manager writes this of each pod of a node that it doesn't hear of."""
    pods.apply(pod("found", shell("sleep 300")))
    pods.ready("found")
    lost = {"status": {"conditions": [{"type": "Ready", "status": "False"}]}}
    pods.kubectl("patch", "pod", "found", "--subresource=status", "-p", json.dumps(lost))
    pods.ready("found")


def test_a_failing_liveness_probe_restarts_the_container_once_it_has_started(pods: Namespace) -> None:
    probe = {"exec": {"command": ["test", "-e", "started"]}, "periodSeconds": 1}
    alive = {"exec": {"command": ["test", "-e", "alive"]}, "periodSeconds": 1, "failureThreshold": 1}
    main = shell(
        "sleep 2; touch alive started; sleep 2; rm alive; sleep 60",
        startupProbe={**probe, "failureThreshold": 60},
        livenessProbe=alive,
    )
    pods.apply(pod("alive", main, terminationGracePeriodSeconds=1))
    until(lambda: pods.status_of("alive").get("started") is True, "the start")
    assert pods.status_of("alive")["restartCount"] == 0
    until(lambda: pods.status_of("alive")["restartCount"] == 1, "the restart")
    events = pods.kubectl("get", "events", "-o", "jsonpath={.items[*].message}")
    assert "Liveness probe failed" in events


def test_deletion_waits_for_pre_stop_and_loses_no_request_in_flight(pods: Namespace) -> None:
    pre_stop = {"preStop": {"exec": {"command": ["sleep", "2"]}}}
    pods.apply(pod("drained", server(lifecycle=pre_stop), terminationGracePeriodSeconds=30))
    address = pods.ready("drained")["status"]["podIP"]
    port = pods.cluster.forward(f"pod/{pods.name}/drained:8000")
    assert address

    def request(_: int) -> int:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/?seconds=1.5", timeout=20) as answer:
            return int(answer.status)

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        early = [pool.submit(request, n) for n in range(4)]
        started = time.monotonic()
        pods.kubectl("delete", "pod", "drained", "--wait=false")
        late = []
        while time.monotonic() < started + 1.5:
            late.append(pool.submit(request, 0))
            time.sleep(0.25)
        assert [future.result() for future in early + late] == [200] * len(early + late)
    pods.wait("delete", "pod/drained")
    assert time.monotonic() - started >= 2


def test_grace_is_bounded_and_can_be_cut_short(pods: Namespace) -> None:
    stubborn = shell("trap '' TERM; echo up; while :; do sleep 1; done")
    pods.apply(pod("stubborn", stubborn, terminationGracePeriodSeconds=600))
    pods.ready("stubborn")
    until(lambda: pods.kubectl("logs", "stubborn") == "up\n" or None, "the trap")
    pods.kubectl("delete", "pod", "stubborn", "--wait=false")
    until(lambda: pods.get(POD, "stubborn")["metadata"].get("deletionTimestamp"), "the deletion")
    pods.kubectl("delete", "pod", "stubborn", "--grace-period=1", "--timeout=20s")


def test_a_forced_deletion_ends_the_process_too(pods: Namespace) -> None:
    pods.apply(pod("forced", server(), terminationGracePeriodSeconds=600))
    address = pods.ready("forced")["status"]["podIP"]
    pods.kubectl("delete", "pod", "forced", "--grace-period=0", "--force")
    url = f"http://{address}:8000/"
    until(lambda: pods.cluster.run(["curl", "-s", "-m", "2", url]).returncode == 7, "a refused connection")


def test_nothing_of_a_container_survives_it_not_even_a_daemon(pods: Namespace) -> None:
    daemon = "setsid --fork sleep 98765; sleep 300"
    pods.apply(pod("daemons", shell(daemon)))
    pods.ready("daemons")

    until(lambda: processes(pods.cluster, "sleep 98765") or None, "the daemon")
    pods.kubectl("delete", "pod", "daemons", "--grace-period=1", "--timeout=20s")
    assert not processes(pods.cluster, "sleep 98765")


def test_each_pod_has_devices_of_its_own(pods: Namespace) -> None:
    limits = {"resources": {"limits": {"nvidia.com/gpu": "2"}}}
    pods.apply(deployment("devices", shell("sleep 300", **limits), replicas=6))
    found = pods.scaled("devices", 6)
    given = [pods.exec(p["metadata"]["name"], "printenv", "NVIDIA_VISIBLE_DEVICES").strip() for p in found]
    identifiers = [identifier for line in given for identifier in line.split(",")]
    assert len(identifiers) == 12
    assert len(set(identifiers)) == 12
    assert all(identifier.startswith("GPU-") for identifier in identifiers)


def test_scaling_down_takes_pending_then_closed_gates_then_the_cheapest(pods: Namespace) -> None:
    gates = {"readinessGates": [{"conditionType": "example.com/open"}]}
    pods.apply(deployment("victims", shell("sleep 300"), replicas=4, **gates))
    until(lambda: len(pods.pods("victims")) == 4, "four pods")
    names = [p["metadata"]["name"] for p in pods.pods("victims")]

    def open_gate(name: str, status: str) -> None:
        gate = {"status": {"conditions": [{"type": "example.com/open", "status": status}]}}
        pods.kubectl("patch", "pod", name, "--subresource=status", "-p", json.dumps(gate))

    for name, cost in zip(names, (1000, 5, -10, 1), strict=True):
        open_gate(name, "True")
        pods.kubectl("annotate", "pod", name, f"controller.kubernetes.io/pod-deletion-cost={cost}")
    pods.scaled("victims", 4)
    open_gate(names[0], "False")  # out of rotation: goes first in spite of its cost
    pods.wait("condition=Ready=False", f"pod/{names[0]}")
    for left in ([1, 2, 3], [1, 3], [1]):
        pods.kubectl("scale", "deployment/victims", f"--replicas={len(left)}")
        kept = {p["metadata"]["name"] for p in pods.scaled("victims", len(left))}
        assert kept == {names[index] for index in left}


def test_eviction_keeps_the_disruption_budget(pods: Namespace) -> None:
    budget = {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": "kept"},
        "spec": {"minAvailable": 2, "selector": {"matchLabels": {"app": "kept"}}},
    }
    pods.apply(budget, deployment("kept", shell("sleep 300"), replicas=3))
    names = [p["metadata"]["name"] for p in pods.scaled("kept", 3)]
    until(lambda: pods.get(DISRUPTION_BUDGET, "kept")["status"].get("disruptionsAllowed") == 1, "the budget")
    pods.kubectl("scale", "deployment/kept", "--replicas=2")  # so that no replacement raises the budget again
    gone = ({*names} - {p["metadata"]["name"] for p in pods.scaled("kept", 2)}).pop()
    until(lambda: pods.get(DISRUPTION_BUDGET, "kept")["status"].get("disruptionsAllowed") == 0, "the budget")
    left = next(name for name in names if name != gone)
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": left}}
    path = f"/api/v1/namespaces/{pods.name}/pods/{left}/eviction"
    refused = pods.cluster.kubectl("create", "--raw", path, "-f", "-", input=json.dumps(eviction), check=False)
    assert "disruption budget" in refused.stderr
    assert is_ready(pods.get(POD, left))


def test_a_rolling_update_never_falls_below_its_limit(pods: Namespace) -> None:
    pods.apply(deployment("rolled", server(), replicas=3))
    pods.scaled("rolled", 3)
    pods.kubectl("set", "env", "deployment/rolled", "ROUND=2")
    pods.kubectl("rollout", "status", "deployment/rolled", "--timeout=30s")
    (name, *_) = (p["metadata"]["name"] for p in pods.scaled("rolled", 3))
    assert pods.exec(name, "printenv", "ROUND") == "2\n"


@pytest.mark.slow
def test_pods_of_a_lost_node_are_replaced_and_serve_until_it_is_back(local_cluster: Cluster, pods: Namespace) -> None:
    pods.apply(deployment("cut", server(), replicas=1))
    (lost,) = pods.scaled("cut", 1)
    name, address, node = lost["metadata"]["name"], lost["status"]["podIP"], lost["spec"]["nodeName"]
    cut_off = local_cluster.root / "kubelet" / "partitioned" / node
    cut_off.touch()
    try:
        until(lambda: len(pods.pods("cut")) == 2, "a replacement", seconds=60)
        assert "deletionTimestamp" in pods.get(POD, name)["metadata"]
        local_cluster.run(["curl", "-sf", f"http://{address}:8000/"], check=True)
    finally:
        cut_off.unlink()
    (new,) = pods.scaled("cut", 1)
    assert new["metadata"]["name"] != name
    local_cluster.kubectl("wait", "--for=condition=Ready", "--timeout=30s", f"node/{node}")


def test_a_killed_kubelet_takes_its_processes_along_and_its_pods_come_back(
    local_cluster: Cluster, pods: Namespace
) -> None:
    pods.apply(deployment("back", server(), replicas=2), pod("daemon", shell("setsid --fork sleep 98767; sleep 300")))
    before = {p["metadata"]["name"]: p["status"]["podIP"] for p in pods.scaled("back", 2)}
    first = until(lambda: processes(local_cluster, "sleep 98767") or None, "the daemon")
    local_cluster.signal("kubelet", signal.SIGKILL)

    def restarted() -> bool:
        return all(p["status"]["containerStatuses"][0]["restartCount"] == 1 for p in pods.pods("back"))

    until(restarted, "a restart of each")
    after = {p["metadata"]["name"]: p["status"]["podIP"] for p in pods.scaled("back", 2)}
    assert after == before
    for address in after.values():
        local_cluster.run(["curl", "-sf", f"http://{address}:8000/"], check=True)
    second = until(lambda: processes(local_cluster, "sleep 98767") or None, "the new daemon")
    assert not first & second


def test_pods_services_and_objects_outlast_a_restart_of_the_api_server(local_cluster: Cluster, pods: Namespace) -> None:
    pods.apply(deployment("steady", server(), replicas=2), service("steady"))
    before = {p["metadata"]["name"] for p in pods.scaled("steady", 2)}
    url = f"http://{pods.get(SERVICE, 'steady')['spec']['clusterIP']}/"
    until(lambda: local_cluster.run(["curl", "-sf", url], capture_output=True).returncode == 0, "the Service")
    restarts = local_cluster.status()["components"]["kube-apiserver"]["restarts"]
    local_cluster.signal("kube-apiserver", signal.SIGKILL)
    while pods.cluster.kubectl("get", "--raw", "/readyz", check=False).returncode:
        local_cluster.run(["curl", "-sf", url], check=True, capture_output=True)
    state = local_cluster.status()["components"]["kube-apiserver"]
    assert (state["restarts"], state["running"]) == (restarts + 1, True)
    pods.kubectl("scale", "deployment/steady", "--replicas=3")
    after = pods.scaled("steady", 3)
    assert before <= {p["metadata"]["name"] for p in after}
    assert all(p["status"]["containerStatuses"][0]["restartCount"] == 0 for p in after)


def test_logs_are_cut_followed_and_refused_where_there_are_none(pods: Namespace) -> None:
    talk = "for n in 1 2 3; do echo line $n; done; until test -e go; do sleep 0.1; done; echo last"
    pods.apply(pod("talking", shell(talk), restartPolicy="Never"))
    until(lambda: "line 3" in pods.kubectl("logs", "talking"), "three lines")
    assert pods.kubectl("logs", "talking", "--tail=2") == "line 2\nline 3\n"
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        followed = pool.submit(pods.kubectl, "logs", "talking", "-f")
        pods.exec("talking", "touch", "go")
        assert followed.result() == "line 1\nline 2\nline 3\nlast\n"
    assert "previous terminated container" in pods.refused("logs", "talking", "-p")


def test_exec_carries_streams_and_exit_code(pods: Namespace) -> None:
    pods.apply(pod("entered", shell("sleep 300")))
    pods.ready("entered")
    assert pods.exec("entered", "hostname") == "entered\n"
    assert "exit code 9" in pods.refused("exec", "entered", "--", "sh", "-c", "exit 9")
    echoed = pods.kubectl("exec", "-i", "entered", "--", "cat", input="word\n" * 20000)
    assert echoed == "word\n" * 20000
    failed = pods.cluster.kubectl("-n", pods.name, "exec", "entered", "--", "sh", "-c", "echo oops >&2")
    assert (failed.stdout, failed.stderr) == ("", "oops\n")


def test_pods_run_at_ordinary_priority_whatever_the_kubelets(pods: Namespace) -> None:
    pods.apply(pod("plain", shell("nice; sleep 300")))
    pods.ready("plain")
    assert pods.exec("plain", "nice") == "0\n"
    assert until(lambda: pods.kubectl("logs", "plain") or None, "the log") == "0\n"


def test_port_forward_carries_connections_and_refusals(pods: Namespace) -> None:
    pods.apply(pod("ported", server()))
    pods.ready("ported")
    kubectl = str(build.binary_path(build.KUBECTL))
    to = ["-n", pods.name, "port-forward", "pod/ported", ":8000", ":8001"]
    command = [kubectl, f"--kubeconfig={pods.cluster.kubeconfig}", *to]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as forwarder:
        assert forwarder.stdout is not None
        try:
            announced = [line for line in (forwarder.stdout.readline() for _ in range(4)) if "127.0.0.1" in line]
            good, bad = (int(line.split("->")[0].rpartition(":")[2]) for line in announced)
            with concurrent.futures.ThreadPoolExecutor(8) as pool:
                urls = [f"http://127.0.0.1:{good}/?seconds=0.2"] * 16
                answers = list(pool.map(lambda url: urllib.request.urlopen(url, timeout=20).read(), urls))
            assert answers == [b"ported"] * 16
            with pytest.raises(OSError, match=r"."):
                urllib.request.urlopen(f"http://127.0.0.1:{bad}/", timeout=20)
        finally:
            forwarder.terminate()
        assert ":8001: " in forwarder.stdout.read()


def test_a_server_that_says_close_ends_as_soon_as_it_is_idle(pods: Namespace) -> None:
    """A keep-alive client must not hold a drained server until SIGKILL."""
    pods.apply(pod("polite", server(), terminationGracePeriodSeconds=60))
    pods.ready("polite")
    port = pods.cluster.forward(f"pod/{pods.name}/polite:8000")
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", "/?seconds=2")
    pods.kubectl("delete", "pod", "polite", "--wait=false")
    assert connection.getresponse().read() == b"polite"
    pods.wait("delete", "pod/polite")
