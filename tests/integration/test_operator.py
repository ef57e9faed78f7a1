"""The operator's process on the real API server with its controllers, by the chart's rights; nothing runs pods here."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.operator_process import NAMESPACE, OperatorProcess, running_operator, until
from tests.support.rest import Rest
from tests.support.served import Served

from duet_dev.cluster import Cluster
from duet_operator.cluster import DEPLOYMENT, EVENT, LEASE, POD, SERVICE, Kind

pytestmark = [pytest.mark.apiserver, pytest.mark.timeout(180)]

RESOURCE_QUOTA = Kind("v1", "ResourceQuota", "resourcequotas")
LONG_NAME = "a" + "-long" * 12 + "-x"
"""As long as a name may be."""


@pytest.fixture(scope="module")
def started(kubeconfig: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorProcess]:
    """One operator for the tests that leave it running."""
    with running_operator(kubeconfig, tmp_path_factory.mktemp("operator") / "log") as process:
        process.wait_until_acting()
        yield process


@pytest.fixture
def operator(started: OperatorProcess) -> Iterator[OperatorProcess]:
    """It must outlive the test, and never have been refused anything."""
    yield started
    assert started.process.poll() is None, started.log
    assert "is forbidden: User" not in started.log, started.log
    assert "Traceback" not in started.log, started.log


def test_an_object_gets_its_children_and_takes_them_along(operator: OperatorProcess, served: Served) -> None:
    served.apply()
    served.made()
    uid = served.object()["metadata"]["uid"]
    for name, child in served.children().items():
        assert [reference["uid"] for reference in child["metadata"]["ownerReferences"]] == [uid], name
    assert "finalizers" not in served.object()["metadata"]
    conditions = served.conditions()
    assert {name: conditions[name]["status"] for name in ("Accepted", "Ready", "SignalsFresh")} == {
        "Accepted": "True",
        "Ready": "False",
        "SignalsFresh": "False",
    }
    served.kubectl("delete", "duet", "served")
    until("all children are gone", lambda: not served.children())
    until("its pods are gone", lambda: not served.list(POD))


def test_no_apply_resets_a_count(operator: OperatorProcess, served: Served) -> None:
    served.apply({"scaling.mode": "Recommend"})
    served.made()
    served.kubectl("scale", "deployment/served-decode", "--replicas=3")
    served.apply({"scaling.mode": "Recommend", "engine.args": ["--log-level", "info"]})

    def args() -> Any:
        return served.get(DEPLOYMENT, "served-decode")["spec"]["template"]["spec"]["containers"][0].get("args")

    until("the new template is applied", lambda: args() == ["--log-level", "info"])
    assert served.replicas("decode") == 3
    served.apply({"scaling.mode": "Recommend"})
    until("the removed field is gone", lambda: args() is None)
    assert served.replicas("decode") == 3


def test_pods_that_a_quota_refuses_are_told_of_in_its_words(operator: OperatorProcess, served: Served) -> None:
    """Nothing but a condition of the Deployment tells of them: there is no pod."""
    metadata, spec = {"name": "no-pods"}, {"hard": {"pods": "0"}}
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": metadata, "spec": spec}
    served.kubectl("create", "-f", "-", input=json.dumps(quota))
    until("the quota is in force", lambda: "used" in served.get(RESOURCE_QUOTA, "no-pods").get("status", {}))
    served.apply({"scaling.intervalSeconds": 1, "scaling.pendingDeadlineSeconds": 10})

    def told() -> str:
        return str(served.conditions().get("CapacityPending", {}).get("message", ""))

    until("the refusal is told of", lambda: "exceeded quota: no-pods" in told())
    assert "decode: 1 pod: FailedCreate" in told()
    assert served.conditions()["Ready"]["status"] == "False"


def test_changes_of_mode_change_no_count(operator: OperatorProcess, served: Served) -> None:
    served.apply({"scaling.mode": "Recommend"})
    served.made()
    served.kubectl("scale", "deployment/served-decode", "--replicas=2")
    for mode in ("Auto", "Recommend", "Manual", "Auto", "Recommend"):
        served.apply({"scaling.mode": mode})
        generation = served.object()["metadata"]["generation"]
        until(
            f"{mode} is in force",
            lambda wanted=generation: served.object()["status"].get("observedGeneration") == wanted,
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
    generation = served.object()["metadata"]["generation"]
    until("it's applied", lambda: served.object()["status"].get("observedGeneration") == generation)
    assert served.replicas("decode") == 3
    served.kubectl("delete", "hpa", "theirs")

    served.apply({"scaling.mode": "Manual", "pools.decode.replicas": 2})
    until("the spec's count is there", lambda: served.replicas("decode") == 2)
    served.kubectl("scale", "deployment/served-decode", "--replicas=4")
    until("it's set back", lambda: served.replicas("decode") == 2)
    (told,) = [event for event in served.list(EVENT) if event["reason"] == "ForeignScale"]
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
    assert served.get(SERVICE, "served")["metadata"]["annotations"]["note"] == "theirs"


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


def test_names_of_any_length_have_all_their_children(
    operator: OperatorProcess, control_plane: Cluster, rest: Rest, namespace: str
) -> None:
    assert len(LONG_NAME) == 63
    served = Served(control_plane, rest, namespace, LONG_NAME)
    twin = Served(control_plane, rest, namespace, LONG_NAME[:-1] + "y")
    for each in (served, twin):
        each.apply()
    for each in (served, twin):
        until("its pods are told", each.tells_of_pods)
    names = [name for name in served.children() if name.startswith("Deployment/")]
    assert len(names) == 6
    owners = {child["metadata"]["ownerReferences"][0]["name"] for child in served.children().values()}
    assert owners == {served.name, twin.name}


def test_the_lease_lies_in_the_operator_s_namespace(operator: OperatorProcess, rest: Rest) -> None:
    lease = rest.get(LEASE, NAMESPACE, "duet-operator")
    assert lease["spec"]["holderIdentity"] in operator.log
