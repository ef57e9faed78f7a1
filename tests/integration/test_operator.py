"""The operator's process on the real API server with its controllers, by the chart's rights; nothing runs pods here."""

import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.duet_objects import minimal, patched
from tests.support.operator_process import NAMESPACE, OperatorProcess, install, running_operator, until
from tests.support.relay import relayed

from duet_dev import build
from duet_dev.cluster import Cluster

pytestmark = [pytest.mark.apiserver, pytest.mark.timeout(180)]

CHILDREN = {
    "ConfigMap/served-duet-live",
    "ConfigMap/served-duet-trust",
    "Deployment/served-decode",
    "Deployment/served-gateway",
    "Deployment/served-prefill",
    "NetworkPolicy/served-engines",
    "NetworkPolicy/served-gateway",
    "PodDisruptionBudget/served-decode",
    "PodDisruptionBudget/served-gateway",
    "PodDisruptionBudget/served-prefill",
    "RoleBinding/served-gateway",
    "Service/served",
    "ServiceAccount/served-gateway",
}
CHILD_KINDS = "configmaps,deployments,networkpolicies,poddisruptionbudgets,rolebindings,services,serviceaccounts"
OURS = "--selector=app.kubernetes.io/managed-by=duet-operator"
PASSES_DONE = 'duet_operator_passes_total{result="done"}'
QUIET_OBJECTS = 50
FOREIGN_PODS = 200
QUIET_SECONDS = 10.0
LARGEST_MIB = 150


@pytest.fixture(scope="session")
def kubeconfig(control_plane: Cluster) -> Path:
    """Of the operator's account."""
    if build.missing([build.HELM]):
        pytest.skip("helm not built: run `make binaries`")
    return install(control_plane)


@pytest.fixture
def operator(kubeconfig: Path, tmp_path: Path) -> Iterator[OperatorProcess]:
    """A fresh operator for this test; it must never have been refused anything."""
    with running_operator(kubeconfig, tmp_path / "operator.log") as process:
        process.wait_until_acting()
        yield process
        assert process.process.poll() is None, process.log
    assert "is forbidden: User" not in process.log, process.log
    assert "Traceback" not in process.log, process.log


class Served:
    """A DuetDeployment in its namespace."""

    def __init__(self, cluster: Cluster, namespace: str, name: str = "served") -> None:
        self.cluster = cluster
        self.namespace = namespace
        self.name = name

    def kubectl(self, *arguments: str, **options: Any) -> str:
        return self.cluster.kubectl(*arguments, f"--namespace={self.namespace}", **options).stdout

    def apply(self, spec: dict[str, Any] | None = None) -> None:
        patch = {f"spec.{path}": value for path, value in (spec or {}).items()}
        document = patched(minimal(name=self.name), {"metadata.namespace": self.namespace, **patch})
        self.kubectl("apply", "-f", "-", input=json.dumps(document))

    def get(self, kind: str, name: str) -> dict[str, Any]:
        return dict(json.loads(self.kubectl("get", kind, name, "--output=json")))

    def children(self, *options: str) -> dict[str, dict[str, Any]]:
        found = json.loads(self.kubectl("get", CHILD_KINDS, OURS, "--output=json", *options))["items"]
        return {f"{child['kind']}/{child['metadata']['name']}": child for child in found}

    def versions(self) -> dict[str, str]:
        """Resource versions of the object and its children but Deployments, whose controller writes them too."""
        everything = {**self.children(), "object": self.get("duet", self.name)}
        return {
            name: each["metadata"]["resourceVersion"]
            for name, each in everything.items()
            if each["kind"] != "Deployment"
        }

    def conditions(self) -> dict[str, dict[str, Any]]:
        status = self.get("duet", self.name).get("status", {})
        return {condition["type"]: condition for condition in status.get("conditions", ())}

    def replicas(self, pool: str) -> int:
        return int(self.get("deployment", f"{self.name}-{pool}")["spec"]["replicas"])

    def made(self) -> None:
        """All children exist, and the status tells of pods."""
        until("all children are there", lambda: self.children().keys() >= CHILDREN)
        until("the status tells of pods", lambda: self.get("duet", self.name)["status"]["decode"]["starting"] == 1)


