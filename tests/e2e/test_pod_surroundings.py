"""What a pod's programs find around them: variables, files, their service account, their names."""

import contextlib
import ipaddress
import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.pods import POD_IP, JsonObject, Namespace, container, deployment, pod, server, service, shell, until

from duet_dev.cluster import Cluster
from duet_dev.config import ClusterConfig

pytestmark = pytest.mark.cluster

IN_CLUSTER = """
import json
from kubernetes import client, config
config.load_incluster_config()
namespace = open("/var/run/secrets/kubernetes.io/serviceaccount/namespace").read()
core, answers = client.CoreV1Api(), {}
for kind in ("pod", "secret"):
    try:
        getattr(core, f"list_namespaced_{kind}")(namespace)
        answers[kind] = 200
    except client.ApiException as error:
        answers[kind] = error.status
print(json.dumps(answers), flush=True)
"""


def config_map(name: str, **data: str) -> JsonObject:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def secret(name: str, **data: str) -> JsonObject:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data}


def reader_role(account: str) -> list[JsonObject]:
    """A service account that may list pods and nothing else."""
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": account}
    rule = {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}
    named = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": account}}
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": account}},
        {**named, "kind": "Role", "rules": [rule]},
        {**named, "kind": "RoleBinding", "roleRef": role, "subjects": [{"kind": "ServiceAccount", "name": account}]},
    ]


def test_unmodified_in_cluster_configuration_has_the_accounts_own_rights(pods: Namespace) -> None:
    pods.apply(*reader_role("reader"))
    client = {"name": "main", "image": "python", "args": ["-c", IN_CLUSTER]}
    pods.apply(pod("client", client, serviceAccountName="reader", restartPolicy="Never"))
    pods.wait("jsonpath={.status.phase}=Succeeded", "pod/client", seconds=60)
    assert json.loads(pods.kubectl("logs", "client")) == {"pod": 200, "secret": 403}


