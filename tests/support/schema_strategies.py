"""Hypothesis strategies for documents that a structural schema admits."""

from datetime import UTC, datetime
from typing import Any

from hypothesis import strategies as st

Schema = dict[str, Any]

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
TIMES = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))
MOST_ITEMS = 3


def documents(schema: Schema) -> st.SearchStrategy[Any]:
    """Values of that schema; CEL rules are not heeded."""
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    match schema["type"]:
        case "boolean":
            return st.booleans()
        case "integer":
            return st.integers(schema.get("minimum", -(2**31)), schema.get("maximum", 2**31))
        case "string":
            return strings(schema)
        case "array":
            return arrays(schema)
        case "object":
            return objects(schema)
        case kind:
            raise AssertionError(f"no strategy for {kind}")


def strings(schema: Schema) -> st.SearchStrategy[str]:
    if schema.get("format") == "date-time":
        return TIMES.map(lambda time: time.strftime("%Y-%m-%dT%H:%M:%SZ"))
    longest = schema.get("maxLength", 20)
    if "pattern" in schema:
        # `$` also matches before a final line break in Python, though nowhere else that reads the schema
        matching = st.from_regex(schema["pattern"].removesuffix("$") + r"\Z")
        return matching.filter(lambda text: schema.get("minLength", 0) <= len(text) <= longest)
    letters = st.characters(exclude_categories=("Cs",), exclude_characters="\0")
    return st.text(letters, min_size=schema.get("minLength", 0), max_size=min(longest, 20))


def arrays(schema: Schema) -> st.SearchStrategy[list[Any]]:
    keys = schema.get("x-kubernetes-list-map-keys")
    return st.lists(
        documents(schema["items"]),
        min_size=schema.get("minItems", 0),
        max_size=min(schema.get("maxItems", MOST_ITEMS), MOST_ITEMS),
        unique_by=(lambda item: tuple(item[key] for key in keys)) if keys else None,
    )


def objects(schema: Schema) -> st.SearchStrategy[dict[str, Any]]:
    if schema.get("x-kubernetes-preserve-unknown-fields"):
        return st.dictionaries(st.text(max_size=5), JSON, max_size=2)
    if "additionalProperties" in schema:
        values = documents(schema["additionalProperties"])
        return st.dictionaries(st.text(max_size=5), values, max_size=MOST_ITEMS)
    required = set(schema.get("required", ()))
    parts = {name: documents(part) for name, part in schema["properties"].items()}
    return st.fixed_dictionaries(
        {name: part for name, part in parts.items() if name in required},
        optional={name: part for name, part in parts.items() if name not in required},
    )
