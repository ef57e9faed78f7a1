"""Which fields of a child are ours: whether a manifest must be applied again, and how a created object becomes applied.

Invariant: pure. Fields are compared by who owns them, never by value: the API server fills in defaults and normalises
quantities, but whoever changes a field's value takes it away from us in `metadata.managedFields`.
"""

from __future__ import annotations

import copy
import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

Manifest = dict[str, Any]

HASH_ANNOTATION = "duetserve.io/applied"
"""On every child: hash of the manifest that was applied last."""


def stamped(manifest: Manifest) -> Manifest:
    """The manifest with its own hash among its annotations."""
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    metadata = manifest["metadata"]
    annotations = {**metadata.get("annotations", {}), HASH_ANNOTATION: digest}
    return {**manifest, "metadata": {**metadata, "annotations": annotations}}


def differs(manifest: Manifest, observed: Manifest, *, manager: str) -> bool:
    """Whether a stamped manifest must be applied: it's another one than last time, or somebody changed what it says."""
    applied = (observed["metadata"].get("annotations") or {}).get(HASH_ANNOTATION)
    if applied != manifest["metadata"]["annotations"][HASH_ANNOTATION]:
        return True
    owned = _applied_fields(observed, manager)
    said = {key: value for key, value in manifest.items() if key not in ("apiVersion", "kind")}
    said["metadata"] = {key: value for key, value in said["metadata"].items() if key not in ("name", "namespace")}
    return owned is None or not _owns(owned, said)


def handed_over(created: Manifest, *, manager: str, keep_replicas: bool) -> list[Manifest] | None:
    """`managedFields` with what `manager` created made into what it applied, without a pool's `replicas`.

    A field that is still owned through a creation would outlive its removal from the manifest, and replicas that are
    owned through an apply would be reset by the next one without them. None where there is nothing to hand over.
    """
    entries = created["metadata"].get("managedFields") or []
    mine = [entry for entry in entries if _is(entry, manager, "Update")]
    if not mine:
        return None
    others = [entry for entry in entries if entry not in mine]
    if any(_is(entry, manager, "Apply") for entry in others):
        return others
    fields = copy.deepcopy(mine[0]["fieldsV1"])
    if not keep_replicas:
        fields.get("f:spec", {}).pop("f:replicas", None)
    return [*others, {**mine[0], "operation": "Apply", "fieldsV1": fields}]


def controlled_by(child: Manifest, uid: str) -> bool:
    """Whether the child belongs to the object of that uid."""
    references = child["metadata"].get("ownerReferences") or ()
    return any(reference.get("controller") and reference.get("uid") == uid for reference in references)


def _is(entry: Mapping[str, Any], manager: str, operation: str) -> bool:
    return entry.get("manager") == manager and entry.get("operation") == operation and not entry.get("subresource")


def _applied_fields(observed: Manifest, manager: str) -> Manifest | None:
    for entry in observed["metadata"].get("managedFields") or ():
        if _is(entry, manager, "Apply"):
            return dict(entry["fieldsV1"])
    return None


def _owns(fields: Mapping[str, Any], value: object) -> bool:
    """Whether the set of fields covers everything that `value` says. A field without parts is owned as a whole."""
    if not fields or not value:
        return True
    if isinstance(value, dict):
        return all(
            f"f:{key}" in fields and _owns(fields[f"f:{key}"], part)
            for key, part in value.items()
            if part not in ({}, [])
        )
    if isinstance(value, list):
        return all(any(_matches(key, item) and _owns(parts, item) for key, parts in fields.items()) for item in value)
    return True


def _matches(key: str, item: object) -> bool:
    """Whether a key of a set of fields (`k:{"name":"x"}` or `v:"x"`) means this item of a list."""
    prefix, _, text = key.partition(":")
    if prefix == "v":
        return bool(json.loads(text) == item)
    if prefix != "k" or not isinstance(item, dict):
        return False
    return all(item.get(name, wanted) == wanted for name, wanted in json.loads(text).items())
