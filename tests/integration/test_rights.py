"""Each right that the chart gives, tried with it and without: what needs it works, and is refused without it.

Every account here has all rights of the chart but one. Operations are the operator's own code where it has a function
for them, so a right that nothing needs any more has no operation and fails the test.
"""

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support import deeds
from tests.support.deeds import ACCOUNT, LEASE, Attempt, Operation, lists, watches
from tests.support.operator_process import CHART, rendered
from tests.support.waiting import until

from duet_dev import build
from duet_dev.cluster import Cluster
from duet_operator.cluster import (
    CONFIG_MAP,
    DEPLOYMENT,
    DISRUPTION_BUDGET,
    DUET,
    NETWORK_POLICY,
    POD,
    ROLE_BINDING,
    SERVICE,
    SERVICE_ACCOUNT,
    ClusterError,
    Kind,
)
from duet_operator.kubernetes_cluster import connect
from duet_operator.resources.gateway import CLUSTER_ROLE

pytestmark = [
    pytest.mark.apiserver,
    pytest.mark.timeout(180),
    pytest.mark.skipif(bool(build.missing([build.HELM])), reason="helm not built: run `make binaries`"),
]

Manifest = dict[str, Any]
AUDIENCE = "https://kubernetes.default.svc"


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


def _child(kind: Kind) -> dict[Right, Operation]:
    """What is done to each kind of child."""
    done = {
        "get": deeds.meets(kind),
        "list": lists(kind),
        "watch": watches(kind),
        "create": deeds.creates(kind),
        "patch": deeds.creates(kind),
        "delete": deeds.prunes(kind),
    }
    return {Right(kind.group, kind.plural, verb): operation for verb, operation in done.items()}


OPERATOR: dict[Right, Operation] = {
    Right("duetserve.io", "duetdeployments", "list"): lists(DUET),
    Right("duetserve.io", "duetdeployments", "watch"): watches(DUET),
    Right("duetserve.io", "duetdeployments/status", "patch"): deeds.reports,
    Right("duetserve.io", "duetdeployments/finalizers", "update"): deeds.owns_and_blocks,
    Right("apps", "deployments/scale", "get"): deeds.scales,
    Right("apps", "deployments/scale", "patch"): deeds.scales,
    Right("", "pods", "get"): deeds.reads_pod,
    Right("", "pods", "list"): lists(POD),
    Right("", "pods", "watch"): watches(POD),
    Right("", "pods", "patch"): deeds.marks_pod,
    Right("", "pods", "delete"): deeds.deletes_pod,
    Right("events.k8s.io", "events", "create"): deeds.tells,
    Right("rbac.authorization.k8s.io", "clusterroles", "bind", CLUSTER_ROLE): deeds.creates(ROLE_BINDING),
    **_child(DEPLOYMENT),
    **_child(SERVICE),
    **_child(SERVICE_ACCOUNT),
    **_child(CONFIG_MAP),
    **_child(NETWORK_POLICY),
    **_child(DISRUPTION_BUDGET),
    **_child(ROLE_BINDING),
}
OWN_NAMESPACE: dict[Right, Operation] = {
    Right("coordination.k8s.io", "leases", "create"): deeds.takes_lease,
    Right("coordination.k8s.io", "leases", "get", LEASE): deeds.reads_lease,
    Right("coordination.k8s.io", "leases", "update", LEASE): deeds.renews_lease,
    Right("", "serviceaccounts/token", "create", ACCOUNT): deeds.proves_itself,
}
NODES: dict[Right, Operation] = {
    Right("", "nodes", "list"): deeds.lists_nodes,
    Right("", "nodes", "watch"): deeds.watches_nodes,
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
        await deeds.lease(admin, Attempt(admin, admin, namespace, "")).write({"holderIdentity": "x"}, over=None)

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
