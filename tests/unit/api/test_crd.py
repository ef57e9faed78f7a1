"""The generated CRD: what is checked in, and what must hold of each of its fields."""

import json
import re
from pathlib import Path
from typing import Any

from tests.support.duet_objects import cel_rules, minimal, nodes, schema_of, with_defaults

from duet_operator.api.crd import custom_resource_definition, to_yaml
from duet_operator.api.reference import reference
from duet_operator.api.v1alpha1 import parse

ROOT = Path(__file__).parents[3]
CHECKED_IN = ROOT / "crds" / "duetserve.io_duetdeployments.yaml"
CRD = custom_resource_definition()
FIELDS = dict(nodes(schema_of(CRD)))
SPEC_FIELDS = {path: node for path, node in FIELDS.items() if path.startswith("spec.")}

UNSUPPORTED = {
    *(
        f"spec.pools.{pool}.gpu.{field}"
        for pool in ("prefill", "decode")
        for field in ("type", "migProfile", "mpsPercent", "mpsMemory", "claimTemplate", "pricePerHourMilli")
    ),
    "spec.multiplexing",
    "spec.scaling.schedule",
    "spec.signals",
}
"""Fields that the API has and that nothing serves yet. This list only shrinks."""

UNSUPPORTED_VALUES = {
    *(f"spec.pools.{pool}.gpu.sharing {value}" for pool in ("prefill", "decode") for value in ("MIG", "MPS")),
}
"""Values of served fields that nothing serves yet. This list only shrinks."""


def test_the_checked_in_definition_is_the_generated_one() -> None:
    assert CHECKED_IN.read_text() == to_yaml(), f"run: python -m duet_operator.api.crd > {CHECKED_IN.relative_to(ROOT)}"


def test_the_checked_in_reference_is_the_generated_one() -> None:
    page = ROOT / "docs" / "api-reference.md"
    assert page.read_text() == reference(), f"run: python -m duet_operator.api.reference > {page.relative_to(ROOT)}"


def test_the_charts_copies_are_the_same() -> None:
    for copy in (ROOT / "charts" / "duet").rglob(CHECKED_IN.name):
        assert copy.read_text() == CHECKED_IN.read_text(), copy


def test_exactly_these_fields_and_values_are_refused_for_now() -> None:
    refused = {
        rule.message.partition(" is not supported yet")[0] for rule in cel_rules(CRD) if rule.refuses_unsupported
    }
    assert refused == UNSUPPORTED | UNSUPPORTED_VALUES


def test_an_unsupported_field_is_not_filled_in_by_a_default() -> None:
    stored = with_defaults(schema_of(CRD), minimal())
    for path in UNSUPPORTED:
        *parents, last = path.split(".")
        place = stored
        for part in parents:
            place = place[part]
        assert last not in place, path


def test_the_definition_and_the_models_have_the_same_defaults() -> None:
    assert parse(with_defaults(schema_of(CRD), minimal())) == parse(minimal())
    everything = custom_resource_definition(refuse_unsupported=False)
    assert parse(with_defaults(schema_of(everything), minimal())) == parse(minimal())


def test_each_default_of_a_served_field_is_written_out() -> None:
    stored = with_defaults(schema_of(CRD), minimal())["spec"]
    assert stored["pools"] == {
        "prefill": {"minReplicas": 0, "maxReplicas": 8, "gpu": {"sharing": "None"}},
        "decode": {"minReplicas": 1, "maxReplicas": 8, "gpu": {"sharing": "None"}},
    }
    assert stored["scaling"] == {
        "mode": "Auto",
        "intervalSeconds": 5,
        "scaleDown": {"stabilizationSeconds": 180, "victims": "Pack"},
        "idleSeconds": 600,
        "pendingDeadlineSeconds": 900,
        "spareReplicas": 0,
        "coldStartSeconds": 120,
    }


def test_status_has_no_defaults() -> None:
    assert [path for path, node in FIELDS.items() if path.startswith("status") and "default" in node] == []


def bounded(node: dict[str, Any]) -> bool:
    match node["type"]:
        case "string":
            return "maxLength" in node or "enum" in node or "format" in node
        case "array":
            return "maxItems" in node and "x-kubernetes-list-type" in node
        case "object":
            return "properties" in node or "maxProperties" in node or "x-kubernetes-preserve-unknown-fields" in node
        case "integer":
            return "minimum" in node
        case kind:
            return bool(kind == "boolean")  # never "number": no floats in the API


def test_each_field_is_bounded() -> None:
    values_of_named_numbers = {path for path in FIELDS if path.startswith("status.decision.") and path.endswith(".*")}
    generic = {"apiVersion", "kind", "metadata"}
    unbounded = {path for path, node in FIELDS.items() if not bounded(node)}
    assert unbounded - values_of_named_numbers - generic == set()


def test_each_number_of_spec_has_both_bounds() -> None:
    assert [path for path, node in SPEC_FIELDS.items() if node["type"] == "integer" and "maximum" not in node] == []


def documented(path: str) -> bool:
    return not re.search(r"(\[\]|\.\*)$", path)


def test_each_field_is_described_in_sentences() -> None:
    for path, node in FIELDS.items():
        if path in {"apiVersion", "kind", "metadata"} or not documented(path):
            continue
        assert re.fullmatch(r"[A-Z0-9].*\.", node.get("description", "")), path


PARTS = re.compile(
    r"spec\.(model\.source\.|slo\.classes\[\]\.name|engine\.env\[\]|gateway\.(tls|apiKeys)\.)|\.schedule\[\]\."
)
"""Fields inside one that says for all of them whether a change is live."""

LIFE = re.compile(r"\bLive\b|rolls (the pool's |gateway )?pods|starts or removes gateway pods| is live\b")


def test_each_field_of_spec_says_its_default_and_whether_a_change_rolls_pods() -> None:
    for path, node in SPEC_FIELDS.items():
        if not documented(path) or "properties" in node or PARTS.search(path):
            continue
        assert LIFE.search(node["description"]), path
        said = re.search(r"\bDefault:? ([^\s:;,]+)|\bRequired\b", node["description"])
        assert said, path
        if "default" in node:
            assert said[1].rstrip(".") == json.dumps(node["default"]).strip('"'), path


def test_each_rule_names_its_field_and_the_fix() -> None:
    for rule in cel_rules(CRD):
        assert ";" in rule.message, rule
        assert rule.message.split()[0].startswith((rule.field.rpartition(".")[0] or "metadata", "spec")), rule


def test_columns_show_the_state_at_a_glance_and_the_reason_when_wide() -> None:
    columns = CRD["spec"]["versions"][0]["additionalPrinterColumns"]
    assert [column["name"] for column in columns if column["priority"] == 0] == [
        "Ready",
        "Prefill",
        "Decode",
        "TTFT P95",
        "ITL P95",
        "Attainment",
        "Deflected",
        "Age",
    ]
    assert [column["name"] for column in columns if column["priority"] == 1] == ["Reason", "Decision"]


def test_columns_read_fields_that_exist() -> None:
    for column in CRD["spec"]["versions"][0]["additionalPrinterColumns"]:
        path = re.sub(r"\[\?\(.*?\)\]", "[]", column["jsonPath"].lstrip("."))
        assert path in FIELDS or path == "metadata.creationTimestamp", column
