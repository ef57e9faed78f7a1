"""The API server and the models agree on each bound, pattern and type of the schema."""

from collections.abc import Iterator
from typing import Any

import pytest
from tests.support.crd_server import CrdServer
from tests.support.duet_objects import Document, beside, minimal, nodes, schema_of

from duet_dev.cluster import Cluster
from duet_operator.api.crd import custom_resource_definition
from duet_operator.api.v1alpha1 import API_VERSION, InvalidObjectError, parse

pytestmark = pytest.mark.apiserver

GROUP = "bounds.duetserve.io"
"""A definition with all bounds and no CEL rules, so that only the bounds speak."""

ODD_TEXTS = (
    "",
    "a",
    "A",
    "0",
    "-a",
    "a-",
    "a b",
    " ",
    "a/b",
    "/a",
    "a.b",
    "a\n",
    "ä",
    "3g.40gb",
    "20Gi",
    "0 22 * * MON",
)


def definition() -> Document:
    crd = beside(custom_resource_definition(refuse_unsupported=False), GROUP)
    for _, node in nodes(schema_of(crd)):
        node.pop("x-kubernetes-validations", None)
    return crd


SPEC = schema_of(definition())["properties"]["spec"]
FIELDS = [path.removeprefix("spec.") for path, _ in nodes(SPEC, "spec") if path != "spec" and ".template." not in path]


def probes(schema: Document) -> Iterator[Any]:
    """Values around the bounds of one field, and of other types."""
    kind = schema["type"]
    if kind == "integer":
        yield from (schema["minimum"] - 1, schema["minimum"], schema["maximum"], schema["maximum"] + 1)
    elif "enum" in schema:
        yield from (*schema["enum"], "Sideways")
    elif kind == "string":
        yield from (*ODD_TEXTS, "a" * schema["maxLength"], "a" * (schema["maxLength"] + 1))
    elif kind == "array":
        yield [smallest(schema["items"])]
    elif kind == "object":
        yield smallest(schema)
    yield from (1, 1.5, "1", True, [], {})


def smallest(schema: Document, name: str = "") -> Any:
    """A value with its required fields only."""
    if "enum" in schema:
        return schema["enum"][0]
    match schema["type"]:
        case "object":
            return {part: smallest(schema["properties"][part], part) for part in schema.get("required", ())}
        case "integer":
            return schema["minimum"]
        case _:
            return "0 0 * * *" if name == "cron" else "a"


def smallest_with(schema: Document, path: list[str], value: Any) -> Any:
    """The smallest value of `schema` that has `value` at `path`."""
    if not path:
        return value
    name, *rest = path
    part = schema["properties"][name.removesuffix("[]")]
    inner = [smallest_with(part["items"], rest, value)] if name.endswith("[]") else smallest_with(part, rest, value)
    return smallest(schema) | {name.removesuffix("[]"): inner}


def node_at(path: str) -> Document:
    return next(node for place, node in nodes(SPEC, "spec") if place == f"spec.{path}")


def is_read(document: Document) -> bool:
    try:
        parse(document | {"apiVersion": API_VERSION})
    except InvalidObjectError:
        return False
    return True


@pytest.fixture(scope="module")
def server(apiserver: Cluster) -> Iterator[CrdServer]:
    with CrdServer(apiserver) as server, server.installed(definition()):
        yield server


@pytest.mark.parametrize("path", [path for path in FIELDS if not path.endswith(".*")])
def test_server_and_models_give_the_same_verdict_around_the_bounds(server: CrdServer, path: str) -> None:
    verdicts = set()
    for value in probes(node_at(path)):
        document = minimal(group=GROUP) | {"spec": smallest_with(SPEC, path.split("."), value)}
        verdict = server.verdict(document)
        assert is_read(document) is verdict.accepted, f"{path}: {value!r}: {verdict.message}"
        verdicts.add(verdict.accepted)
    assert verdicts == {True, False}, "the probes of this field show nothing"
