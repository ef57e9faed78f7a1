"""Client bodies: what is read, what is stripped, what is refused by name."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from duet_engine.gateway.errors import GatewayError
from duet_engine.gateway.requests import (
    CHAT_COMPLETIONS,
    COMPLETIONS,
    GENERATE,
    OWN_FIELDS,
    PATHS,
    REFUSED_FIELDS,
    ClientRequest,
    parse,
)

OWN = {"rid": "r", "bootstrap_room": 4, "duet": {"sequence": 1}}


def parsed(path: str, **fields: Any) -> ClientRequest:
    return parse(path, json.dumps(fields).encode(), model_names=("m",))


def sent(request: ClientRequest) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(request.rendered(json.dumps(OWN)[1:-1]))
    return found


@pytest.mark.parametrize(
    ("path", "fields", "text_bytes", "given_tokens", "limit"),
    [
        (COMPLETIONS, {"prompt": "abcd"}, 4, None, 16),
        (COMPLETIONS, {"prompt": "ü"}, 2, None, 16),
        (COMPLETIONS, {"prompt": [1, 2, 3], "max_tokens": 5}, 0, 3, 5),
        (CHAT_COMPLETIONS, {"messages": [{"content": "abc"}, {"content": None}]}, 3, None, 512),
        (CHAT_COMPLETIONS, {"messages": [{"content": [{"text": "ab"}, {"type": "text", "text": "c"}]}]}, 3, None, 512),
        (CHAT_COMPLETIONS, {"messages": [{"content": "a"}], "max_completion_tokens": 9, "max_tokens": 3}, 1, None, 9),
        (GENERATE, {"text": "abc"}, 3, None, 128),
        (GENERATE, {"input_ids": [1], "sampling_params": {"max_new_tokens": 7}}, 0, 1, 7),
    ],
)
def test_sizes(path: str, fields: dict[str, Any], text_bytes: int, given_tokens: int | None, limit: int) -> None:
    request = parsed(path, **fields)
    assert (request.text_bytes, request.given_tokens, request.output_limit_tokens) == (text_bytes, given_tokens, limit)


def test_steering_fields_never_reach_a_worker() -> None:
    steering = {
        "rid": "a",
        "priority": 1,
        "duet": {"deflected": True},
        "bootstrap_host": "h",
        "bootstrap_port": 1,
        "bootstrap_room": 2,
        "bootstrap_new_in_some_version": 3,
        "data_parallel_rank": 0,
        "disagg_prefill_dp_rank": 1,
        "decode_tp_size": 2,
        "received_time": 0.0,
        "no_logs": True,
        "custom_labels": {"a": "b"},
        "routing_key": "k",
        "external_trace_header": {},
    }
    assert sent(parsed(COMPLETIONS, prompt="a", temperature=0.5, **steering)) == {
        "prompt": "a",
        "temperature": 0.5,
        **OWN,
    }


@settings(deadline=None)
@given(
    st.dictionaries(
        st.text(max_size=8),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=8),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
            max_leaves=6,
        ),
        max_size=6,
    )
)
def test_every_other_field_passes_unchanged(extra: dict[str, Any]) -> None:
    reserved = {"prompt", "stream", "stream_options", "model", "n", "best_of", "rid", "priority", "duet", "max_tokens"}
    reserved |= {"max_completion_tokens", *OWN_FIELDS, *REFUSED_FIELDS}
    fields = {
        name: value for name, value in extra.items() if name not in reserved and not name.startswith("bootstrap_")
    }
    assert sent(parsed(COMPLETIONS, prompt="a", **fields)) == {"prompt": "a", **fields, **OWN}


def test_a_stream_is_made_to_report_its_usage() -> None:
    request = parsed(COMPLETIONS, prompt="a", stream=True)
    assert request.hides_usage
    assert sent(request)["stream_options"] == {"include_usage": True}
    asked = parsed(COMPLETIONS, prompt="a", stream=True, stream_options={"include_usage": True})
    assert not asked.hides_usage
    for other in (parsed(COMPLETIONS, prompt="a"), parsed(GENERATE, text="a", stream=True)):
        assert not other.hides_usage
        assert "stream_options" not in sent(other)


@pytest.mark.parametrize(
    ("path", "raw", "says"),
    [
        (COMPLETIONS, rb'{"prompt": "a\ud800b"}', r"body: half of a surrogate pair is no text: '\ud800'"),
        (GENERATE, rb'{"text": "a", "extra": ["\udfff"]}', r"body: half of a surrogate pair is no text: '\udfff'"),
        (COMPLETIONS, b'{"prompt": "a", "temperature": 1e999}', "body: a number is too large for floating point"),
    ],
)
def test_what_engines_would_fail_at_is_refused(path: str, raw: bytes, says: str) -> None:
    with pytest.raises(GatewayError) as refusal:
        parse(path, raw, model_names=())
    assert (refusal.value.status, refusal.value.message) == (400, says)


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "video_url"])
def test_parts_that_are_no_text_are_refused_by_name(kind: str) -> None:
    content = [{"type": "text", "text": "what is this?"}, {"type": kind, kind: {"url": "x"}}]
    with pytest.raises(GatewayError) as refusal:
        parsed(CHAT_COMPLETIONS, messages=[{"role": "user", "content": content}])
    assert refusal.value.message == f"messages.0.content.1: only text parts are supported, got {kind!r}"


@pytest.mark.parametrize("path", PATHS)
@settings(deadline=None)
@given(raw=st.binary(max_size=60))
def test_any_bytes_are_a_request_or_a_named_error(path: str, raw: bytes) -> None:
    try:
        parse(path, raw, model_names=())
    except GatewayError as error:
        assert error.status == 400 and error.message


@pytest.mark.parametrize("path", PATHS)
@settings(deadline=None)
@given(
    fields=st.fixed_dictionaries(
        {},
        optional={
            name: st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=2)
            for name in (
                *("prompt", "messages", "text", "input_ids", "stream", "n", "max_tokens", "sampling_params"),
                *("stream_options", "model"),
            )
        },
    )
)
def test_any_types_are_a_request_or_a_named_error(path: str, fields: dict[str, Any]) -> None:
    try:
        parse(path, json.dumps(fields).encode(), model_names=("m",))
    except GatewayError as error:
        assert error.status in (400, 404)
        assert any(error.message.startswith(name) for name in [*fields, "prompt", "messages", "text"])


@pytest.mark.parametrize("name", ["image_data", "video_data", "audio_data", "input_embeds", "custom_logit_processor"])
def test_what_would_make_an_engine_fetch_or_run_something_is_refused(name: str) -> None:
    with pytest.raises(GatewayError, match=name) as error:
        parsed(GENERATE, text="a", **{name: "http://169.254.169.254/"})
    assert error.value.status == 400
    assert parsed(GENERATE, text="a", **{name: None})
