"""Operators that start for one test: after another one, and with less than the whole cluster."""

import json
import re
from pathlib import Path

import pytest
from tests.support.operator_process import NAMESPACE, install, running_operator, until
from tests.support.relay import relayed
from tests.support.rest import Rest
from tests.support.served import OURS, Served

from duet_dev.cluster import Cluster
from duet_operator.cluster import DEPLOYMENT, POD, Kind

pytestmark = [pytest.mark.apiserver, pytest.mark.slow, pytest.mark.timeout(180)]

REPLICA_SET = Kind("apps/v1", "ReplicaSet", "replicasets")
FOREIGN_PODS = 200
OFTEN = {"scaling.intervalSeconds": 1}
"""Passes come soon, where several are waited for."""


def test_a_new_operator_writes_nothing(kubeconfig: Path, served: Served, tmp_path: Path) -> None:
    with running_operator(kubeconfig, tmp_path / "first.log") as first:
        first.wait_until_acting()
        served.apply(OFTEN)
        served.made()
        until("it has told everything", first.quiet_in(3), seconds=90)
        assert first.end() == 0
    before = served.versions()
    with running_operator(kubeconfig, tmp_path / "second.log") as second:
        second.wait_until_acting()
        second.pass_on(3)
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
        sets = served.list(REPLICA_SET)
        return {each["metadata"]["labels"]["pod-template-hash"] for each in sets if each["spec"]["replicas"]}

    with running_operator(
        kubeconfig, tmp_path / "first.log", engine_image="engine:1", gateway_image="gateway:1"
    ) as old:
        old.wait_until_acting()
        served.apply(OFTEN)
        served.made()
        assert old.end() == 0
    before = hashes()
    served.kubectl("patch", "duet", served.name, "--subresource=status", "--type=merge", '--patch={"status": null}')
    with running_operator(
        kubeconfig, tmp_path / "second.log", engine_image="engine:2", gateway_image="gateway:2"
    ) as new:
        new.wait_until_acting()
        until("it has told what is in force", lambda: "resolved" in served.object().get("status", {}))
        new.pass_on(3)
        assert hashes() == before
        assert served.object()["status"]["resolved"]["engineImage"] == "engine:1"
        served.kubectl("annotate", "duet", served.name, "duetserve.io/upgrade=now")
        until("pools and gateway get a new template each", lambda: len(hashes() - before) == len(before) == 3)
        assert served.object()["status"]["resolved"]["engineImage"] == "engine:2"


def test_settings_that_cannot_be_used_end_it_with_their_name(kubeconfig: Path, tmp_path: Path) -> None:
    with running_operator(kubeconfig, tmp_path / "log", lease_seconds="soon") as process:
        assert process.process.wait(30) == 2
        assert "DUET_OPERATOR_LEASE_SECONDS is 'soon': it must be a number" in process.log


MODEL_IDS = ("Org.Name/Model_8B-v0.1@main", "/models/Größe:2")


DISCOVERY = re.compile(r"/version|/api(/v1)?|/apis(/[^/?]+){0,2}|/\.well-known/openid-configuration|/openid/v1/jwks")
"""What an API server has to offer, which is nobody's object."""


def test_an_operator_of_two_namespaces_needs_and_sees_no_other(
    control_plane: Cluster, rest: Rest, kubeconfig: Path, namespace: str, tmp_path: Path
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
            unseen = Served(control_plane, rest, outside)
            unseen.apply()
            for place, model in zip((namespace, other), MODEL_IDS, strict=True):
                same_name = Served(control_plane, rest, place)
                same_name.apply({"model.id": model})
                same_name.made()
                container = same_name.get(DEPLOYMENT, "served-decode")["spec"]["template"]["spec"]["containers"][0]
                assert {"name": "DUET_MODEL_ID", "value": model} in container["env"]
            assert unseen.children() == {}
            assert "status" not in unseen.object()
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


def test_foreign_pods_are_neither_delivered_nor_kept(
    control_plane: Cluster, rest: Rest, kubeconfig: Path, served: Served, namespace: str, tmp_path: Path
) -> None:
    foreign = [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"foreign-{number}", "namespace": namespace},
            "spec": {"containers": [{"name": "c", "image": "x"}]},
        }
        for number in range(FOREIGN_PODS)
    ]
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

        # Pods of objects that earlier tests deleted may still be going, and a watch tells of it later than a list.
        until("only its own pods are cached", lambda: 0 < cached() <= len(rest.list(POD, selector=OURS)) < FOREIGN_PODS)
    asked = [each.path for each in relay.requests if "/pods?" in each.path]
    assert any("watch=true" in path for path in asked) and any("limit=500" in path for path in asked)
    assert [path for path in asked if "labelSelector=app.kubernetes.io" not in path] == []
