"""Each right that the chart gives, tried with it and without: what needs it works, and is refused without it.

Every account here has all rights of the chart but one. Operations are the operator's own code where it has a function
for them, so a right that nothing needs any more has no operation and fails the test.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.duet_objects import minimal, patched
from tests.support.operator_process import CHART, rendered
from tests.support.waiting import until

from duet_dev import build
from duet_dev.cluster import Cluster
from duet_operator.acting import Children
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
    KubernetesCluster,
    connect,
)
from duet_operator.loop import OWN_SELECTOR
from duet_operator.process import ClusterLeaseStore
from duet_operator.resources.gateway import CLUSTER_ROLE
from duet_operator.world import Key, World

pytestmark = [
    pytest.mark.apiserver,
    pytest.mark.timeout(180),
    pytest.mark.skipif(bool(build.missing([build.HELM])), reason="helm not built: run `make binaries`"),
]

Manifest = dict[str, Any]
AUDIENCE = "https://kubernetes.default.svc"
LEASE = "duet-operator"
ACCOUNT = "duet-operator"
UID = "0a4f6f5e-6a0f-4a52-9d65-3c5a1f9b7c11"
LABELS = {"app.kubernetes.io/managed-by": "duet-operator", "duetserve.io/name": "served"}


@dataclass(frozen=True, slots=True, order=True)
class Right:
    """One verb on one resource."""

    group: str
    resource: str
    verb: str
    name: str = ""
    """The only object that it's for; empty for any."""

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}{f'.{self.group}' if self.group else ''}"

    def rule(self) -> Manifest:
        names = {"resourceNames": [self.name]} if self.name else {}
        return {"apiGroups": [self.group], "resources": [self.resource], "verbs": [self.verb], **names}


def rights(rules: list[Manifest]) -> set[Right]:
    return {
        Right(group, resource, verb, name)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        for name in rule.get("resourceNames", [""])
    }


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


def _child(kind: Kind) -> dict[Right, Operation]:
    """What is done to each kind of child."""
    done = {
        "get": meets(kind),
        "list": lists(kind),
        "watch": watches(kind),
        "create": creates(kind),
        "patch": creates(kind),
        "delete": prunes(kind),
    }
    return {Right(kind.group, kind.plural, verb): operation for verb, operation in done.items()}


OPERATOR: dict[Right, Operation] = {
    Right("duetserve.io", "duetdeployments", "list"): lists(DUET),
    Right("duetserve.io", "duetdeployments", "watch"): watches(DUET),
    Right("duetserve.io", "duetdeployments/status", "patch"): reports,
    Right("duetserve.io", "duetdeployments/finalizers", "update"): owns_and_blocks,
    Right("apps", "deployments/scale", "get"): scales,
    Right("apps", "deployments/scale", "patch"): scales,
    Right("", "pods", "get"): reads_pod,
    Right("", "pods", "list"): lists(POD),
    Right("", "pods", "watch"): watches(POD),
    Right("", "pods", "patch"): marks_pod,
    Right("", "pods", "delete"): deletes_pod,
    Right("events.k8s.io", "events", "create"): tells,
    Right("rbac.authorization.k8s.io", "clusterroles", "bind", CLUSTER_ROLE): creates(ROLE_BINDING),
    **_child(DEPLOYMENT),
    **_child(SERVICE),
    **_child(SERVICE_ACCOUNT),
    **_child(CONFIG_MAP),
    **_child(NETWORK_POLICY),
    **_child(DISRUPTION_BUDGET),
    **_child(ROLE_BINDING),
}
OWN_NAMESPACE: dict[Right, Operation] = {
    Right("coordination.k8s.io", "leases", "create"): takes_lease,
    Right("coordination.k8s.io", "leases", "get", LEASE): reads_lease,
    Right("coordination.k8s.io", "leases", "update", LEASE): renews_lease,
    Right("", "serviceaccounts/token", "create", ACCOUNT): proves_itself,
}
NODES: dict[Right, Operation] = {
    Right("", "nodes", "list"): lists_nodes,
    Right("", "nodes", "watch"): watches_nodes,
}
GATEWAY: dict[Right, Operation] = {
    Right("", "pods", "list"): lists(POD),
    Right("", "pods", "watch"): watches(POD),
    Right("duetserve.io", "duetdeployments", "list"): lists(DUET),
    Right("duetserve.io", "duetdeployments", "watch"): watches(DUET),
}
ROLES = {
    ("ClusterRole", "duet-operator"): OPERATOR,
    ("Role", "duet-operator-own"): OWN_NAMESPACE,
    ("ClusterRole", "duet-operator-nodes"): NODES,
    ("ClusterRole", "duet-gateway"): GATEWAY,
}