@pytest.fixture
def served(control_plane: Cluster, namespace: str) -> Served:
    return Served(control_plane, namespace)


def test_an_object_gets_its_children_and_takes_them_along(operator: OperatorProcess, served: Served) -> None:
    served.apply()
    served.made()
    uid = served.get("duet", "served")["metadata"]["uid"]
    for name, child in served.children().items():
        assert [reference["uid"] for reference in child["metadata"]["ownerReferences"]] == [uid], name
    assert "finalizers" not in served.get("duet", "served")["metadata"]
    conditions = served.conditions()
    assert {name: conditions[name]["status"] for name in ("Accepted", "Ready", "SignalsFresh")} == {
        "Accepted": "True",
        "Ready": "False",
        "SignalsFresh": "False",
    }
    served.kubectl("delete", "duet", "served")
    until("all children are gone", lambda: not served.children())
    until("its pods are gone", lambda: not json.loads(served.kubectl("get", "pods", "--output=json"))["items"])


def test_no_apply_resets_a_count(operator: OperatorProcess, served: Served) -> None:
    served.apply({"scaling.mode": "Recommend"})
    served.made()
    served.kubectl("scale", "deployment/served-decode", "--replicas=3")
    served.apply({"scaling.mode": "Recommend", "engine.args": ["--log-level", "info"]})

    def args() -> Any:
        return served.get("deployment", "served-decode")["spec"]["template"]["spec"]["containers"][0].get("args")

    until("the new template is applied", lambda: args() == ["--log-level", "info"])
    assert served.replicas("decode") == 3
    served.apply({"scaling.mode": "Recommend"})
    until("the removed field is gone", lambda: args() is None)
    assert served.replicas("decode") == 3


def test_changes_of_mode_change_no_count(operator: OperatorProcess, served: Served) -> None:
    served.apply({"scaling.mode": "Recommend"})
    served.made()
    served.kubectl("scale", "deployment/served-decode", "--replicas=2")
    for mode in ("Auto", "Recommend", "Manual", "Auto", "Recommend"):
        served.apply({"scaling.mode": mode})
        generation = served.get("duet", "served")["metadata"]["generation"]
        until(
            f"{mode} is in force",
            lambda wanted=generation: served.get("duet", "served")["status"]["observedGeneration"] == wanted,
        )
        assert served.replicas("decode") == 2, mode


def test_an_autoscaler_of_somebody_else_owns_the_count_in_recommend_and_is_told_of_in_auto(
    operator: OperatorProcess, served: Served
) -> None:
    served.apply({"scaling.mode": "Recommend"})
    served.made()
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "served-decode"}
    autoscaler = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "theirs"},
        "spec": {"scaleTargetRef": target, "minReplicas": 3, "maxReplicas": 4},
    }
    served.kubectl("apply", "-f", "-", input=json.dumps(autoscaler))
    until("it has raised the count to its minimum", lambda: served.replicas("decode") == 3)
    # Nothing that rolls pods, for none gets ready here, and no pool shrinks during a roll-out.
    served.apply({"scaling.mode": "Recommend", "slo.itlMilliseconds": 60})
    generation = served.get("duet", "served")["metadata"]["generation"]
    until("it's applied", lambda: served.get("duet", "served")["status"]["observedGeneration"] == generation)
    assert served.replicas("decode") == 3
    served.kubectl("delete", "hpa", "theirs")

    served.apply({"scaling.mode": "Manual", "pools.decode.replicas": 2})
    until("the spec's count is there", lambda: served.replicas("decode") == 2)
    served.kubectl("scale", "deployment/served-decode", "--replicas=4")
    until("it's set back", lambda: served.replicas("decode") == 2)
    events = json.loads(served.kubectl("get", "events.events.k8s.io", "--output=json"))["items"]
    (told,) = [event for event in events if event["reason"] == "ForeignScale"]
    assert "decode 2→4 by somebody else; scaling.mode is Manual, so it becomes 2" in told["note"]


