"""Properties that hold of every document that the schema admits."""

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.duet_objects import minimal, schema_of, with_defaults
from tests.support.schema_strategies import documents

from duet_operator.api.crd import custom_resource_definition
from duet_operator.api.v1alpha1 import parse

SCHEMA = schema_of(custom_resource_definition(refuse_unsupported=False))
OBJECTS = st.fixed_dictionaries(
    {"spec": documents(SCHEMA["properties"]["spec"])}, optional={"status": documents(SCHEMA["properties"]["status"])}
).map(lambda parts: minimal() | parts)

many = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)


@many
@given(OBJECTS)
def test_what_the_schema_admits_is_read_and_written_back_the_same(document: dict[str, Any]) -> None:
    read = parse(document)
    assert parse(read.to_dict()) == read


@many
@given(OBJECTS)
def test_reading_before_and_after_the_api_servers_defaults_is_the_same(document: dict[str, Any]) -> None:
    assert parse(with_defaults(SCHEMA, document)) == parse(document)


@many
@given(OBJECTS)
def test_writing_loses_nothing_that_was_given(document: dict[str, Any]) -> None:
    assert_within(document, parse(document).to_dict())


def assert_within(given: Any, written: Any, path: str = "") -> None:
    if isinstance(given, dict) and isinstance(written, dict):
        for name, value in given.items():
            assert name in written or value is None, f"{path}.{name} is lost"
            assert_within(value, written.get(name), f"{path}.{name}")
    elif isinstance(given, list):
        assert len(given) == len(written), path
        for index, (before, after) in enumerate(zip(given, written, strict=True)):
            assert_within(before, after, f"{path}[{index}]")
    else:
        assert given == written, path