@dataclass(frozen=True, slots=True)
class Trial:
    """One account without one right."""

    account: str
    role: str
    without: Right
    operation: Operation
    kept: tuple[Right, ...]


def granted() -> dict[tuple[str, str], set[Right]]:
    roles = [each for each in rendered() if each["kind"] in ("Role", "ClusterRole")]
    found = {(role["kind"], role["metadata"]["name"]): rights(role["rules"]) for role in roles}
    # For people, not for us.
    return {role: rights_ for role, rights_ in found.items() if role[1] not in ("duet-view", "duet-edit")}


def test_every_right_has_something_that_needs_it() -> None:
    assert granted() == {role: set(operations) for role, operations in ROLES.items()}


def trials() -> list[Trial]:
    return [
        Trial(f"t{number}-{index}", role, without, operation, tuple(set(operations) - {without}))
        for number, ((_, role), operations) in enumerate(ROLES.items())
        for index, (without, operation) in enumerate(sorted(operations.items(), key=lambda each: each[0]))
    ]


def setting(namespace: str, wanted: list[Trial]) -> list[Manifest]:
    """Accounts and roles: one for each trial, then one with everything for each role."""
    accounts = {trial.account: trial.kept for trial in wanted}
    accounts |= {f"all-{name}": tuple(operations) for (_, name), operations in ROLES.items()}
    # What the operator binds may well exceed what it has itself; without that `bind` would never be asked for.
    beyond = {"apiGroups": [""], "resources": ["pods/log"], "verbs": ["get"]}
    made: list[Manifest] = [_role(CLUSTER_ROLE, [*(right.rule() for right in GATEWAY), beyond])]
    for account, kept in accounts.items():
        name = f"{namespace}-{account}"
        made += [
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": account, "namespace": namespace}},
            _role(name, [right.rule() for right in kept]),
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "ClusterRoleBinding",
                "metadata": {"name": name},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
                "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": namespace}],
            },
        ]
    return [
        *made,
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": ACCOUNT, "namespace": namespace}},
    ]


def _role(name: str, rules: list[Manifest]) -> Manifest:
    metadata = {"name": name}
    return {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": metadata, "rules": rules}


async def outcome(operation: Operation, at: Attempt) -> str:
    """Nothing, or what the API server answered."""
    try:
        await operation(at)
    except ClusterError as error:
        return f"{error.status}: {error}"
    return ""


async def test_what_needs_a_right_works_with_it_and_is_refused_without(
    apiserver: Cluster, namespace: str, tmp_path: Path
) -> None:
    apiserver.kubectl("apply", "-f", str(CHART / "crds"))
    apiserver.kubectl("wait", "--for=condition=Established", "--timeout=30s", "-f", str(CHART / "crds"))
    wanted = trials()
    document = {"apiVersion": "v1", "kind": "List", "items": setting(namespace, wanted)}
    apiserver.kubectl("apply", "-f", "-", input=json.dumps(document))
    kubeconfig = yaml.safe_load(apiserver.kubeconfig.read_text())
    async with await connect(kubeconfig=str(apiserver.kubeconfig)) as admin:
        await lease(admin, Attempt(admin, admin, namespace, "")).write({"holderIdentity": "x"}, over=None)

        async def as_account(account: str, operation: Operation, name: str) -> str:
            token = await admin.request_token(namespace, account, audience=AUDIENCE, seconds=3600)
            own = {**kubeconfig, "users": [{**user, "user": {"token": token["token"]}} for user in kubeconfig["users"]]}
            path = tmp_path / name
            path.write_text(yaml.safe_dump(own))
            async with await connect(kubeconfig=str(path)) as cluster:
                return await outcome(operation, Attempt(cluster, admin, namespace, name))

        async def all_hold() -> bool:
            return not await as_account(f"all-{CLUSTER_ROLE}", lists(POD), "probe")

        await until("the roles are in force", all_hold, seconds=60)
        surprises = []
        for trial in wanted:
            allowed, refused = await asyncio.gather(
                as_account(f"all-{trial.role}", trial.operation, f"with-{trial.account}"),
                as_account(trial.account, trial.operation, f"without-{trial.account}"),
            )
            if allowed or not refused.startswith("403: "):
                surprises.append(f"{trial.role}: {trial.without}: with it {allowed!r}, without it {refused!r}")
        assert surprises == []