def test_edits_of_our_fields_are_repaired_and_others_kept(operator: OperatorProcess, served: Served) -> None:
    served.apply()
    served.made()
    for patch in (
        {"spec": {"type": "NodePort"}},
        {"metadata": {"labels": {"app.kubernetes.io/managed-by": "someone"}}},
    ):
        served.kubectl("patch", "service", "served", "--type=merge", "--patch", json.dumps(patch))
        until(
            "it is repaired",
            lambda: served.children().get("Service/served", {}).get("spec", {}).get("type") == "ClusterIP",
        )
    served.kubectl("annotate", "service", "served", "note=theirs")
    served.kubectl("delete", "serviceaccount", "served-gateway")
    until("a deleted child is back", lambda: "ServiceAccount/served-gateway" in served.children())
    assert served.get("service", "served")["metadata"]["annotations"]["note"] == "theirs"


def test_an_object_that_cannot_be_acted_on_says_why(operator: OperatorProcess, served: Served) -> None:
    served.apply()
    served.made()
    before = served.children()
    served.apply({"engine.template": {"spec": {"containers": [{"name": "engine", "$patch": "delete"}]}}})
    found = until("it isn't accepted", lambda: (said := served.conditions()["Accepted"])["status"] == "False" and said)
    assert (found["reason"], "spec.engine.template" in found["message"]) == ("InvalidSpec", True)
    assert served.children().keys() == before.keys()
    served.apply()
    until("it is accepted again", lambda: served.conditions()["Accepted"]["status"] == "True")


def written(operator: OperatorProcess) -> float:
    """Writes so far, those of the Lease apart."""
    return sum(value for name, value in operator.writes().items() if 'kind="Lease"' not in name)


def quiet_passes(operator: OperatorProcess) -> bool:
    """Whether it wrote nothing in three passes."""

    def passes() -> float:
        return operator.metrics()[PASSES_DONE]

    before, last = written(operator), passes() + 3
    until("three passes later", lambda: passes() >= last)
    return written(operator) == before


def test_a_new_operator_writes_nothing(kubeconfig: Path, served: Served, tmp_path: Path) -> None:
    with running_operator(kubeconfig, tmp_path / "first.log") as first:
        first.wait_until_acting()
        served.apply()
        served.made()
        until("it has told everything", lambda: quiet_passes(first), seconds=90)
        assert first.end() == 0
    before = served.versions()
    with running_operator(kubeconfig, tmp_path / "second.log") as second:
        second.wait_until_acting()
        until("it has had several passes", lambda: second.metrics()[PASSES_DONE] >= 3)
        assert served.versions() == before
        assert set(second.writes()) <= {
            'duet_operator_writes_total{kind="Lease",verb="create"}',
            'duet_operator_writes_total{kind="Lease",verb="update"}',
        }


def test_another_version_of_the_operator_rolls_nothing_until_it_is_asked_to(
    kubeconfig: Path, served: Served, tmp_path: Path
) -> None:
    """By the hash that the Deployment's controller makes of a pod template, with the status lost on top."""

    def hashes() -> set[str]:
        sets = json.loads(served.kubectl("get", "replicasets", "--output=json"))["items"]
        return {each["metadata"]["labels"]["pod-template-hash"] for each in sets if each["spec"]["replicas"]}

    with running_operator(
        kubeconfig, tmp_path / "first.log", engine_image="engine:1", gateway_image="gateway:1"
    ) as old:
        old.wait_until_acting()
        served.apply()
        served.made()
        assert old.end() == 0
    before = hashes()
    served.kubectl("patch", "duet", served.name, "--subresource=status", "--type=merge", '--patch={"status": null}')
    with running_operator(
        kubeconfig, tmp_path / "second.log", engine_image="engine:2", gateway_image="gateway:2"
    ) as new:
        new.wait_until_acting()
        until("it has told what is in force", lambda: "resolved" in served.get("duet", served.name).get("status", {}))
        until("it has had several passes", lambda: new.metrics()[PASSES_DONE] >= 3)
        assert hashes() == before
        assert served.get("duet", served.name)["status"]["resolved"]["engineImage"] == "engine:1"
        served.kubectl("annotate", "duet", served.name, "duetserve.io/upgrade=now")
        until("pools and gateway get a new template each", lambda: len(hashes() - before) == len(before) == 3)
        assert served.get("duet", served.name)["status"]["resolved"]["engineImage"] == "engine:2"


