"""What all API models share: tolerant frozen models, cross-field rules, and the mark of a field not served yet.

Invariant: a model reads whatever a newer or older CRD admits (unknown fields are ignored) and never changes after that.
Everything that plain JSON schema can't say travels in the `x-duet-*` keys below, which `structural.py` consumes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    PlainSerializer,
    WithJsonSchema,
)
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

RULES_KEY = "x-duet-rules"
NOT_SUPPORTED_KEY = "x-duet-not-supported-yet"
NOT_SUPPORTED_VALUES_KEY = "x-duet-not-supported-yet-values"

Reason = Literal["FieldValueInvalid", "FieldValueForbidden", "FieldValueRequired", "FieldValueDuplicate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A CEL rule over one object of the API. `{path}` in the message stands for the path of that object."""

    expression: str
    message: str
    field: str = ""
    """Field that the API server names in its error, relative to the object; empty for the object itself."""
    reason: Reason = "FieldValueInvalid"


class ApiModel(BaseModel):
    """An object of the API: immutable, camelCase on the wire, deaf to fields from the future."""

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )

    rules: ClassVar[tuple[Rule, ...]] = ()

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core_schema)
        if cls.rules:
            handler.resolve_ref_schema(schema)[RULES_KEY] = [asdict(rule) for rule in cls.rules]
        return schema

    def to_dict(self) -> dict[str, Any]:
        """The object as Kubernetes stores it: camelCase, plain JSON values, absent optional fields left out.

        Made for status and for tests: a spec also shows the defaults of fields that the API server refuses for now.
        """
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


# --- fields that exist but that nothing serves yet ---


@dataclass(frozen=True, slots=True)
class _Extension:
    """Adds a key to a field's JSON schema."""

    key: str
    value: Any

    def __get_pydantic_json_schema__(self, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {**handler(core_schema), self.key: self.value}


T = TypeVar("T")

NotSupportedYet = Annotated[T, _Extension(NOT_SUPPORTED_KEY, True)]
"""Marks a field that the API server refuses for now: `field: NotSupportedYet[int] = Field(...)`.

The field keeps its type and its default, which is what readers get; the CRD has the type, a rule that refuses the
field, and no default (defaulting would trip the rule). To serve the field, take the mark away.
"""


def not_supported_yet(values: Mapping[str | int, str]) -> _Extension:
    """Marks single values of a served field that the API server refuses for now: value -> what to use instead."""
    return _Extension(NOT_SUPPORTED_VALUES_KEY, dict(values))


# --- lists and maps, as server-side apply merges them ---


def list_map(*keys: str) -> dict[str, Any]:
    """`json_schema_extra` of a list whose items are merged, and unique, by these keys."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(keys)}


ATOMIC: dict[str, Any] = {"x-kubernetes-list-type": "atomic"}
"""`json_schema_extra` of a list that has one owner as a whole."""


# --- types that several models use ---


def _whole_seconds_utc(time: datetime) -> datetime:
    return time.astimezone(UTC).replace(microsecond=0)


def _rfc3339(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


Time = Annotated[
    AwareDatetime,
    AfterValidator(_whole_seconds_utc),
    PlainSerializer(_rfc3339, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
"""A moment in whole seconds of UTC, as Kubernetes writes it."""

DnsLabel = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
"""Name of a thing inside this object."""

ObjectName = Annotated[
    str,
    Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"),
]
"""Name of another Kubernetes object in the same namespace."""

PatchObject = dict[str, Any]
"""A part of another Kubernetes type, kept as it is; that type's own validation applies when it's used."""

Quantities = Annotated[dict[str, int], Field(max_length=64)]
"""Named whole numbers; each name ends with its unit."""
