"""The operator's manifests on the real API server."""

import json
from typing import Any

import pytest
import yaml
from tests.support.manifests import FULL, deployment, everything

from duet_dev.cluster import Cluster
from duet_dev.errors import DevError
from duet_dev.paths import REPOSITORY
from duet_engine.protocol import Role
from duet_operator.api.v1alpha1 import DuetDeployment
from duet_operator.resources.gateway import gateway_deployment
from duet_operator.resources.images import resolve
from duet_operator.resources.pools import pool_creation, pool_deployment
from duet_operator.resources.strategic_merge import MERGE_KEYS

pytestmark = pytest.mark.apiserver

MANAGER = ("--field-manager", "duet-operator")
LONG = deployment(name="a" + "b" * 47)
SOURCES = {
    "claim": deployment({"spec.model.source.persistentVolumeClaim": {"claimName": "weights", "path": "qwen3"}}),
    "image": deployment({"spec.model.source.image": {"reference": "registry.example/qwen3:1"}}),
}


def apply(cluster: Cluster, manifest: dict[str, Any], namespace: str, *options: str) -> dict[str, Any]:
    """Server-side apply, as the operator does it."""
    placed = {**manifest, "metadata": {**manifest["metadata"], "namespace": namespace}}
    done = cluster.kubectl(
        "apply", "--server-side", "--force-conflicts", "--validate=strict", *MANAGER, *options,
        "-n", namespace, "-f", "-", "-o", "json", input=json.dumps(placed),
    )  # fmt: skip
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def create(cluster: Cluster, manifest: dict[str, Any], namespace: str, *options: str) -> dict[str, Any]:
    placed = {**manifest, "metadata": {**manifest["metadata"], "namespace": namespace}}
    done = cluster.kubectl(
        "create", "--validate=strict", *MANAGER, *options, "-n", namespace, "-f", "-", "-o", "json",
        input=json.dumps(placed),
    )  # fmt: skip
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize(
    "duet", [deployment(), FULL, LONG, *SOURCES.values()], ids=["smallest", "full", "longest name", *SOURCES]
)
def test_every_manifest_is_valid(apiserver: Cluster, namespace: str, duet: DuetDeployment) -> None:
    for manifest in everything(duet).values():
        stored = apply(apiserver, manifest, namespace, "--dry-run=server")
        assert stored["metadata"]["name"] == manifest["metadata"]["name"]


@pytest.mark.parametrize("duet", [FULL, *SOURCES.values()], ids=["full", *SOURCES])
def test_applying_again_changes_nothing(apiserver: Cluster, namespace: str, duet: DuetDeployment) -> None:
    for manifest in everything(duet).values():
        first = apply(apiserver, manifest, namespace)
        second = apply(apiserver, manifest, namespace)
        assert second["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]


def test_applying_a_pool_leaves_its_count_alone(apiserver: Cluster, namespace: str) -> None:
    duet = deployment()
    images = resolve(duet)
    name = create(apiserver, pool_creation(duet, Role.DECODE, images, replicas=3), namespace)["metadata"]["name"]
    apiserver.kubectl("scale", f"deployment/{name}", "--replicas=7", "-n", namespace)
    changed = deployment({"spec.engine.args": ["--other"]})
    assert apply(apiserver, pool_deployment(changed, Role.DECODE, images), namespace)["spec"]["replicas"] == 7


# --- pod security ---


def pod_of(manifest: dict[str, Any]) -> dict[str, Any]:
    template = manifest["spec"]["template"]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "probe", **template["metadata"]},
        "spec": template["spec"],
    }


def enforce(cluster: Cluster, namespace: str, level: str, account: str) -> None:
    cluster.kubectl("label", "namespace", namespace, f"pod-security.kubernetes.io/enforce={level}")
    cluster.kubectl("create", "serviceaccount", account, "-n", namespace)


def test_gateway_pods_meet_the_restricted_standard(apiserver: Cluster, namespace: str) -> None:
    duet = deployment()
    pod = pod_of(gateway_deployment(duet, resolve(duet)))
    enforce(apiserver, namespace, "restricted", pod["spec"]["serviceAccountName"])
    create(apiserver, pod, namespace, "--dry-run=server")


@pytest.mark.parametrize("role", [Role.PREFILL, Role.DECODE])
@pytest.mark.parametrize("duet", [deployment(), FULL, *SOURCES.values()], ids=["smallest", "full", *SOURCES])
def test_engine_pods_meet_the_baseline_standard(
    apiserver: Cluster, namespace: str, duet: DuetDeployment, role: Role
) -> None:
    enforce(apiserver, namespace, "baseline", "default")
    create(apiserver, pod_of(pool_deployment(duet, role, resolve(duet))), namespace, "--dry-run=server")


