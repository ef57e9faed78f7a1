"""What the operator and the gateway do to the cluster, each deed by itself, for tests of the rights that they need.

Invariant: where the operator has a function for a deed, that function runs.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from tests.support.duet_objects import minimal, patched
from tests.support.waiting import until

from duet_operator.acting import Children
from duet_operator.assembly import ClusterLeaseStore
from duet_operator.cluster import (
    CONFIG_MAP,
    DEPLOYMENT,
    DISRUPTION_BUDGET,
    DUET,
    EVENT,
    FIELD_MANAGER,
    NETWORK_POLICY,
    NODE,
    POD,
    ROLE_BINDING,
    SERVICE,
    SERVICE_ACCOUNT,
    ClusterError,
    Kind,
)
from duet_operator.kubernetes_cluster import KubernetesCluster
from duet_operator.loop import OWN_SELECTOR
from duet_operator.resources.gateway import CLUSTER_ROLE
from duet_operator.world import Key, World

Manifest = dict[str, Any]
LEASE = "duet-operator"
ACCOUNT = "duet-operator"
UID = "0a4f6f5e-6a0f-4a52-9d65-3c5a1f9b7c11"
LABELS = {"app.kubernetes.io/managed-by": "duet-operator", "duetserve.io/name": "served"}


@dataclass(frozen=True, slots=True)
class Attempt:
    """One account, and what it does something to."""

    own: KubernetesCluster
    admin: KubernetesCluster
    namespace: str
    name: str
    """Of objects of its own."""

    @property
    def key(self) -> Key:
        return Key(self.namespace, "served")

    def manifest(self, kind: Kind, *, value: str = "1") -> Manifest:
        """A child of this kind."""
        owner = {"apiVersion": DUET.api_version, "kind": DUET.name, "name": "served", "uid": UID, "controller": True}
        metadata = {
            "name": self.name,
            "namespace": self.namespace,
            "labels": {**LABELS, "value": value},
            "ownerReferences": [owner],
        }
        return {"apiVersion": kind.api_version, "kind": kind.name, "metadata": metadata, **_body(kind, value)}

    async def made(self, kind: Kind) -> Manifest:
        """The object is there."""
        return await self.admin.create(self.manifest(kind))


def _body(kind: Kind, value: str) -> Manifest:
    selector = {"matchLabels": {"app": "x"}}
    pod: Manifest = {"containers": [{"name": "c", "image": "c:1", "env": [{"name": "VALUE", "value": value}]}]}
    bodies: dict[str, Manifest] = {
        DEPLOYMENT.name: {
            "spec": {"selector": selector, "template": {"metadata": {"labels": {"app": "x"}}, "spec": pod}}
        },
        POD.name: {"spec": pod},
        SERVICE.name: {"spec": {"selector": {"app": "x"}, "ports": [{"port": 80}]}},
        SERVICE_ACCOUNT.name: {},
        CONFIG_MAP.name: {"data": {"value": value}},
        NETWORK_POLICY.name: {"spec": {"podSelector": selector, "policyTypes": ["Ingress"]}},
        DISRUPTION_BUDGET.name: {"spec": {"selector": selector, "maxUnavailable": int(value)}},
        ROLE_BINDING.name: {
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": CLUSTER_ROLE},
            "subjects": [{"kind": "ServiceAccount", "name": "gateway", "namespace": "default"}],
        },
    }
    return bodies[kind.name]


Operation = Callable[[Attempt], Awaitable[object]]


def children(at: Attempt) -> tuple[Children, World]:
    world = World(field_manager=FIELD_MANAGER)
    return Children(cluster=at.own, world=world), world


def creates(kind: Kind) -> Operation:
    """A child that isn't there: created, and taken over as something that was applied (patch)."""

    async def run(at: Attempt) -> None:
        await children(at)[0].ensure(at.manifest(kind), key=at.key, uid=UID)

    return run


def meets(kind: Kind) -> Operation:
    """A child of which the cache doesn't know yet: looked at (get) before it's taken for our own."""

    async def run(at: Attempt) -> None:
        await at.made(kind)
        await children(at)[0].ensure(at.manifest(kind), key=at.key, uid=UID)

    return run


