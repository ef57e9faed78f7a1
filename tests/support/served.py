"""A DuetDeployment on an API server with controllers, where nothing runs pods, and the operator's children of it."""

import json
from typing import Any

from tests.support.duet_objects import minimal, patched
from tests.support.operator_process import until
from tests.support.rest import Document, Rest

from duet_dev.cluster import Cluster
from duet_operator.cluster import (
    CONFIG_MAP,
    DEPLOYMENT,
    DISRUPTION_BUDGET,
    DUET,
    NETWORK_POLICY,
    ROLE_BINDING,
    SERVICE,
    SERVICE_ACCOUNT,
    Kind,
)

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
CHILD_KINDS = (CONFIG_MAP, DEPLOYMENT, NETWORK_POLICY, DISRUPTION_BUDGET, ROLE_BINDING, SERVICE, SERVICE_ACCOUNT)
OURS = "app.kubernetes.io/managed-by=duet-operator"


class Served:
    """A DuetDeployment in its namespace."""

    def __init__(self, cluster: Cluster, rest: Rest, namespace: str, name: str = "served") -> None:
        self.cluster = cluster
        self.rest = rest
        self.namespace = namespace
        self.name = name

    def kubectl(self, *arguments: str, **options: Any) -> str:
        return self.cluster.kubectl(*arguments, f"--namespace={self.namespace}", **options).stdout

    def apply(self, spec: dict[str, Any] | None = None) -> None:
        patch = {f"spec.{path}": value for path, value in (spec or {}).items()}
        document = patched(minimal(name=self.name), {"metadata.namespace": self.namespace, **patch})
        self.kubectl("apply", "-f", "-", input=json.dumps(document))

    def get(self, kind: Kind, name: str) -> Document:
        return self.rest.get(kind, self.namespace, name)

    def list(self, kind: Kind) -> list[Document]:
        return self.rest.list(kind, self.namespace)

    def object(self) -> Document:
        return self.get(DUET, self.name)

    def children(self) -> dict[str, Document]:
        found = [child for kind in CHILD_KINDS for child in self.rest.list(kind, self.namespace, selector=OURS)]
        return {f"{child['kind']}/{child['metadata']['name']}": child for child in found}

    def versions(self) -> dict[str, str]:
        """Resource versions of the object and its children but Deployments, whose controller writes them too."""
        everything = {**self.children(), "object": self.object()}
        return {
            name: each["metadata"]["resourceVersion"]
            for name, each in everything.items()
            if each["kind"] != "Deployment"
        }

    def conditions(self) -> dict[str, dict[str, Any]]:
        status = self.object().get("status", {})
        return {condition["type"]: condition for condition in status.get("conditions", ())}

    def replicas(self, pool: str) -> int:
        return int(self.get(DEPLOYMENT, f"{self.name}-{pool}")["spec"]["replicas"])

    def made(self) -> None:
        """All children exist, and the status tells of pods."""
        until("all children are there", lambda: self.children().keys() >= CHILDREN)
        until("the status tells of pods", self.tells_of_pods)

    def tells_of_pods(self) -> bool:
        return tells_of_pods(self.object())


def tells_of_pods(found: Document) -> bool:
    """Whether an object's status has counted its decode worker, which never gets ready here."""
    return bool(found.get("status", {}).get("decode", {}).get("starting") == 1)