@pytest.mark.parametrize("role", [Role.PREFILL, Role.DECODE])
def test_engine_pods_are_the_documented_exception_from_restricted(
    apiserver: Cluster, namespace: str, role: Role
) -> None:
    enforce(apiserver, namespace, "restricted", "default")
    duet = deployment()
    with pytest.raises(DevError) as refused:
        create(apiserver, pod_of(pool_deployment(duet, role, resolve(duet))), namespace, "--dry-run=server")
    reasons = ("runAsNonRoot != true", "unrestricted capabilities")
    assert [reason for reason in reasons if reason in str(refused.value)] == list(reasons)
    documented = yaml.safe_load(
        (REPOSITORY / "docs/security.md").read_text().split("```yaml\nengine:")[1].split("```")[0]
    )
    patched = deployment({"spec.engine.template": documented["template"]})
    create(apiserver, pod_of(pool_deployment(patched, role, resolve(patched))), namespace, "--dry-run=server")


# --- strategic merge, against the API server's own ---


def container(**changes: Any) -> dict[str, Any]:
    return {"spec": {"containers": [{"name": "engine", **changes}]}}


PATCHES = {
    "metadata": {"metadata": {"annotations": {"a": "b"}, "labels": {"tier": "x"}}},
    "variables": container(env=[{"name": "DUET_ROLE", "value": "x"}, {"name": "NEW", "value": "1"}]),
    "variable deleted": container(env=[{"name": "DUET_ROLE", "$patch": "delete"}]),
    "variables replaced": container(env=[{"$patch": "replace"}, {"name": "ONLY", "value": "1"}]),
    "variable of another kind": container(
        env=[{"name": "DUET_ROLE", "value": None, "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]
    ),
    "ports": container(ports=[{"containerPort": 30000, "name": "web"}, {"containerPort": 9, "name": "discard"}]),
    "mounts": container(volumeMounts=[{"name": "shared-memory", "mountPath": "/other"}]),
    "resources": container(resources={"limits": {"cpu": "4"}, "requests": {"memory": "1Gi"}}),
    "arguments": container(args=["--only"], command=["run"]),
    "field removed": container(livenessProbe=None, lifecycle={"preStop": None}),
    "probe of another kind": container(
        readinessProbe={"$patch": "replace", "exec": {"command": ["check"]}}, startupProbe={"periodSeconds": 7}
    ),
    "volumes": {
        "spec": {
            "volumes": [
                {"name": "shared-memory", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/dev/shm"}},
                {"name": "cache", "emptyDir": {}},
            ]
        }
    },
    "second container": {"spec": {"containers": [{"name": "side", "image": "side", "env": [{"name": "A"}]}]}},
    "init containers": {"spec": {"initContainers": [{"name": "fetch", "image": "x"}]}},
    "scheduling": {
        "spec": {
            "nodeSelector": {"gpu": "h100"},
            "tolerations": [{"key": "gpu", "operator": "Exists"}],
            "topologySpreadConstraints": [
                {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"},
            ],
            "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "a", "operator": "Exists"}]}
            ]}}},
            "hostAliases": [{"ip": "10.0.0.1", "hostnames": ["a"]}],
            "imagePullSecrets": [{"name": "pull"}],
            "readinessGates": [{"conditionType": "example.com/ready"}],
            "securityContext": {"supplementalGroups": [1, 2], "sysctls": [{"name": "a", "value": "1"}]},
            "priorityClassName": None,
        }
    },
}  # fmt: skip


def unordered(value: Any, field: str = "") -> Any:
    """The same with merged lists in one order: kubectl puts new items first, which would make a sidecar the default
    container; Duet puts them last."""
    if isinstance(value, dict):
        return {key: unordered(part, key) for key, part in value.items()}
    if isinstance(value, list):
        parts = [unordered(part) for part in value]
        return sorted(parts, key=lambda part: str(part[MERGE_KEYS[field]])) if field in MERGE_KEYS else parts
    return value


@pytest.mark.parametrize("patch", PATCHES.values(), ids=PATCHES.keys())
def test_templates_merge_as_the_api_server_merges_them(apiserver: Cluster, namespace: str, patch: Any) -> None:
    plain, patched = deployment(), deployment({"spec.pools.decode.template": patch})
    images = resolve(plain)
    stored = create(apiserver, pool_deployment(plain, Role.DECODE, images), namespace)
    theirs = apiserver.kubectl(
        "patch", "deployment", stored["metadata"]["name"], "-n", namespace, "--type=strategic", "--dry-run=server",
        "-o", "json", "-p", json.dumps({"spec": {"template": patch}}),
    )  # fmt: skip
    renamed = pool_deployment(patched, Role.DECODE, images)
    renamed["metadata"]["name"] += "-ours"
    ours = create(apiserver, renamed, namespace, "--dry-run=server")
    assert unordered(ours["spec"]["template"]) == unordered(json.loads(theirs.stdout)["spec"]["template"])
