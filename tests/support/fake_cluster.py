"""An API server in memory, for tests of what talks to the cluster port.

Like the real one in what the operator depends on: resource versions, generations, conflicts, who owns which field
(lists are owned whole), the scale and status subresources, uids as preconditions, children that go with their owner,
and a Deployment's controller that keeps as many pods as asked for and deletes them in Kubernetes' order. Every object
that changes is told to `subscribers`, as a watch would.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from typing import Any

from duet_operator.cluster import (
    DEPLOYMENT,
    FIELD_MANAGER,
    KINDS,
    POD,
    ClusterError,
    ConflictError,
    Kind,
    Listing,
    NotFoundError,
)
from duet_operator.pods import DELETION_COST_ANNOTATION

Manifest = dict[str, Any]
Key = tuple[str, str, str]


class FakeCluster:
    """The cluster port over a dictionary."""

    def __init__(self, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.objects: dict[Key, Manifest] = {}
        self.writes: list[tuple[str, str, str]] = []
        """Verb, kind and name of each write that came through the port."""
        self.subscribers: list[Callable[[str, Manifest], None]] = []
        self.refuse: Callable[[str, Kind], Exception | None] = lambda _verb, _kind: None
        """An error to answer a write with."""
        self._now = now
        self._versions = itertools.count(1)
        self._uids = itertools.count(1)

    # --- the port ---

    async def get(self, kind: Kind, namespace: str, name: str) -> Manifest | None:
        return copy.deepcopy(self.objects.get((kind.name, namespace, name)))

    async def list(self, kind: Kind, *, namespace: str | None = None, label_selector: str = "") -> Listing:
        wanted = dict(pair.split("=") for pair in label_selector.split(",") if pair)
        items = [
            copy.deepcopy(manifest)
            for (name, place, _), manifest in self.objects.items()
            if name == kind.name and namespace in (None, place) and wanted.items() <= labels(manifest).items()
        ]
        return Listing(tuple(items), str(next(self._versions)))

    async def pages(
        self, kind: Kind, *, namespace: str | None = None, label_selector: str = ""
    ) -> AsyncIterator[Listing]:
        """One object on each page."""
        listing = await self.list(kind, namespace=namespace, label_selector=label_selector)
        for item in listing.items:
            yield Listing((item,), listing.resource_version)
        if not listing.items:
            yield listing

    async def create(self, manifest: Manifest) -> Manifest:
        self._note("create", manifest)
        return self.put(manifest, manager=FIELD_MANAGER)

    async def replace(self, manifest: Manifest) -> Manifest:
        self._note("update", manifest)
        self._check_version(manifest, manifest["metadata"])
        return self._store(copy.deepcopy(manifest))

    async def apply(self, manifest: Manifest) -> Manifest:
        self._note("apply", manifest)
        present, uid = self.objects.get(_key(manifest)), manifest["metadata"].get("uid")
        if uid is not None and (present is None or uid != present["metadata"]["uid"]):
            raise ConflictError("apply", status=409, reason="Conflict", message="uid mismatch")
        if present is None:
            return self.put(manifest, manager=FIELD_MANAGER, operation="Apply")
        fields = _fields(_owned_part(manifest))
        result = copy.deepcopy(present)
        entries = result["metadata"].setdefault("managedFields", [])
        for entry in entries:
            if entry["manager"] == FIELD_MANAGER and entry["operation"] == "Apply":
                elsewhere = [other["fieldsV1"] for other in entries if other is not entry]
                _remove(result, entry["fieldsV1"], keep=[fields, *elsewhere])
        others = [_without(entry, fields) for entry in entries if entry["manager"] != FIELD_MANAGER]
        mine = [entry for entry in entries if entry["manager"] == FIELD_MANAGER and entry["operation"] != "Apply"]
        _merge(result, _owned_part(manifest))
        if manifest["kind"] == "Deployment":
            result["spec"].setdefault("replicas", 1)
        result["metadata"]["managedFields"] = [*others, *mine, _entry(FIELD_MANAGER, "Apply", fields)]
        return self._store(result)

    async def patch(self, kind: Kind, namespace: str, name: str, changes: Manifest) -> Manifest:
        present = self._present(kind, namespace, name)
        self._note("patch", present)
        metadata = changes.get("metadata", {})
        self._check_version(present, metadata)
        if metadata.get("uid", present["metadata"]["uid"]) != present["metadata"]["uid"]:
            raise ClusterError("patch", status=422, reason="Invalid", message="metadata.uid: field is immutable")
        return self.edit(kind, namespace, name, changes, manager=FIELD_MANAGER)

    async def patch_scale(
        self, kind: Kind, namespace: str, name: str, *, expected: int | None, replicas: int, version: str | None = None
    ) -> str:
        present = self._present(kind, namespace, name)
        self._check_version(present, {"resourceVersion": version})
        if expected is not None and present["spec"]["replicas"] != expected:
            raise ConflictError("scale", status=409, reason="Conflict", message="another count was expected")
        self._note("scale", present)
        spec = {"spec": {"replicas": replicas}}
        scaled = self.edit(kind, namespace, name, spec, manager=FIELD_MANAGER, subresource="scale")
        return str(scaled["metadata"]["resourceVersion"])

    async def patch_status(self, kind: Kind, namespace: str, name: str, changes: Manifest) -> Manifest:
        result = copy.deepcopy(self._present(kind, namespace, name))
        self._note("patch_status", result)
        _merge_patch(result, {"status": changes})
        return self._store(result)

    async def delete(self, kind: Kind, namespace: str, name: str, *, uid: str | None = None) -> None:
        present = self.objects.get((kind.name, namespace, name))
        if present is None:
            return
        if uid not in (None, present["metadata"]["uid"]):
            raise ConflictError("delete", status=409, reason="Conflict", message="the UID in the precondition differs")
        self._note("delete", present)
        self.remove(kind, namespace, name)

    # --- what others do ---

    def put(self, manifest: Manifest, *, manager: str = "someone", operation: str = "Update") -> Manifest:
        """A new object, as `kubectl create` makes it."""
        if _key(manifest) in self.objects:
            raise ConflictError("create", status=409, reason="AlreadyExists", message=f"{_key(manifest)} exists")
        result = copy.deepcopy(manifest)
        result["metadata"] |= {
            "uid": f"uid-{next(self._uids)}",
            "generation": 1,
            "creationTimestamp": self._now().isoformat(timespec="seconds"),
            "managedFields": [_entry(manager, operation, _fields(_owned_part(manifest)))],
        }
        if manifest["kind"] == "Deployment":
            result["spec"].setdefault("replicas", 1)
        return self._store(result, new=True)

    def edit(
        self,
        kind: Kind,
        namespace: str,
        name: str,
        changes: Manifest,
        *,
        manager: str = "someone",
        subresource: str = "",
    ) -> Manifest:
        """A merge patch, which takes what it changes away from its owners."""
        result = copy.deepcopy(self._present(kind, namespace, name))
        before = copy.deepcopy(result)
        _merge_patch(result, changes)
        if "managedFields" not in changes.get("metadata", {}):
            changed = _changed(before, result, changes)
            entries = [_without(entry, changed) for entry in result["metadata"].get("managedFields", [])]
            entries.append(_entry(manager, "Update", changed, subresource=subresource))
            result["metadata"]["managedFields"] = [entry for entry in entries if entry["fieldsV1"]]
        return self._store(result)

    def set_status(self, kind: Kind, namespace: str, name: str, **status: Any) -> Manifest:
        """What a controller or a kubelet reports."""
        result = copy.deepcopy(self._present(kind, namespace, name))
        result.setdefault("status", {}).update(status)
        return self._store(result)

    def remove(self, kind: Kind, namespace: str, name: str) -> None:
        """Deleted, and its children with it."""
        gone = self.objects.pop((kind.name, namespace, name))
        gone["metadata"]["resourceVersion"] = str(next(self._versions))
        self._tell("DELETED", gone)
        for child in [child for child in self.objects.values() if _owned_by(child, gone["metadata"]["uid"])]:
            metadata = child["metadata"]
            self.remove(KINDS[child["apiVersion"], child["kind"]], metadata["namespace"], metadata["name"])

    def control(self) -> None:
        """What the controllers of Deployments do: as many pods as asked for, and a status that says so."""
        for (kind, namespace, name), deployment in tuple(self.objects.items()):
            if kind != DEPLOYMENT.name:
                continue
            pods = sorted(self._pods_of(deployment), key=_deletion_rank)
            replicas = deployment["spec"]["replicas"]
            for pod in pods[: max(len(pods) - replicas, 0)]:
                self.remove(POD, namespace, pod["metadata"]["name"])
            for _ in range(replicas - len(pods)):
                self.put(_pod_from(deployment, f"{name}-{next(self._uids)}"), manager="kube-controller-manager")
            generation = deployment["metadata"]["generation"]
            told = {"observedGeneration": generation, "replicas": replicas, "updatedReplicas": replicas}
            if {key: (deployment.get("status") or {}).get(key) for key in told} != told:
                self.set_status(DEPLOYMENT, namespace, name, **told)

    def pods(self, role: str) -> list[Manifest]:
        """Pods of a role, oldest first."""
        found = [each for each in self.objects.values() if each["kind"] == "Pod" and _role(each) == role]
        return sorted(found, key=lambda pod: int(pod["metadata"]["uid"].removeprefix("uid-")))

    def replicas(self, name: str, namespace: str = "default") -> int:
        """What a Deployment asks for."""
        return int(self.objects[DEPLOYMENT.name, namespace, name]["spec"]["replicas"])

    # --- inside ---

    def _pods_of(self, deployment: Manifest) -> Iterator[Manifest]:
        uid = deployment["metadata"]["uid"]
        return (each for each in tuple(self.objects.values()) if each["kind"] == "Pod" and _owned_by(each, uid))

    def _note(self, verb: str, manifest: Manifest) -> None:
        error = self.refuse(verb, KINDS[manifest["apiVersion"], manifest["kind"]])
        if error is not None:
            raise error
        self.writes.append((verb, manifest["kind"], manifest["metadata"]["name"]))

    def _present(self, kind: Kind, namespace: str, name: str) -> Manifest:
        try:
            return self.objects[kind.name, namespace, name]
        except KeyError:
            raise NotFoundError("find", status=404, reason="NotFound", message=f"{kind.name} {name}") from None

    def _check_version(self, manifest: Manifest, metadata: Manifest) -> None:
        present = self.objects.get(_key(manifest))
        version = metadata.get("resourceVersion")
        if present is None or version not in (None, present["metadata"]["resourceVersion"]):
            raise ConflictError("write", status=409, reason="Conflict", message="the object has been modified")

    def _store(self, manifest: Manifest, *, new: bool = False) -> Manifest:
        before = self.objects.get(_key(manifest))
        if before is not None and _content(before) == _content(manifest):
            return copy.deepcopy(before)
        if before is not None and before.get("spec") != manifest.get("spec"):
            manifest["metadata"]["generation"] += 1
        manifest["metadata"]["resourceVersion"] = str(next(self._versions))
        self.objects[_key(manifest)] = manifest
        self._tell("ADDED" if new else "MODIFIED", manifest)
        return copy.deepcopy(manifest)

    def _tell(self, change: str, manifest: Manifest) -> None:
        for subscriber in self.subscribers:
            subscriber(change, copy.deepcopy(manifest))


def labels(manifest: Manifest) -> dict[str, str]:
    return dict(manifest["metadata"].get("labels") or {})


def _role(manifest: Manifest) -> str:
    return labels(manifest).get("duetserve.io/role", "")


def _key(manifest: Manifest) -> Key:
    return manifest["kind"], manifest["metadata"]["namespace"], manifest["metadata"]["name"]


def _content(manifest: Manifest) -> Manifest:
    metadata = {key: value for key, value in manifest["metadata"].items() if key != "resourceVersion"}
    return {**manifest, "metadata": metadata}


def _owned_by(child: Manifest, uid: str) -> bool:
    return any(each["uid"] == uid for each in child["metadata"].get("ownerReferences") or ())


def _pod_from(deployment: Manifest, name: str) -> Manifest:
    template = deployment["spec"]["template"]
    owner = {"apiVersion": "apps/v1", "kind": "Deployment", "name": deployment["metadata"]["name"], "controller": True}
    metadata = {
        **copy.deepcopy(template["metadata"]),
        "name": name,
        "namespace": deployment["metadata"]["namespace"],
        "ownerReferences": [{**owner, "uid": deployment["metadata"]["uid"]}],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": copy.deepcopy(template["spec"])}


def _deletion_rank(pod: Manifest) -> tuple[bool, bool, bool, int, str]:
    """Who goes first: unassigned, pending, not ready, then by deletion cost."""
    status = pod.get("status") or {}
    conditions = {each["type"]: each["status"] for each in status.get("conditions") or ()}
    cost = int((pod["metadata"].get("annotations") or {}).get(DELETION_COST_ANNOTATION, "0"))
    return (
        "nodeName" in pod["spec"],
        status.get("phase") == "Running",
        conditions.get("Ready") == "True",
        cost,
        pod["metadata"]["name"],
    )


# --- who owns which field ---


def _owned_part(manifest: Manifest) -> Manifest:
    metadata = {key: manifest["metadata"][key] for key in ("labels", "annotations") if key in manifest["metadata"]}
    if "ownerReferences" in manifest["metadata"]:
        metadata["ownerReferences"] = manifest["metadata"]["ownerReferences"]
    body = {key: value for key, value in manifest.items() if key not in ("apiVersion", "kind", "metadata", "status")}
    return {**body, "metadata": metadata}


def _fields(value: Any) -> Manifest:
    """As managedFields writes them; a list is one field."""
    if not isinstance(value, dict):
        return {}
    return {f"f:{key}": _fields(part) for key, part in value.items()}


def _entry(manager: str, operation: str, fields: Manifest, *, subresource: str = "") -> Manifest:
    entry = {"manager": manager, "operation": operation, "fieldsType": "FieldsV1", "fieldsV1": fields}
    return {**entry, "subresource": subresource} if subresource else entry


def _without(entry: Manifest, taken: Manifest) -> Manifest:
    """The entry without the fields that somebody else has now."""

    def rest(fields: Manifest, gone: Manifest) -> Manifest:
        result = {}
        for key, part in fields.items():
            if key not in gone:
                result[key] = part
            elif part and gone[key] and (inner := rest(part, gone[key])):
                result[key] = inner
        return result

    return {**entry, "fieldsV1": rest(entry["fieldsV1"], taken)}


def _changed(before: Any, after: Any, changes: Any) -> Manifest:
    """The fields that a merge patch really changed."""
    result: Manifest = {}
    for key, part in changes.items():
        old, new = before.get(key), after.get(key)
        if old == new:
            continue
        if isinstance(part, dict) and isinstance(old, dict) and isinstance(new, dict):
            result[f"f:{key}"] = _changed(old, new, part)
        else:
            result[f"f:{key}"] = {}
    return result


def _merge(target: Manifest, source: Manifest) -> None:
    for key, value in source.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        else:
            target[key] = copy.deepcopy(value)


def _remove(target: Manifest, fields: Manifest, *, keep: list[Manifest]) -> None:
    """Take away the fields that were owned and that nobody keeps."""
    for key, part in fields.items():
        name = key.removeprefix("f:")
        kept = [other[key] for other in keep if key in other]
        if not kept:
            target.pop(name, None)
            if name == "replicas":
                target[name] = 1
        elif part and isinstance(target.get(name), dict):
            _remove(target[name], part, keep=kept)


def _merge_patch(target: Manifest, changes: Manifest) -> None:
    for key, value in changes.items():
        if value is None:
            target.pop(key, None)
        elif isinstance(value, dict):
            if not isinstance(target.get(key), dict):
                target[key] = {}
            _merge_patch(target[key], value)
        else:
            target[key] = copy.deepcopy(value)