def test_variables_come_from_everywhere_and_refer_to_each_other(pods: Namespace) -> None:
    pods.apply(config_map("settings", COLOUR="green", LEVEL="3"), secret("keys", token="s3cret"))
    env: list[JsonObject] = [
        {"name": "PLAIN", "value": "plain"},
        {"name": "COMBINED", "value": "$(PLAIN)-$(C_COLOUR)-$$(PLAIN)-$(UNKNOWN)"},
        {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        {"name": "LABEL", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['tier']"}}},
        {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "token"}}},
        {"name": "ABSENT", "valueFrom": {"configMapKeyRef": {"name": "nobody", "key": "x", "optional": True}}},
        {"name": "CORES", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
        {"name": "MEBIBYTES", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
    ]
    main = container(
        "sh",
        "-c",
        "env; echo ARGUMENT=$0; sleep 300",
        "$(NODE)",
        env=env,
        envFrom=[{"prefix": "C_", "configMapRef": {"name": "settings"}}],
        resources={"limits": {"cpu": "1500m", "memory": "2Gi"}},
    )
    pods.apply(pod("variables", main, labels={"tier": "front"}))
    node = pods.ready("variables")["spec"]["nodeName"]
    log = until(lambda: "ARGUMENT" in (text := pods.kubectl("logs", "variables")) and text, "the log")
    found = dict(line.split("=", 1) for line in log.splitlines() if "=" in line)
    expected = {
        "COMBINED": "plain-green-$(PLAIN)-$(UNKNOWN)",
        "NODE": node,
        "LABEL": "front",
        "TOKEN": "s3cret",
        "CORES": "2",
        "MEBIBYTES": "2048",
        "C_LEVEL": "3",
        "HOSTNAME": "variables",
        "ARGUMENT": node,
    }
    assert {name: found.get(name) for name in expected} == expected
    assert "ABSENT" not in found


def test_a_container_waits_for_its_config_map_and_says_so(pods: Namespace) -> None:
    pods.apply(pod("waiting", shell("sleep 300", envFrom=[{"configMapRef": {"name": "late"}}])))

    def why() -> JsonObject:
        waiting: JsonObject = pods.status_of("waiting")["state"].get("waiting", {})
        return waiting

    until(lambda: why().get("reason") == "CreateContainerConfigError", "the reason")
    assert why()["message"] == 'configmap "late" not found'
    pods.apply(config_map("late", KEY="value"))
    pods.ready("waiting")
    assert pods.exec("waiting", "printenv", "KEY") == "value\n"


def test_files_appear_where_no_folder_was_and_nothing_else_changes(pods: Namespace) -> None:
    """A mount point in a folder of the system, one in a new folder of the root, one inside another volume."""
    pods.apply(config_map("files", **{"a.txt": "A", "b.txt": "B"}), secret("keys", key="K"))
    mounts = [
        {"name": "chosen", "mountPath": "/etc/duet-test/chosen"},
        {"name": "keys", "mountPath": "/duet-models/inner/keys", "readOnly": True},
        {"name": "scratch", "mountPath": "/duet-models"},
        {"name": "whole", "mountPath": "/etc/duet-test/only-b.txt", "subPath": "b.txt"},
        {"name": "about", "mountPath": "/about"},
    ]
    labels = {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}
    volumes = [
        {"name": "chosen", "configMap": {"name": "files", "items": [{"key": "a.txt", "path": "deep/a"}]}},
        {"name": "whole", "configMap": {"name": "files"}},
        {"name": "keys", "secret": {"secretName": "keys", "defaultMode": 0o400}},
        {"name": "scratch", "emptyDir": {}},
        {"name": "about", "downwardAPI": {"items": [labels]}},
    ]
    main = shell("sleep 300", volumeMounts=mounts)
    pods.apply(pod("files", main, labels={"tier": "front"}, volumes=volumes))
    pods.ready("files")

    def read(path: str) -> str:
        return pods.exec("files", "cat", path)

    assert read("/etc/duet-test/chosen/deep/a") == "A"
    assert read("/etc/duet-test/only-b.txt") == "B"
    assert read("/duet-models/inner/keys/key") == "K"
    assert read("/about/labels") == 'tier="front"'
    pods.kubectl("label", "pod", "files", "tier=back", "--overwrite")
    until(lambda: read("/about/labels") == 'tier="back"', "the new label")
    assert "400" in pods.exec("files", "stat", "-Lc", "%a", "/duet-models/inner/keys/key")
    assert "Read-only" in pods.refused("exec", "files", "--", "touch", "/duet-models/inner/keys/new")
    pods.exec("files", "sh", "-c", "touch /duet-models/written && test -e /etc/passwd && test -d /proc/1")
    outside = pods.cluster.run(["ls", "/etc/duet-test", "/duet-models"], capture_output=True)
    assert "cannot access '/etc/duet-test'" in outside.stderr
    assert "cannot access '/duet-models'" in outside.stderr


def test_changed_config_maps_reach_running_pods(pods: Namespace) -> None:
    pods.apply(config_map("live", value="before", old="x"))
    main = shell("sleep 300", volumeMounts=[{"name": "live", "mountPath": "/etc/live"}])
    pods.apply(pod("live", main, volumes=[{"name": "live", "configMap": {"name": "live"}}]))
    pods.ready("live")
    assert pods.exec("live", "cat", "/etc/live/value") == "before"
    pods.kubectl("patch", "configmap", "live", "-p", json.dumps({"data": {"value": "after", "old": None}}))
    until(lambda: pods.exec("live", "cat", "/etc/live/value") == "after", "the new content", seconds=15)
    assert pods.exec("live", "ls", "/etc/live") == "value\n"


def test_a_projected_token_has_its_audience_and_is_bound_to_the_pod(pods: Namespace) -> None:
    source = {"serviceAccountToken": {"path": "token", "audience": "duet-engine", "expirationSeconds": 600}}
    main = shell("sleep 300", volumeMounts=[{"name": "token", "mountPath": "/var/run/duet"}])
    pods.apply(pod("bearer", main, volumes=[{"name": "token", "projected": {"sources": [source]}}]))
    uid = pods.ready("bearer")["metadata"]["uid"]
    token = pods.exec("bearer", "cat", "/var/run/duet/token")
    review = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenReview",
        "spec": {"token": token, "audiences": ["duet-engine"]},
    }
    answer = pods.cluster.kubectl("create", "-o", "json", "-f", "-", input=json.dumps(review))
    status = json.loads(answer.stdout)["status"]
    assert status["authenticated"]
    assert status["user"]["extra"]["authentication.kubernetes.io/pod-uid"] == [uid]
    assert status["user"]["username"] == f"system:serviceaccount:{pods.name}:default"


def test_a_claim_gets_a_folder_that_outlives_its_pods(pods: Namespace) -> None:
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "models"}, "spec": spec}
    volume = {"name": "models", "persistentVolumeClaim": {"claimName": "models"}}
    mounted = {"volumeMounts": [{"name": "models", "mountPath": "/models"}]}

    def run(name: str, script: str) -> str:
        pods.apply(pod(name, shell(script, **mounted), volumes=[volume], restartPolicy="Never"))
        pods.wait("jsonpath={.status.phase}=Succeeded", f"pod/{name}")
        return pods.kubectl("logs", name)

    pods.apply(claim)
    run("writer", "echo weights > /models/file")
    pods.kubectl("delete", "pod", "writer")
    assert run("reader", "cat /models/file") == "weights\n"
    pods.kubectl("delete", "pod/reader", "pvc/models")
    pods.apply(claim)
    assert run("newcomer", "ls /models") == ""


