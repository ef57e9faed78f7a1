"""Everything the operator has seen of the cluster: a plain cache, fed by watches and lists.

Invariant: an object here is never older than one that was here before (resource versions of one cluster are ordered),
and every change that a pass would want to know of wakes the DuetDeployment that it belongs to, once.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from duet_operator.api.v1alpha1 import KIND as DUET_KIND
from duet_operator.pods import Pod, read_pod
from duet_operator.resources.labels import OWNER

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

Manifest = dict[str, Any]

POD_KIND = "Pod"
STATUS_UNREAD = frozenset({"PodDisruptionBudget"})
"""Its controller counts every pod that comes or goes, and the pods themselves are watched."""


class Key(NamedTuple):
    """A DuetDeployment by namespace and name."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class _Id(NamedTuple):
    kind: str
    namespace: str
    name: str


class World:
    """The cache. `on_change` is called with the key of each object that something relevant happened to."""

    def __init__(self, *, field_manager: str, on_change: Callable[[Key], None] = lambda _key: None) -> None:
        self._field_manager = field_manager
        self._on_change = on_change
        self._duets: dict[Key, Manifest] = {}
        self._children: dict[Key, dict[_Id, Manifest]] = {}
        self._pods: dict[Key, dict[_Id, Pod]] = {}
        self._owners: dict[_Id, tuple[Key, str]] = {}
        """Of everything cached: whom it belongs to and its resource version."""
        self._gone: dict[_Id, str] = {}
        """Resource versions of deletions since the last list: a late answer must not bring an object back."""

    def on_change(self, callback: Callable[[Key], None]) -> None:
        """Call this from now on."""
        self._on_change = callback

    # --- reading ---

    def duets(self) -> tuple[Key, ...]:
        """All DuetDeployments."""
        return tuple(self._duets)

    def duet(self, key: Key) -> Manifest | None:
        """The DuetDeployment itself."""
        return self._duets.get(key)

    def child(self, key: Key, kind: str, name: str) -> Manifest | None:
        """A child that isn't a pod."""
        return self._children.get(key, {}).get(_Id(kind, key.namespace, name))

    def children(self, key: Key) -> tuple[Manifest, ...]:
        """All children that aren't pods."""
        return tuple(self._children.get(key, {}).values())

    def pods(self, key: Key) -> tuple[Pod, ...]:
        """All pods, oldest first."""
        pods = self._pods.get(key, {}).values()
        return tuple(sorted(pods, key=lambda pod: (pod.created_seconds, pod.name)))

    def counts(self) -> dict[str, int]:
        """How many objects of each sort are cached."""
        return {
            "duetdeployments": len(self._duets),
            "pods": sum(map(len, self._pods.values())),
            "children": sum(map(len, self._children.values())),
        }

    # --- feeding ---

    def put(self, body: Mapping[str, Any]) -> None:
        """An object as an event, a list or an answer to a write shows it."""
        identity, version, owner = self._identify(body)
        if owner is None or not_newer(version, self._gone.get(identity)):
            return
        known = self._owners.get(identity)
        if known is not None:
            if not_newer(version, known[1]) and known[0] == owner:
                return
            if known[0] != owner:
                self._forget(identity)
        self._owners[identity] = (owner, version)
        if self._store(identity, owner, body):
            self._on_change(owner)

    def remove(self, body: Mapping[str, Any]) -> None:
        """An object that was deleted, or lost the label by which it's watched."""
        identity, version, _ = self._identify(body)
        known = self._owners.get(identity)
        if known is not None and not_newer(version, known[1]) and version != known[1]:
            return
        self._gone[identity] = version
        if known is not None:
            self._forget(identity)
            self._on_change(known[0])

    def forget_unlisted(
        self, kind: str, listed: Collection[tuple[str, str]], *, resource_version: str, namespace: str | None = None
    ) -> None:
        """One list of a kind (in one namespace) held these, each put here: what it lacks and isn't newer is gone."""

        def listable(identity: _Id) -> bool:
            return identity.kind == kind and namespace in (None, identity.namespace)

        for identity, (owner, version) in tuple(self._owners.items()):
            known = (identity.namespace, identity.name) in listed
            if listable(identity) and not known and not not_newer(resource_version, version):
                self._forget(identity)
                self._on_change(owner)
        self._gone = {
            identity: version
            for identity, version in self._gone.items()
            if not listable(identity) or not_newer(resource_version, version)
        }

    # --- inside ---

    def _identify(self, body: Mapping[str, Any]) -> tuple[_Id, str, Key | None]:
        metadata = body["metadata"]
        namespace, name = metadata["namespace"], metadata["name"]
        identity = _Id(body["kind"], namespace, name)
        owner = name if identity.kind == DUET_KIND else (metadata.get("labels") or {}).get(OWNER)
        return identity, metadata.get("resourceVersion", ""), Key(namespace, owner) if owner else None

    def _store(self, identity: _Id, owner: Key, body: Mapping[str, Any]) -> bool:
        """Keep it; True if it differs in something that a pass reads."""
        if identity.kind == POD_KIND:
            return self._store_pod(identity, owner, read_pod(body))
        trimmed = _trimmed(body, self._field_manager)
        if identity.kind == DUET_KIND:
            before, self._duets[owner] = self._duets.get(owner), trimmed
            # Its status is written by this operator: an echo of that is no news.
            return before is None or _without(before, "status") != _without(trimmed, "status")
        children = self._children.setdefault(owner, {})
        before, children[identity] = children.get(identity), trimmed
        return before is None or _without(before) != _without(trimmed)

    def _store_pod(self, identity: _Id, owner: Key, pod: Pod) -> bool:
        pods = self._pods.setdefault(owner, {})
        before = pods.get(identity)
        if before is not None and before.uid == pod.uid and before.has_been_ready:
            pod = replace(pod, has_been_ready=True)
        pods[identity] = pod
        return before != pod

    def _forget(self, identity: _Id) -> None:
        owner, _ = self._owners.pop(identity)
        if identity.kind == DUET_KIND:
            self._duets.pop(owner, None)
            return
        for cache in (self._children, self._pods):
            objects = cache.get(owner)
            if objects is not None and objects.pop(identity, None) is not None and not objects:
                del cache[owner]


def not_newer(version: str, than: str | None) -> bool:
    """Whether a resourceVersion is no newer than `than`. Those that aren't numbers can't be compared: newer."""
    if than is None or not (version.isdigit() and than.isdigit()):
        return False
    return int(version) <= int(than)


def _trimmed(body: Mapping[str, Any], field_manager: str) -> Manifest:
    """The manifest without what other field managers own, and without a status that nobody reads."""
    metadata = body["metadata"]
    own = [entry for entry in metadata.get("managedFields") or () if entry.get("manager") == field_manager]
    kept = {key: value for key, value in body.items() if key != "status" or body["kind"] not in STATUS_UNREAD}
    return {**kept, "metadata": {**metadata, "managedFields": own}}


def _without(body: Manifest, *keys: str) -> Manifest:
    """The manifest without what changes with every write."""
    metadata = {
        key: value for key, value in body["metadata"].items() if key not in ("resourceVersion", "managedFields")
    }
    return {**{key: value for key, value in body.items() if key not in keys}, "metadata": metadata}
