"""The cluster port on the real API server: ownership of fields, counts, conflicts."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.support.manifests import deployment as deployed

from duet_dev.cluster import Cluster
from duet_engine.authentication import DeniedError, TokenVerifier
from duet_engine.protocol import Trust, token_audience
from duet_operator import ownership
from duet_operator.cluster import CONFIG_MAP, DEPLOYMENT, FIELD_MANAGER, ClusterError, ConflictError
from duet_operator.kubernetes_cluster import KubernetesCluster, connect
from duet_operator.metrics import Metrics
from duet_operator.resources.config_maps import trust_config_map
from duet_operator.resources.trust import TRUST_KEY
from duet_operator.trust import IssuerWatch

pytestmark = pytest.mark.apiserver

Manifest = dict[str, Any]


def deployment(namespace: str, *, environment: dict[str, str], replicas: int | None = None) -> Manifest:
    spec: Manifest = {
        "selector": {"matchLabels": {"app": "web"}},
        "template": {
            "metadata": {"labels": {"app": "web"}},
            "spec": {
                "containers": [
                    {
                        "name": "web",
                        "image": "web:1",
                        "env": [{"name": name, "value": value} for name, value in environment.items()],
                        "ports": [{"name": "http", "containerPort": 80}],
                        "resources": {"requests": {"cpu": "1000m"}},
                        "args": [],
                    }
                ]
            },
        },
    }
    if replicas is not None:
        spec["replicas"] = replicas
    metadata = {"name": "web", "namespace": namespace, "labels": {"app.kubernetes.io/managed-by": "duet-operator"}}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec}


@pytest.fixture
async def port(apiserver: Cluster) -> AsyncIterator[KubernetesCluster]:
    async with await connect(kubeconfig=str(apiserver.kubeconfig)) as cluster:
        yield cluster


async def create(port: KubernetesCluster, manifest: Manifest, *, replicas: int) -> Manifest:
    manifest = ownership.stamped(manifest)
    created = await port.create({**manifest, "spec": {**manifest["spec"], "replicas": replicas}})
    entries = ownership.handed_over(created, manager=FIELD_MANAGER, keep_replicas=False)
    version = created["metadata"]["resourceVersion"]
    changes = {"metadata": {"managedFields": entries, "resourceVersion": version}}
    namespace, name = created["metadata"]["namespace"], created["metadata"]["name"]
    return await port.patch(DEPLOYMENT, namespace, name, changes)


async def test_created_replicas_survive_later_applies_and_removed_fields_go(
    port: KubernetesCluster, namespace: str
) -> None:
    first = deployment(namespace, environment={"KEPT": "1", "REMOVED": "1"})
    created = await create(port, first, replicas=5)
    assert not ownership.differs(ownership.stamped(first), created, manager=FIELD_MANAGER)

    second = ownership.stamped(deployment(namespace, environment={"KEPT": "2"}))
    assert ownership.differs(second, created, manager=FIELD_MANAGER)
    applied = await port.apply(second)
    assert applied["spec"]["replicas"] == 5
    environment = applied["spec"]["template"]["spec"]["containers"][0]["env"]
    assert environment == [{"name": "KEPT", "value": "2"}]
    assert not ownership.differs(second, applied, manager=FIELD_MANAGER)

    await port.patch_scale(DEPLOYMENT, namespace, "web", expected=5, replicas=3)
    again = await port.apply(second)
    assert again["spec"]["replicas"] == 3
    assert again["metadata"]["generation"] == applied["metadata"]["generation"] + 1


async def test_what_somebody_else_edits_is_noticed(port: KubernetesCluster, apiserver: Cluster, namespace: str) -> None:
    manifest = ownership.stamped(deployment(namespace, environment={"KEPT": "1"}))
    await create(port, deployment(namespace, environment={"KEPT": "1"}), replicas=1)
    for edit, noticed in (
        ({"spec": {"template": {"spec": {"containers": [{"name": "web", "image": "web:2"}]}}}}, True),
        ({"metadata": {"labels": {"app.kubernetes.io/managed-by": "someone"}}}, True),
        ({"metadata": {"annotations": {"note": "theirs"}}}, False),
        ({"spec": {"replicas": 4}}, False),
    ):
        apiserver.kubectl("patch", "deployment", "web", "-n", namespace, "-p", json.dumps(edit))
        observed = await port.get(DEPLOYMENT, namespace, "web")
        assert observed is not None
        assert ownership.differs(manifest, observed, manager=FIELD_MANAGER) is noticed, edit
        applied = await port.apply(manifest)
        assert not ownership.differs(manifest, applied, manager=FIELD_MANAGER), edit


async def test_an_apply_that_changes_nothing_leaves_the_version(port: KubernetesCluster, namespace: str) -> None:
    manifest = deployment(namespace, environment={})
    await create(port, manifest, replicas=2)
    first, second = [await port.apply(ownership.stamped(manifest)) for _ in range(2)]
    assert second["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]


async def test_a_count_changes_only_from_the_expected_one(port: KubernetesCluster, namespace: str) -> None:
    await create(port, deployment(namespace, environment={}), replicas=4)
    with pytest.raises(ConflictError, match="has 4 replicas where 5 were expected"):
        await port.patch_scale(DEPLOYMENT, namespace, "web", expected=5, replicas=3)
    await port.patch_scale(DEPLOYMENT, namespace, "web", expected=None, replicas=1)
    observed = await port.get(DEPLOYMENT, namespace, "web")
    assert observed is not None and observed["spec"]["replicas"] == 1


async def test_what_was_meant_for_another_object_of_the_name_is_refused(
    port: KubernetesCluster, namespace: str
) -> None:
    manifest = ownership.stamped(deployment(namespace, environment={}))
    created = await create(port, manifest, replicas=2)
    other = "0a4f6f5e-6a0f-4a52-9d65-3c5a1f9b7c11"
    meant = {**manifest, "metadata": {**manifest["metadata"], "uid": other}}
    for write in (
        port.delete(DEPLOYMENT, namespace, "web", uid=other),
        port.patch(DEPLOYMENT, namespace, "web", {"metadata": {"uid": other, "annotations": {"a": "b"}}}),
        port.apply(meant),
    ):
        with pytest.raises(ClusterError) as caught:
            await write
        assert caught.value.status in (409, 422)
    assert await port.get(DEPLOYMENT, namespace, "web") == created
    own = {**meant, "metadata": {**meant["metadata"], "uid": created["metadata"]["uid"]}}
    assert not ownership.differs(manifest, await port.apply(own), manager=FIELD_MANAGER)
    await port.delete(DEPLOYMENT, namespace, "web", uid=created["metadata"]["uid"])
    assert await port.get(DEPLOYMENT, namespace, "web") is None
    with pytest.raises(ConflictError, match="uid mismatch"):
        await port.apply(own)


async def test_tokens_of_the_cluster_are_verified_with_the_keys_that_it_tells(
    port: KubernetesCluster, namespace: str
) -> None:
    metadata = {"name": "full-gateway", "namespace": namespace}
    await port.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata})
    watch = IssuerWatch(port, metrics=Metrics())
    assert await watch.refresh() and watch.issuer is not None
    duet = deployed(name="full", namespace=namespace)
    document = Trust.read(trust_config_map(duet, watch.issuer, operator="")["data"][TRUST_KEY])
    verifier = TokenVerifier(document)

    async def verdict(audience: str) -> str:
        token = await port.request_token(namespace, "full-gateway", audience=audience, seconds=600)
        return verifier.verify(token["token"], now=time.time()).caller

    assert [await verdict(token_audience(namespace, "full"))] == list(document.callers)
    for audience in (document.issuer, token_audience(namespace, "other")):
        with pytest.raises(DeniedError, match="udience"):
            await verdict(audience)


async def test_long_lists_come_in_chunks(port: KubernetesCluster, namespace: str) -> None:
    def config_map(number: int) -> Manifest:
        metadata = {"name": f"m{number}", "namespace": namespace, "labels": {"odd": str(number % 2)}}
        return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}

    await asyncio.gather(*(port.create(config_map(number)) for number in range(1100)))
    listing = await port.list(CONFIG_MAP, namespace=namespace, label_selector="odd in (0,1)")
    assert len(listing.items) == 1100
    assert {item["kind"] for item in listing.items} == {"ConfigMap"}
    assert len((await port.list(CONFIG_MAP, namespace=namespace, label_selector="odd=1")).items) == 550
    assert int(listing.resource_version) >= max(int(item["metadata"]["resourceVersion"]) for item in listing.items)
