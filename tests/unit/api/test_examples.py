"""The examples show what they say they show."""

from pathlib import Path
from typing import Any

import yaml
from tests.support.duet_objects import minimal, nodes, schema_of

from duet_operator.api.crd import custom_resource_definition

EXAMPLES = Path(__file__).parents[3] / "examples"

NOT_SHOWN = {
    "spec.pools.prefill.replicas",
    "spec.pools.decode.replicas",
    *(f"spec.model.source.persistentVolumeClaim.{field}" for field in ("claimName", "path")),
    *(f"spec.model.source.image.{field}" for field in ("reference", "path", "pullPolicy")),
}
"""Fields of another mode, or of another source of weights, than the one that the full example shows."""


def read(name: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((EXAMPLES / name).read_text())
    return document


def values_at(document: Any, path: list[str]) -> list[Any]:
    """Values of a field in a document, one for each item of the lists on the way."""
    if not path:
        return [document]
    name, *rest = path
    if name.removesuffix("[]") not in document:
        return []
    inner = document[name.removesuffix("[]")]
    return [value for item in (inner if name.endswith("[]") else [inner]) for value in values_at(item, rest)]


def test_the_minimal_example_is_the_smallest_useful_object() -> None:
    assert read("minimal.yaml")["spec"] == minimal()["spec"]


def served_fields() -> set[str]:
    """Leaves of spec that are served now; both pools have the same ones, so one of them may show a field."""
    fields = {path: node for path, node in nodes(schema_of(custom_resource_definition())) if path.startswith("spec.")}
    refused = [path for path, node in fields.items() if node.get("description", "").startswith("Not supported yet")]
    return {
        path
        for path, node in fields.items()
        if "properties" not in node and not path.endswith(("[]", ".*"))
        if not any(path == each or path.startswith((f"{each}.", f"{each}[")) for each in refused)
    }


def test_the_full_example_shows_each_served_field() -> None:
    document = read("full.yaml")
    shown = {path for path in served_fields() if values_at(document, path.split("."))}
    in_either_pool = {path.replace(".prefill.", ".decode.") for path in shown}
    missing = {
        path for path in served_fields() - NOT_SHOWN if path.replace(".prefill.", ".decode.") not in in_either_pool
    }
    assert missing == set()