def prunes(kind: Kind) -> Operation:
    async def run(at: Attempt) -> None:
        made, world = children(at)
        world.put(await at.made(kind))
        await made.prune((), key=at.key, uid=UID)

    return run


def lists(kind: Kind) -> Operation:
    async def run(at: Attempt) -> None:
        await at.own.list(kind, namespace=at.namespace, label_selector=OWN_SELECTOR)

    return run


async def lists_nodes(at: Attempt) -> None:
    await at.own.list(NODE)


async def watches_nodes(at: Attempt) -> None:
    await at.own.document(f"{NODE.path(None)}?watch=true&timeoutSeconds=1")


def watches(kind: Kind) -> Operation:
    """As Kopf and the gateway do, only shorter."""

    async def run(at: Attempt) -> None:
        await at.own.document(f"{kind.path(at.namespace)}?watch=true&timeoutSeconds=1")

    return run


async def scales(at: Attempt) -> None:
    await at.made(DEPLOYMENT)
    await at.own.patch_scale(DEPLOYMENT, at.namespace, at.name, expected=1, replicas=2)


async def reads_pod(at: Attempt) -> None:
    await at.made(POD)
    await at.own.get(POD, at.namespace, at.name)


async def marks_pod(at: Attempt) -> None:
    await at.made(POD)
    await at.own.patch(POD, at.namespace, at.name, {"metadata": {"annotations": {"a": "b"}}})


async def deletes_pod(at: Attempt) -> None:
    await at.made(POD)
    await at.own.delete(POD, at.namespace, at.name)


async def reports(at: Attempt) -> None:
    await at.admin.create(patched(minimal(name=at.name), {"metadata.namespace": at.namespace}))
    await at.own.patch_status(DUET, at.namespace, at.name, {"observedGeneration": 1})


async def owns_and_blocks(at: Attempt) -> None:
    """A child whose owner reference blocks the owner's deletion in the foreground."""
    owner = await at.admin.create(patched(minimal(name=at.name), {"metadata.namespace": at.namespace}))
    manifest = at.manifest(CONFIG_MAP)
    (reference,) = manifest["metadata"]["ownerReferences"]
    reference |= {"name": at.name, "uid": owner["metadata"]["uid"], "blockOwnerDeletion": True}
    await at.own.create(manifest)


async def tells(at: Attempt) -> None:
    regarding = {"apiVersion": DUET.api_version, "kind": DUET.name, "name": "served", "namespace": at.namespace}
    event = {
        "apiVersion": EVENT.api_version,
        "kind": EVENT.name,
        "metadata": {"name": at.name, "namespace": at.namespace},
        "regarding": regarding,
        "reason": "Scaled",
        "action": "Scale",
        "type": "Normal",
        "note": "x",
        "eventTime": "2026-01-01T00:00:00.000000Z",
        "reportingController": "duetserve.io/operator",
        "reportingInstance": "x",
    }
    await at.own.create(event)


def lease(cluster: KubernetesCluster, at: Attempt, name: str = LEASE) -> ClusterLeaseStore:
    return ClusterLeaseStore(cluster, namespace=at.namespace, name=name)


async def takes_lease(at: Attempt) -> None:
    await lease(at.own, at, at.name).write({"holderIdentity": "x"}, over=None)


async def reads_lease(at: Attempt) -> None:
    await lease(at.own, at).read()


async def renews_lease(at: Attempt) -> None:
    async def renewed() -> bool:
        # Others renew the same one meanwhile.
        present = await lease(at.admin, at).read()
        try:
            await lease(at.own, at).write({"holderIdentity": at.name}, over=present)
        except ClusterError as error:
            if error.status != 409:
                raise
            return False
        return True

    await until("the Lease is renewed", renewed, seconds=30)


async def proves_itself(at: Attempt) -> None:
    await at.own.request_token(at.namespace, ACCOUNT, audience="duet-engine/models/qwen", seconds=600)
