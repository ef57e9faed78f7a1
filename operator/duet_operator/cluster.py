"""The cluster as the operator uses it: kinds of objects, what can go wrong, and a small port.

Invariant: manifests are plain dictionaries, whatever client speaks to the API server. No write ever names
`spec.replicas` of a Deployment that exists, but `patch_scale`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote

from duet_operator.api.v1alpha1 import API_VERSION, PLURAL
from duet_operator.api.v1alpha1 import KIND as DUET_KIND

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

Manifest = dict[str, Any]

FIELD_MANAGER = "duet-operator"
CHUNK_SIZE = 500
IN_CLUSTER_VARIABLE = "KUBERNETES_SERVICE_HOST"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of object and where the API serves it."""

    api_version: str
    name: str
    plural: str

    @property
    def group(self) -> str:
        """API group, empty for the core group."""
        return self.api_version.rpartition("/")[0]

    def path(self, namespace: str | None, name: str | None = None, subresource: str | None = None) -> str:
        """URL path of an object or of a collection."""
        root = "/apis/" if self.group else "/api/"
        parts = [root + self.api_version]
        if namespace is not None:
            parts += ["namespaces", quote(namespace, safe="")]
        parts += [part for part in (self.plural, quote(name, safe="") if name else None, subresource) if part]
        return "/".join(parts)


DUET = Kind(API_VERSION, DUET_KIND, PLURAL)
DEPLOYMENT = Kind("apps/v1", "Deployment", "deployments")
POD = Kind("v1", "Pod", "pods")
NODE = Kind("v1", "Node", "nodes")
SERVICE = Kind("v1", "Service", "services")
SERVICE_ACCOUNT = Kind("v1", "ServiceAccount", "serviceaccounts")
CONFIG_MAP = Kind("v1", "ConfigMap", "configmaps")
ROLE_BINDING = Kind("rbac.authorization.k8s.io/v1", "RoleBinding", "rolebindings")
NETWORK_POLICY = Kind("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies")
DISRUPTION_BUDGET = Kind("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets")
LEASE = Kind("coordination.k8s.io/v1", "Lease", "leases")
EVENT = Kind("events.k8s.io/v1", "Event", "events")

KINDS = {
    (kind.api_version, kind.name): kind
    for kind in (
        DUET,
        DEPLOYMENT,
        POD,
        SERVICE,
        SERVICE_ACCOUNT,
        CONFIG_MAP,
        ROLE_BINDING,
        NETWORK_POLICY,
        DISRUPTION_BUDGET,
        LEASE,
        EVENT,
    )
}


def kind_of(manifest: Manifest) -> Kind:
    """The kind that a manifest says it is."""
    try:
        return KINDS[manifest["apiVersion"], manifest["kind"]]
    except KeyError as error:
        raise ValueError(f"the operator doesn't handle objects of kind {error.args[0]!r}") from None


class ClusterError(Exception):
    """A request that the API server refused or didn't answer. `status` is 0 where it didn't answer."""

    def __init__(self, action: str, *, status: int, reason: str, message: str) -> None:
        super().__init__(f"{action}: {reason or status}: {message}" if message else f"{action}: {reason or status}")
        self.status = status
        self.reason = reason
        self.message = message


class NotFoundError(ClusterError):
    """The object isn't there."""


class ConflictError(ClusterError):
    """The object is there already, or has changed meanwhile."""


@dataclass(frozen=True, slots=True)
class Listing:
    """All objects of a kind at one resource version."""

    items: tuple[Manifest, ...]
    resource_version: str


class Cluster(Protocol):
    """What the operator needs from a cluster. Every method raises ClusterError where it can't do its work."""

    async def get(self, kind: Kind, namespace: str, name: str) -> Manifest | None:
        """The object, None where there is none."""
        ...

    async def list(self, kind: Kind, *, namespace: str | None = None, label_selector: str = "") -> Listing:
        """All objects of a namespace, or of the cluster, that carry the labels; read in chunks."""
        ...

    def pages(self, kind: Kind, *, namespace: str | None = None, label_selector: str = "") -> AsyncIterator[Listing]:
        """The same, chunk by chunk, all at one resource version: who keeps little of an object needs no more room."""
        ...

    async def create(self, manifest: Manifest) -> Manifest:
        """A new object; ConflictError where there is one of the name."""
        ...

    async def replace(self, manifest: Manifest) -> Manifest:
        """The whole object anew; ConflictError where it isn't at the manifest's resourceVersion any more."""
        ...

    async def apply(self, manifest: Manifest) -> Manifest:
        """Server-side apply: own the fields of the manifest, give up others that were owned, leave all others alone."""
        ...

    async def patch(self, kind: Kind, namespace: str, name: str, changes: Manifest) -> Manifest:
        """Merge patch; a resourceVersion in its metadata makes it conditional."""
        ...

    async def patch_scale(
        self, kind: Kind, namespace: str, name: str, *, expected: int | None, replicas: int, version: str | None = None
    ) -> str:
        """Set the number of replicas; ConflictError unless it is `expected` (None: whatever it is).

        With `version`, the object's resourceVersion when that was seen, ConflictError also where it changed since.
        Returns the object's resourceVersion from then on.
        """
        ...

    async def patch_status(self, kind: Kind, namespace: str, name: str, changes: Manifest) -> Manifest:
        """Merge patch of the status subresource."""
        ...

    async def delete(self, kind: Kind, namespace: str, name: str, *, uid: str | None = None) -> None:
        """Delete the object, only that of `uid` if given; nothing happens where it's gone."""
        ...