def test_many_quiet_objects_cost_no_write_and_little_memory(
    operator: OperatorProcess, control_plane: Cluster, namespace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    objects = [
        patched(minimal(name=f"quiet-{number}"), {"metadata.namespace": namespace, "spec.gateway.replicas": 1})
        for number in range(QUIET_OBJECTS)
    ]
    everything = {"apiVersion": "v1", "kind": "List", "items": objects}
    control_plane.kubectl("apply", "-f", "-", input=json.dumps(everything))

    def told() -> bool:
        shown = control_plane.kubectl("get", "duet", f"--namespace={namespace}", "--output=json").stdout
        return all(each.get("status", {}).get("decode", {}).get("starting") == 1 for each in json.loads(shown)["items"])

    until("every object tells of its pods", told, seconds=90)

    def calm() -> bool:
        before = written(operator)
        time.sleep(3)
        return written(operator) == before

    until("writes have ended", calm, seconds=60)
    before, passes = written(operator), operator.metrics()[PASSES_DONE]
    time.sleep(QUIET_SECONDS)
    assert written(operator) == before
    assert operator.metrics()[PASSES_DONE] >= passes + QUIET_OBJECTS
    memory = operator.memory_mib()
    control_plane.kubectl("delete", "duet", "--all", f"--namespace={namespace}")
    with capsys.disabled():
        sys.stdout.write(f"\n{QUIET_OBJECTS} objects: {memory:.0f} MiB resident, 0 writes in {QUIET_SECONDS:g} s\n")
    assert memory < LARGEST_MIB


def test_settings_that_cannot_be_used_end_it_with_their_name(kubeconfig: Path, tmp_path: Path) -> None:
    with running_operator(kubeconfig, tmp_path / "log", lease_seconds="soon") as process:
        assert process.process.wait(30) == 2
        assert "DUET_OPERATOR_LEASE_SECONDS is 'soon': it must be a number" in process.log


LONG_NAME = "a" + "-long" * 12 + "-x"
"""As long as a name may be."""
MODEL_IDS = ("Org.Name/Model_8B-v0.1@main", "/models/Größe:2")


DISCOVERY = re.compile(r"/version|/api(/v1)?|/apis(/[^/?]+){0,2}|/\.well-known/openid-configuration|/openid/v1/jwks")
"""What an API server has to offer, which is nobody's object."""


def test_an_operator_of_two_namespaces_needs_and_sees_no_other(
    control_plane: Cluster, kubeconfig: Path, namespace: str, tmp_path: Path
) -> None:
    """One with rights there only, whose every request is noted."""
    other, outside = f"{namespace}-b", f"{namespace}-else"
    for each in (other, outside):
        control_plane.kubectl("create", "namespace", each)
    control_plane.kubectl("delete", "clusterrolebinding", "duet-operator", "duet-operator-nodes")
    try:
        narrow = install(control_plane, f"--set=watchNamespaces={{{namespace},{other}}}")
        with (
            relayed(narrow, tmp_path, ca=control_plane.ca) as (relay, through),
            running_operator(through, tmp_path / "log", namespaces=f"{namespace},{other}") as process,
        ):
            process.wait_until_acting()
            unseen = Served(control_plane, outside)
            unseen.apply()
            for place, model in zip((namespace, other), MODEL_IDS, strict=True):
                same_name = Served(control_plane, place)
                same_name.apply({"model.id": model})
                same_name.made()
                container = same_name.get("deployment", "served-decode")["spec"]["template"]["spec"]["containers"][0]
                assert {"name": "DUET_MODEL_ID", "value": model} in container["env"]
            assert unseen.children() == {}
            assert "status" not in unseen.get("duet", "served")
        assert "is forbidden: User" not in process.log, process.log
        allowed = tuple(f"/namespaces/{place}/" for place in (namespace, other, NAMESPACE))
        assert relay.writes()
        # The keys of tokens are the whole cluster's, and every service account may read them.
        # That it asks for nodes once and does without them where it may not is the only look outside.
        assert process.log.count("nodes may not be watched: workers aren't moved") == 1
        asked = [each for each in relay.requests if not each.path.startswith("/api/v1/nodes?")]
        assert len(relay.requests) - len(asked) <= 1
        of_objects = [each for each in asked if not DISCOVERY.fullmatch(each.path)]
        assert [each for each in of_objects if not any(place in each.path for place in allowed)] == []
        pods = [each.path for each in relay.requests if "/pods?" in each.path]
        assert pods and all("labelSelector=app.kubernetes.io" in path for path in pods), pods
    finally:
        install(control_plane)
        for each in (other, outside):
            control_plane.kubectl("delete", "namespace", each, "--wait=false")


def test_names_of_any_length_have_all_their_children(
    operator: OperatorProcess, control_plane: Cluster, namespace: str
) -> None:
    assert len(LONG_NAME) == 63
    served = Served(control_plane, namespace, LONG_NAME)
    twin = Served(control_plane, namespace, LONG_NAME[:-1] + "y")
    for each in (served, twin):
        each.apply()
    for each in (served, twin):
        until(
            "its pods are told",
            lambda each=each: each.get("duet", each.name).get("status", {}).get("decode", {}).get("starting") == 1,
        )
    names = [name for name in served.children() if name.startswith("Deployment/")]
    assert len(names) == 6
    owners = {child["metadata"]["ownerReferences"][0]["name"] for child in served.children().values()}
    assert owners == {served.name, twin.name}


def test_foreign_pods_are_neither_delivered_nor_kept(
    control_plane: Cluster, kubeconfig: Path, namespace: str, tmp_path: Path
) -> None:
    served = Served(control_plane, namespace)
    foreign = [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"foreign-{number}", "namespace": namespace},
            "spec": {"containers": [{"name": "c", "image": "x"}]},
        }
        for number in range(FOREIGN_PODS)
    ]
    until("the namespace has its account", lambda: "default" in served.kubectl("get", "serviceaccounts"))
    control_plane.kubectl("apply", "-f", "-", input=json.dumps({"apiVersion": "v1", "kind": "List", "items": foreign}))
    with (
        relayed(kubeconfig, tmp_path, ca=control_plane.ca) as (relay, through),
        running_operator(through, tmp_path / "log", relist_seconds=1) as process,
    ):
        process.wait_until_acting()
        served.apply()
        served.made()

        def cached() -> float:
            return process.metrics()['duet_operator_cached_objects{kind="pods"}']

        until("its own pods are cached", cached)
        everything = control_plane.kubectl("get", "pods", "--all-namespaces", OURS, "--output=name").stdout.split()
        assert cached() <= len(everything) < FOREIGN_PODS
    asked = [each.path for each in relay.requests if "/pods?" in each.path]
    assert any("watch=true" in path for path in asked) and any("limit=500" in path for path in asked)
    assert [path for path in asked if "labelSelector=app.kubernetes.io" not in path] == []


def test_the_lease_lies_in_the_operator_s_namespace(operator: OperatorProcess, control_plane: Cluster) -> None:
    lease = json.loads(control_plane.kubectl("get", "lease", "-n", NAMESPACE, "duet-operator", "-o", "json").stdout)
    assert lease["spec"]["holderIdentity"] in operator.log
