"""From a pydantic model to a Kubernetes structural schema.

Invariant: what the model says and a structural schema can't say is an error here, never dropped in silence. An optional
field is an absent one, never null; a field that nothing serves yet has no default and a rule that refuses it.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from duet_operator.api.base import NOT_SUPPORTED_KEY, NOT_SUPPORTED_VALUES_KEY, RULES_KEY

Schema = dict[str, Any]

COPIED = (
    *("description", "type", "format", "default", "enum", "pattern", "minimum", "maximum", "minLength", "maxLength"),
    *("minItems", "maxItems", "minProperties", "maxProperties"),
)
"""What means the same in both, in the order in which it is written."""

CONSUMED = frozenset(
    {"$ref", "$defs", "title", "anyOf", "const", "properties", "required", "items", "additionalProperties"}
    | {"exclusiveMinimum", "exclusiveMaximum", RULES_KEY, NOT_SUPPORTED_KEY, NOT_SUPPORTED_VALUES_KEY}
)


class NotStructuralError(TypeError):
    """A model says something that a structural schema can't; the message names the field."""


def structural_schema(model: type[BaseModel], *, refuse_unsupported: bool = True) -> Schema:
    """The schema of a model and of all that it holds.

    Args:
        model: The model.
        refuse_unsupported: Whether fields that nothing serves yet get their refusing rules. Without them they are plain
            fields with defaults, as they will be once they are served.
    """
    source = model.model_json_schema(by_alias=True, mode="validation")
    return _Converter(source.get("$defs", {}), refuse_unsupported).convert(source, path="")


def without_defaults(schema: Schema) -> Schema:
    """The same schema with no default at any depth; for status, where a default would pass for an observation."""
    result = {key: value for key, value in schema.items() if key != "default"}
    if "properties" in schema:
        result["properties"] = {name: without_defaults(part) for name, part in schema["properties"].items()}
    for key in ("items", "additionalProperties"):
        if key in schema:
            result[key] = without_defaults(schema[key])
    return result


class _Converter:
    def __init__(self, definitions: dict[str, Schema], refuse_unsupported: bool) -> None:
        self.definitions = definitions
        self.refuse_unsupported = refuse_unsupported

    def convert(self, source: Schema, *, path: str) -> Schema:
        """One node; `path` is the field's place in the object, for rules and errors."""
        source = self.resolve(source, path)
        extensions = [key for key in source if key.startswith("x-kubernetes-")]
        unknown = source.keys() - {*COPIED, *CONSUMED, *extensions}
        if unknown:
            raise NotStructuralError(
                f"{path or 'object'}: {', '.join(sorted(unknown))} has no place in a structural schema"
            )
        target = {key: source[key] for key in (*COPIED, *extensions) if key in source}
        if "description" in target:
            target["description"] = " ".join(target["description"].split())
        if "const" in source:
            target["enum"] = [source["const"]]
        for exclusive, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
            if exclusive in source:
                target |= {bound: source[exclusive], exclusive: True}
        if "items" in source:
            target["items"] = self.convert(source["items"], path=f"{path}[]")
        if isinstance(source.get("additionalProperties"), dict):
            target["additionalProperties"] = self.convert(source["additionalProperties"], path=f"{path}.*")
        elif source.get("additionalProperties") is True:
            target["x-kubernetes-preserve-unknown-fields"] = True
        if "properties" in source:
            self.convert_object(source, target, path)
        if "type" not in target:
            raise NotStructuralError(f"{path or 'object'}: a structural schema needs exactly one type")
        return target

    def resolve(self, source: Schema, path: str) -> Schema:
        """References inlined and `X | None` reduced to X; what stands beside them wins."""
        while "$ref" in source or "anyOf" in source:
            if "$ref" in source:
                inner = self.definitions[source["$ref"].removeprefix("#/$defs/")]
                source = {**inner, **{key: value for key, value in source.items() if key != "$ref"}}
                continue
            alternatives = [part for part in source["anyOf"] if part.get("type") != "null"]
            if len(alternatives) != 1:
                raise NotStructuralError(f"{path}: a union of types has no place in a structural schema")
            source = {**alternatives[0], **{key: value for key, value in source.items() if key != "anyOf"}}
        if source.get("default", ...) in (None, [], {}):
            return {key: value for key, value in source.items() if key != "default"}  # absent says the same
        return source

    def convert_object(self, source: Schema, target: Schema, path: str) -> None:
        required = source.get("required", [])
        rules: list[Schema] = []
        properties: dict[str, Schema] = {}
        for name, field in source["properties"].items():
            field_path = f"{path}.{name}".lstrip(".")
            properties[name] = converted = self.convert(field, path=field_path)
            if "default" in converted and "properties" in converted:
                converted["default"] = _default_of(converted["properties"])
            if self.refuse_unsupported:
                rules += self.refusals(field, converted, name=name, path=field_path, required=name in required)
        target["properties"] = properties
        if required:
            target["required"] = sorted(required)
        rules += [_validation(rule, path) for rule in source.get(RULES_KEY, [])]
        if rules:
            target["x-kubernetes-validations"] = rules

    def refusals(self, field: Schema, target: Schema, *, name: str, path: str, required: bool) -> list[Schema]:
        """Rules of the parent that refuse a field, or single values of it; takes a refused field's default away."""
        if NOT_SUPPORTED_KEY in field:
            target.pop("default", None)
            target["description"] = f"Not supported yet, so refused. {target['description']}"
            return [_refusal(f"!has(self.{name})", f"{path} is not supported yet; remove it", name)]
        values = field.get(NOT_SUPPORTED_VALUES_KEY, {})
        if values:
            target["description"] += f" Not supported yet: {', '.join(str(value) for value in values)}."
        present = "" if required or "default" in target else f"!has(self.{name}) || "
        return [
            _refusal(f"{present}self.{name} != {value!r}", f"{path} {value} is not supported yet; use {instead}", name)
            for value, instead in values.items()
        ]


def _default_of(properties: Schema) -> Schema:
    """A part's default, spelled out: the API server checks rules on it before it fills in the defaults inside."""
    return {name: field["default"] for name, field in properties.items() if "default" in field}


def _refusal(expression: str, message: str, name: str) -> Schema:
    return {"rule": expression, "message": message, "fieldPath": f".{name}", "reason": "FieldValueForbidden"}


def _validation(rule: Schema, path: str) -> Schema:
    field_path = {"fieldPath": rule["field"]} if rule["field"] else {}
    message = rule["message"].replace("{path}", path)
    return {"rule": rule["expression"], "message": message, **field_path, "reason": rule["reason"]}
