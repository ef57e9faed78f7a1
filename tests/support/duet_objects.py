"""DuetDeployment documents for tests, and what the CRD says about them."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Document = dict[str, Any]
Patch = Mapping[str, Any]
"""Dotted path of a field -> its value; list indices stand as numbers."""


def minimal(*, group: str = "duetserve.io", name: str = "example") -> Document:
    """The smallest useful object."""
    return {
        "apiVersion": f"{group}/v1alpha1",
        "kind": "DuetDeployment",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"model": {"id": "Qwen/Qwen3-8B"}, "slo": {"ttftMilliseconds": 800, "itlMilliseconds": 50}},
    }


def patched(document: Document, patch: Patch) -> Document:
    """A copy with these fields set."""
    result = copy.deepcopy(document)
    for path, value in patch.items():
        *parents, last = path.split(".")
        place = result
        for part in parents:
            place = place.setdefault(part, {})
        place[last] = copy.deepcopy(value)
    return result


def beside(definition: Document, group: str) -> Document:
    """The same CRD under another group, to be installed beside the real one."""
    names = {
        key: value for key, value in definition["spec"]["names"].items() if key not in ("shortNames", "categories")
    }
    return definition | {
        "metadata": {"name": f"{names['plural']}.{group}"},
        "spec": definition["spec"] | {"group": group, "names": names},
    }


def schema_of(definition: Document) -> Document:
    """The schema of a CRD's only version."""
    schema: Document = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


def nodes(schema: Document, path: str = "") -> Iterator[tuple[str, Document]]:
    """Each node of a schema with its path; items of a list stand as `[]`, values of a map as `.*`."""
    yield path, schema
    for name, part in schema.get("properties", {}).items():
        yield from nodes(part, f"{path}.{name}".lstrip("."))
    if "items" in schema:
        yield from nodes(schema["items"], f"{path}[]")
    if "additionalProperties" in schema:
        yield from nodes(schema["additionalProperties"], f"{path}.*")


@dataclass(frozen=True, slots=True)
class CelRule:
    """A CEL rule of a CRD, with the field that it blames."""

    field: str
    message: str
    reason: str

    @property
    def refuses_unsupported(self) -> bool:
        return "is not supported yet" in self.message


def cel_rules(definition: Document) -> list[CelRule]:
    """All CEL rules of a CRD."""
    return [
        CelRule(path + rule.get("fieldPath", ""), rule["message"], rule["reason"])
        for path, node in nodes(schema_of(definition))
        for rule in node.get("x-kubernetes-validations", ())
    ]


def with_defaults(schema: Document, value: Any) -> Any:
    """What the API server stores: absent fields filled in with the schema's defaults, at every depth."""
    if isinstance(value, list) and "items" in schema:
        return [with_defaults(schema["items"], item) for item in value]
    if not isinstance(value, dict) or "properties" not in schema:
        return value
    filled = dict(value)
    for name, part in schema["properties"].items():
        if name not in filled and "default" in part:
            filled[name] = copy.deepcopy(part["default"])
        if name in filled:
            filled[name] = with_defaults(part, filled[name])
    return filled
