"""The converter, by tables: what a model says and the structural schema that comes of it."""

from typing import Annotated, Any, ClassVar, Literal

import pytest
from pydantic import Field, create_model

from duet_operator.api.base import ATOMIC, ApiModel, NotSupportedYet, Rule, Time, list_map, not_supported_yet
from duet_operator.api.structural import NotStructuralError, structural_schema, without_defaults


class Item(ApiModel):
    """An item."""

    name: str
    """Name of the item."""


class Part(ApiModel):
    """A part."""

    size: int = 3
    """Size of the part."""
    colour: str | None = None
    """Colour of the part."""


def converted(kind: Any, field: Any = ...) -> tuple[dict[str, Any], dict[str, Any]]:
    """The schema of an object with one field `it` of that kind, and the schema of the field."""
    model = create_model("Object", __base__=ApiModel, it=(kind, field))
    schema = structural_schema(model)
    return schema, schema["properties"]["it"]


@pytest.mark.parametrize(
    ("kind", "field", "expected"),
    [
        (int, ..., {"type": "integer"}),
        (int, 5, {"type": "integer", "default": 5}),
        (int, 0, {"type": "integer", "default": 0}),
        (bool, False, {"type": "boolean", "default": False}),
        (str | None, None, {"type": "string"}),
        (Annotated[int, Field(ge=1, le=9)] | None, None, {"type": "integer", "minimum": 1, "maximum": 9}),
        (int, Field(gt=0), {"type": "integer", "minimum": 0, "exclusiveMinimum": True}),
        (int, Field(lt=9), {"type": "integer", "maximum": 9, "exclusiveMaximum": True}),
        (Literal["a"], ..., {"type": "string", "enum": ["a"]}),
        (Literal["a", "b"], "b", {"type": "string", "enum": ["a", "b"], "default": "b"}),
        (str, Field(pattern="^a$", max_length=3), {"type": "string", "pattern": "^a$", "maxLength": 3}),
        (Time, ..., {"type": "string", "format": "date-time"}),
        (dict[str, Any], ..., {"type": "object", "x-kubernetes-preserve-unknown-fields": True}),
        (dict[str, int], ..., {"type": "object", "additionalProperties": {"type": "integer"}}),
        (
            tuple[str, ...],
            Field(default=(), max_length=4, json_schema_extra=ATOMIC),
            {"type": "array", "items": {"type": "string"}, "maxItems": 4, "x-kubernetes-list-type": "atomic"},
        ),
        (
            tuple[Item, ...],
            Field(default=(), json_schema_extra=list_map("name")),
            {
                "type": "array",
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["name"],
                "items": {
                    "type": "object",
                    "description": "An item.",
                    "required": ["name"],
                    "properties": {"name": {"type": "string", "description": "Name of the item."}},
                },
            },
        ),
        (
            Part,
            Part(),
            {
                "type": "object",
                "description": "A part.",
                "default": {"size": 3},
                "properties": {
                    "size": {"type": "integer", "default": 3, "description": "Size of the part."},
                    "colour": {"type": "string", "description": "Colour of the part."},
                },
            },
        ),
    ],
)
def test_a_field_becomes_its_structural_form(kind: Any, field: Any, expected: dict[str, Any]) -> None:
    _, it = converted(kind, field)
    assert it == expected


@pytest.mark.parametrize(
    ("field", "required"), [(..., ["it"]), (Field(ge=1), ["it"]), (5, None), (Field(default=5), None)]
)
def test_a_field_without_a_default_is_required(field: Any, required: list[str] | None) -> None:
    schema, _ = converted(int, field)
    assert schema.get("required") == required


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (int | str, "a union of types"),
        (Any, "exactly one type"),
        (dict[Annotated[str, Field(max_length=3)], int], "propertyNames"),
        (tuple[int, str], "prefixItems"),
    ],
    ids=str,
)
def test_what_a_structural_schema_cannot_say_is_refused_with_the_fields_path(kind: Any, reason: str) -> None:
    with pytest.raises(NotStructuralError, match=f"^it: .*{reason}"):
        converted(kind)


class Ruled(ApiModel):
    """A part with rules."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(expression="self.low <= self.high", message="{path}.low is too high; lower it", field=".low"),
    )

    low: int = 1
    """Lower end."""
    high: int = 2
    """Upper end."""


def test_a_rule_names_the_place_of_its_object() -> None:
    schema, _ = converted(tuple[Ruled, ...], ())
    assert schema["properties"]["it"]["items"]["x-kubernetes-validations"] == [
        {
            "rule": "self.low <= self.high",
            "message": "it[].low is too high; lower it",
            "fieldPath": ".low",
            "reason": "FieldValueInvalid",
        }
    ]


class Unserved(ApiModel):
    """Fields that nothing serves yet."""

    number: NotSupportedYet[int] = Field(default=7, ge=1)
    """A number."""
    part: NotSupportedYet[Part] = Part()
    """A part of it."""
    colour: Annotated[Literal["Red", "Blue"], not_supported_yet({"Blue": "Red"})] = "Red"
    """A colour."""
    count: Annotated[int | None, not_supported_yet({0: "1 or more"})] = None
    """A count."""


def test_an_unserved_field_has_its_type_a_refusal_and_no_default() -> None:
    schema = structural_schema(Unserved)
    assert schema["properties"]["number"] == {
        "type": "integer",
        "minimum": 1,
        "description": "Not supported yet, so refused. A number.",
    }
    assert "default" not in schema["properties"]["part"]
    assert Unserved().number == 7
    assert schema["x-kubernetes-validations"][0] == {
        "rule": "!has(self.number)",
        "message": "number is not supported yet; remove it",
        "fieldPath": ".number",
        "reason": "FieldValueForbidden",
    }


def test_an_unserved_value_is_refused_where_the_field_is_present() -> None:
    rules = [rule["rule"] for rule in structural_schema(Unserved)["x-kubernetes-validations"]]
    assert rules[2:] == ["self.colour != 'Blue'", "!has(self.count) || self.count != 0"]


def test_a_description_names_the_unserved_values() -> None:
    assert structural_schema(Unserved)["properties"]["colour"]["description"] == "A colour. Not supported yet: Blue."


def test_without_the_refusals_the_same_fields_are_plain() -> None:
    schema = structural_schema(Unserved, refuse_unsupported=False)
    assert schema["properties"]["number"] == {
        "type": "integer",
        "minimum": 1,
        "default": 7,
        "description": "A number.",
    }
    assert schema["properties"]["part"]["default"] == {"size": 3}
    assert "x-kubernetes-validations" not in schema


def test_defaults_are_taken_away_at_every_depth() -> None:
    _, part = converted(tuple[Part, ...], ())
    assert "default" not in str(without_defaults(part))
    assert "default" in str(part)
