"""Which fields are live and which roll pods, field by field: the table against the builders of pod templates."""

from typing import Any

import pytest
from tests.support.duet_objects import minimal, patched, schema_of

from duet_engine.protocol import Role
from duet_operator.api.crd import custom_resource_definition
from duet_operator.api.effects import ROLLING, parts, rolled_by, rolling_paths, same_parts
from duet_operator.api.reference import leaves
from duet_operator.api.v1alpha1 import DuetDeployment, DuetSpec, parse
from duet_operator.resources.gateway import gateway_deployment
from duet_operator.resources.images import resolve
from duet_operator.resources.pools import pool_deployment


def node(schema: dict[str, Any], path: str) -> dict[str, Any]:
    for name in path.split("."):
        schema = schema["properties"][name]
    return schema


SPEC = schema_of(custom_resource_definition(refuse_unsupported=False))["properties"]["spec"]
REFUSED = schema_of(custom_resource_definition())["properties"]["spec"]
FIELDS = dict(leaves(SPEC))
WORDS = {path: field["description"] for path, field in leaves(REFUSED)}
UNSERVED_PARTS = {
    part
    for part in {path.rsplit(".", depth)[0] for path in FIELDS for depth in range(1, 4)} | FIELDS.keys()
    if node(REFUSED, part)["description"].startswith("Not supported yet")
}
PATCH = {"metadata": {"annotations": {"example.com/changed": "yes"}}}
VALUES: dict[str, Any] = {
    "engine.args": ["--changed"],
    "engine.env": [{"name": "CHANGED"}],
    "engine.template": PATCH,
    "gateway.service.annotations": {"example.com/changed": "yes"},
    "gateway.template": PATCH,
    "pools.decode.gpu.migProfile": "3g.40gb",
    "pools.decode.gpu.resourceName": "example.com/other",
    "pools.decode.template": PATCH,
    "pools.prefill.gpu.migProfile": "3g.40gb",
    "pools.prefill.gpu.resourceName": "example.com/other",
    "pools.prefill.template": PATCH,
    "scaling.schedule": [{"cron": "0 8 * * *", "timeZone": "UTC", "durationSeconds": 3600, "decodeMin": 2}],
    "slo.classes": [{"name": "other", "weight": 2}],
}
"""Where a value can't be made up from the schema."""
BESIDE: dict[str, dict[str, Any]] = {
    "model.source.huggingFace": {"spec.model.source.huggingFace.tokenSecretRef.name": "token"},
    "model.source.image": {"spec.model.source.image.reference": "weights:1"},
    "model.source.persistentVolumeClaim": {"spec.model.source.persistentVolumeClaim.claimName": "weights"},
}
"""What the fields of a part need beside them, before and after their change."""


def another(path: str, field: dict[str, Any]) -> Any:
    """A value that is valid and not the default."""
    if path in VALUES:
        return VALUES[path]
    if "enum" in field:
        refused = WORDS[path].partition("Not supported yet:")[2]
        served = [value for value in field["enum"] if value not in refused and value != field.get("default")]
        return served[0] if served else field["default"]
    if field["type"] == "boolean":
        return not field["default"]
    if field["type"] == "integer":
        return (
            field["default"] + 1 if field.get("default", field["maximum"]) < field["maximum"] else field["minimum"] + 1
        )
    return "20" if path.endswith("mpsMemory") else "other"


def templates(duet: DuetDeployment) -> dict[str, Any]:
    """Pod templates by whose they are."""
    images = resolve(duet)
    deployments = {role.value: pool_deployment(duet, role, images) for role in (Role.PREFILL, Role.DECODE)}
    deployments["gateway"] = gateway_deployment(duet, images)
    return {pods: deployment["spec"]["template"] for pods, deployment in deployments.items()}


@pytest.mark.parametrize("path", FIELDS)
def test_a_change_rolls_the_pods_that_the_table_says(path: str) -> None:
    beside = next((patch for part, patch in BESIDE.items() if path.startswith(f"{part}.")), {})
    base, value = patched(minimal(), beside), another(path, FIELDS[path])
    before, after = (templates(parse(each)) for each in (base, patched(base, {f"spec.{path}": value})))
    rolled = {pods for pods, template in after.items() if template != before[pods]}
    if any(path == part or path.startswith(f"{part}.") for part in UNSERVED_PARTS) or value == FIELDS[path].get(
        "default"
    ):
        assert rolled <= set(rolled_by(path))
    else:
        assert rolled == set(rolled_by(path))


@pytest.mark.parametrize("path", FIELDS)
def test_the_field_s_own_words_agree_with_the_table(path: str) -> None:
    description = FIELDS[path]["description"]
    if "Live." in description and "rolls" not in description:
        assert rolled_by(path) == ()
    if "A change rolls" in description and "is live" not in description:
        assert rolled_by(path) != ()


def test_every_rolling_part_is_a_field() -> None:
    for part in ROLLING:
        assert any(path == part or path.startswith(f"{part}.") for path in FIELDS), part


# --- what was recorded by another version ---


def spec(changes: dict[str, Any] | None = None) -> DuetSpec:
    return parse(patched(minimal(), changes or {})).spec


def test_a_field_that_an_older_version_did_not_know_has_its_default() -> None:
    recorded = parts(spec(), rolling_paths("decode"))
    del recorded["engine"]["transferBackend"], recorded["pools.decode.gpu"]
    assert same_parts(recorded, spec(), rolling_paths("decode"))
    assert not same_parts(recorded, spec({"spec.engine.transferBackend": "nixl"}), rolling_paths("decode"))


def test_a_field_that_a_newer_version_knew_is_ignored() -> None:
    recorded = parts(spec(), rolling_paths("decode"))
    recorded["engine"]["ofTomorrow"] = 1
    assert same_parts(recorded, spec(), rolling_paths("decode"))


def test_what_cannot_be_read_any_more_is_a_change() -> None:
    recorded = parts(spec(), rolling_paths("decode"))
    recorded["drain.timeoutSeconds"] = "soon"
    assert not same_parts(recorded, spec(), rolling_paths("decode"))


def test_the_other_pool_s_and_live_fields_are_no_change() -> None:
    recorded = parts(spec(), rolling_paths("decode"))
    changed = spec({"spec.pools.prefill.template": PATCH, "spec.slo.itlMilliseconds": 10, "spec.rollout.maxSurge": 1})
    assert same_parts(recorded, changed, rolling_paths("decode"))
    assert not same_parts(parts(spec(), rolling_paths("prefill")), changed, rolling_paths("prefill"))