def test_the_own_image_command_can_be_replaced_or_extended(pods: Namespace) -> None:
    image = {"image": "python"}
    pods.apply(
        pod("extended", {"name": "main", **image, "args": ["-c", "print('args')"]}, restartPolicy="Never"),
        pod("replaced", {"name": "main", **image, "command": ["echo"], "args": ["both"]}, restartPolicy="Never"),
        pod("placed", shell("pwd", workingDir="/usr"), restartPolicy="Never"),
    )
    for name, output in (("extended", "args\n"), ("replaced", "both\n"), ("placed", "/usr\n")):
        pods.wait("jsonpath={.status.phase}=Succeeded", f"pod/{name}")
        assert pods.kubectl("logs", name) == output


@pytest.fixture(scope="module")
def bare(local_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Namespace]:
    """The mode without namespaces. `local_cluster` is asked for because it skips where nothing is built."""
    config = ClusterConfig("loopback", isolation="loopback")
    with Cluster(config, tmp_path_factory.mktemp("loopback")) as cluster:
        cluster.kubectl("create", "namespace", "bare")
        with Namespace(cluster, "bare") as pods:
            yield pods


def test_without_namespaces_pods_and_services_live_on_loopback_addresses(bare: Namespace) -> None:
    serve = ["-m", "http.server", "--directory=/etc", "--bind=$(POD_IP)", "8000"]
    files = {"name": "main", "image": "python", "args": serve, "env": [POD_IP]}
    ports = [{"name": "files", "port": 8080, "targetPort": 8000}]
    bare.apply(pod("files", files, labels={"app": "files"}), service("files", ports=ports))
    assert ipaddress.ip_address(bare.ready("files")["status"]["podIP"]).is_loopback
    port = bare.cluster.forward(f"service/{bare.name}/files:8080")
    url = f"http://127.0.0.1:{port}/os-release"

    def answer() -> bytes | None:
        with contextlib.suppress(OSError):
            return bytes(urllib.request.urlopen(url, timeout=5).read())
        return None

    assert until(answer, "the Service") == Path("/etc/os-release").read_bytes()


def test_without_namespaces_services_route_and_accounts_come_as_a_kubeconfig(bare: Namespace) -> None:
    port = {"env": [{"name": "PORT", "value": "18000"}], "ports": [{"name": "http", "containerPort": 18000}]}
    ports = [{"name": "web", "port": 18080, "targetPort": "http"}]
    bare.apply(*reader_role("reader"), deployment("web", server(**port), replicas=2), service("web", ports=ports))
    bare.scaled("web", 2)
    script = "until curl -sf http://$WEB_SERVICE_HOST:$WEB_SERVICE_PORT/; do sleep 0.2; done; kubectl get pods -o name"
    path = bare.cluster.environment(inside=True)["PATH"]
    env = [{"name": "PATH", "value": path}]
    bare.apply(pod("caller", shell(script, env=env), serviceAccountName="reader", restartPolicy="Never"))
    bare.wait("jsonpath={.status.phase}=Succeeded", "pod/caller", seconds=60)
    log = bare.kubectl("logs", "caller")
    assert log.startswith("web-")
    assert "pod/caller" in log
