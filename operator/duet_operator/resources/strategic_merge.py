"""Strategic merge of a user's patch into a pod template, as `kubectl patch` would do it.

Invariant: inputs are left as they are; an empty patch changes nothing; parts that a patch doesn't name stay. Maps merge
by key and null removes one; the lists in `MERGE_KEYS` merge by the key that Kubernetes uses for them, with new items
last (kubectl puts them first, which would make a sidecar the default container); all other lists are replaced.
`$patch: delete` and `$patch: replace` work on maps, `$patch: delete` on an item of a merged list, an item that is only
`$patch: replace` on the whole list, `$retainKeys` on maps.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

MERGE_KEYS: Mapping[str, str] = {
    "containers": "name",
    "initContainers": "name",
    "ephemeralContainers": "name",
    "volumes": "name",
    "env": "name",
    "imagePullSecrets": "name",
    "schedulingGates": "name",
    "resourceClaims": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "ports": "containerPort",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
    "ownerReferences": "uid",
}
"""List -> the field that tells its items apart (patchMergeKey of core/v1). Tolerations and readinessGates have none."""

DIRECTIVE = "$patch"
RETAIN_KEYS = "$retainKeys"


class InvalidTemplateError(ValueError):
    """A patch that can't be merged; the message names the field and the fix."""


def merge(original: Mapping[str, Any], patch: Mapping[str, Any], *, path: str) -> dict[str, Any]:
    """`original` with `patch` merged in. `path` names the patch in errors.

    Raises:
        InvalidTemplateError: where the patch has another shape than a pod template, or a directive that isn't known.
    """
    return _merge_maps(original, patch, path) or {}


def _merge_maps(original: Mapping[str, Any], patch: Mapping[str, Any], path: str) -> dict[str, Any] | None:
    """The merged map, None where the patch deletes it."""
    changes = dict(patch)
    directive = changes.pop(DIRECTIVE, "merge")
    if directive == "delete":
        return None
    if directive not in ("merge", "replace"):
        raise InvalidTemplateError(f"{path}.{DIRECTIVE} is {directive!r}: it must be merge, replace or delete")
    kept: Mapping[str, Any] = {} if directive == "replace" else original
    if RETAIN_KEYS in changes:
        retained = _list(changes.pop(RETAIN_KEYS), f"{path}.{RETAIN_KEYS}")
        kept = {key: value for key, value in kept.items() if key in retained}
    merged = copy.deepcopy(dict(kept))
    for key, value in changes.items():
        if key.startswith("$"):
            raise InvalidTemplateError(f"{path}.{key} isn't supported; use {DIRECTIVE} or {RETAIN_KEYS}")
        result = _merge_values(key, merged.get(key), value, f"{path}.{key}")
        if result is None:
            merged.pop(key, None)
        else:
            merged[key] = result
    return merged


def _merge_values(key: str, original: object, value: object, path: str) -> object:
    """What becomes of one field, None where it goes."""
    if value is None:
        return None
    if original is not None and _shape(original) != _shape(value):
        raise InvalidTemplateError(f"{path} must be {_shape(original)}, found {_shape(value)}")
    if isinstance(value, Mapping):
        return _merge_maps(original if isinstance(original, Mapping) else {}, value, path)
    if isinstance(value, list) and key in MERGE_KEYS:
        return _merge_lists(original if isinstance(original, list) else [], value, MERGE_KEYS[key], path)
    return copy.deepcopy(value)


def _merge_lists(original: Sequence[Any], patch: Sequence[Any], key: str, path: str) -> list[Any]:
    """Items of equal key merged in place, others behind; an item that is only `$patch: replace` drops the original."""
    items = [_map(item, f"{path}[{index}]") for index, item in enumerate(patch)]
    replaces = {DIRECTIVE: "replace"} in items
    merged: dict[Any, Mapping[str, Any]] = {} if replaces else {item[key]: item for item in original}
    for index, item in enumerate(items):
        if item == {DIRECTIVE: "replace"}:
            continue
        place = f"{path}[{index}]"
        if item.get(DIRECTIVE) == "replace":
            raise InvalidTemplateError(
                f"{place}.{DIRECTIVE} would replace the whole list; put it in an item of its own"
            )
        if key not in item:
            raise InvalidTemplateError(f"{place}.{key} is missing: it tells which item is meant")
        result = _merge_maps(merged.get(item[key], {}), item, place)
        if result is None:
            merged.pop(item[key], None)
        else:
            merged[item[key]] = result
    return [copy.deepcopy(dict(item)) for item in merged.values()]


def _map(value: object, path: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidTemplateError(f"{path} must be {_shape({})}, found {_shape(value)}")
    return dict(value)


def _list(value: object, path: str) -> Sequence[Any]:
    if not isinstance(value, list):
        raise InvalidTemplateError(f"{path} must be {_shape([])}, found {_shape(value)}")
    return value


def _shape(value: object) -> str:
    if isinstance(value, Mapping):
        return "an object"
    return "a list" if isinstance(value, list) else "a plain value"
