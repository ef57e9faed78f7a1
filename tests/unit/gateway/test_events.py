"""Events as bytes: any split of a stream gives the same bytes and counts."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from duet_engine.gateway.events import (
    AnswerFailure,
    EventScanner,
    EventTooLarge,
    Usage,
    failure_of,
    payload_of,
    split,
)

DONE = b"data: [DONE]\n\n"


def event(payload: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(payload, separators=(",", ":")).encode() + b"\n\n"


def token(text: str) -> bytes:
    return event({"choices": [{"index": 0, "text": text, "finish_reason": None}], "usage": None})


USAGE = event({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}})


def scanned(data: bytes, cuts: list[int], *, hide_usage: bool) -> tuple[bytes, int, EventScanner]:
    scanner, out, tokens, start = EventScanner(hide_usage=hide_usage), b"", 0, 0
    for cut in [*sorted({cut for cut in cuts if cut < len(data)}), len(data)]:
        whole, count = scanner.feed(data[start:cut])
        out, tokens, start = out + whole, tokens + count, cut
    return out, tokens, scanner


@settings(deadline=None)
@given(st.lists(st.text(max_size=6), max_size=8), st.lists(st.integers(0, 2000)), st.booleans(), st.booleans())
def test_any_split_gives_the_same(texts: list[str], cuts: list[int], hide_usage: bool, has_usage: bool) -> None:
    events = [*map(token, texts), *([USAGE] if has_usage else []), DONE]
    out, tokens, scanner = scanned(b"".join(events), cuts, hide_usage=hide_usage)
    expected = [each for each in events if each != USAGE or not hide_usage]
    assert out == b"".join(expected)
    assert tokens == len(texts)
    assert scanner.done and not scanner.failed
    assert scanner.usage == (Usage(7, 3) if has_usage else None)


@pytest.mark.parametrize(
    "text", ['"usage":{"x":1}', 'data: {"error": 1}', '"choices":[]', 'x"choices":[],"usage":{', "data: [DONE]"]
)
def test_text_that_looks_like_a_marker_is_only_text(text: str) -> None:
    data = token(text) + DONE
    out, tokens, scanner = scanned(data, [], hide_usage=True)
    assert (out, tokens) == (data, 1)
    assert scanner.usage is None and not scanner.failed


def test_a_chats_role_and_end_are_no_tokens() -> None:
    deltas: list[dict[str, Any]] = [
        {"delta": {"reasoning_content": None, "role": "assistant", "content": ""}, "finish_reason": None},
        {"delta": {"content": 'a {"role":"b"}'}, "finish_reason": None},
        {"delta": {"content": '"finish_reason":"x"'}, "finish_reason": None},
        {"delta": {}, "finish_reason": "stop"},
    ]
    data = b"".join(event({"choices": [delta]}) for delta in deltas) + DONE
    scanner = EventScanner(hide_usage=True, chat=True)
    assert scanner.feed(data) == (data, 2)


def test_usage_in_every_event_stays_for_those_who_asked() -> None:
    counted = event({"choices": [{"text": "a"}], "usage": {"prompt_tokens": 5, "completion_tokens": 1}})
    out, tokens, scanner = scanned(counted + USAGE + DONE, [], hide_usage=False)
    assert (out, tokens) == (counted + USAGE + DONE, 1)
    assert scanner.final_usage() == Usage(7, 3)


def test_sglangs_own_endpoint_counts_in_its_last_event() -> None:
    events = [event({"text": "a" * n, "meta_info": {"prompt_tokens": 4, "completion_tokens": n}}) for n in (1, 2)]
    _, _, scanner = scanned(b"".join(events) + DONE, [len(events[0])], hide_usage=False)
    assert scanner.final_usage() == Usage(4, 2)


def test_an_error_event_is_seen() -> None:
    _, _, scanner = scanned(token("a") + event({"error": {"message": "gone", "code": 500}}), [], hide_usage=True)
    assert scanner.failed and not scanner.done


def test_an_endless_event_is_refused() -> None:
    scanner = EventScanner(hide_usage=True)
    with pytest.raises(EventTooLarge):
        for _ in range(40):
            scanner.feed(b"x" * 2**20)


def test_split_and_payload() -> None:
    assert split(token("a") + DONE) == [token("a"), DONE]
    assert payload_of(DONE) is None
    assert payload_of(b": comment\n\n") is None
    assert payload_of(event({"a": 1})) == {"a": 1}


@pytest.mark.parametrize(
    ("payload", "failure"),
    [
        ({"choices": [{"text": "a", "finish_reason": None}]}, None),
        ({"choices": [{"text": "a", "finish_reason": "stop"}]}, None),
        ({"error": {"message": "too long", "code": 400}}, AnswerFailure("too long", 400)),
        ({"object": "error", "message": "too long", "code": 400}, AnswerFailure("too long", 400)),
        ({"error": {"message": "no code"}}, AnswerFailure("no code", 503)),
        ({"choices": [{"finish_reason": "abort"}]}, AnswerFailure("aborted by the engine", 503)),
        (
            {"meta_info": {"finish_reason": {"type": "abort", "message": "out of KV", "status_code": 503}}},
            AnswerFailure("out of KV", 503),
        ),
        ({"meta_info": {"finish_reason": {"type": "length"}}}, None),
        ({}, None),
    ],
)
def test_failures_inside_a_200(payload: dict[str, Any], failure: AnswerFailure | None) -> None:
    assert failure_of(payload) == failure


@settings(deadline=None)
@given(st.lists(st.sampled_from(["token", "quoted", "usage", "finish", "error", "role", "two", "done"]), max_size=12))
def test_an_event_is_looked_at_however_much_it_resembles_the_last_one(kinds: list[str]) -> None:
    """Whole events, one a read, as engines send them: what was learned of one must hide nothing in another."""

    def delta(content: str, **fields: Any) -> bytes:
        choice = {"index": 0, "delta": {"role": None, "content": content}, "finish_reason": None, **fields}
        return event({"id": "a", "choices": [choice], "usage": None})

    reads = {
        "token": (delta("x"), 1),
        "quoted": (delta('a","finish_reason":"stop'), 1),
        "usage": (event({"id": "a", "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}), 0),
        "finish": (delta("", finish_reason="stop"), 0),
        "error": (event({"error": {"message": "x"}}), 1),
        "role": (delta("", delta={"role": "assistant", "content": ""}), 0),
        "two": (delta("x") + delta("y"), 2),
        "done": (DONE, 0),
    }
    scanner, seen = EventScanner(hide_usage=True, chat=True), [reads["token"], *(reads[kind] for kind in kinds)]
    for read, tokens in seen:
        expected = b"" if read == reads["usage"][0] else read
        assert scanner.feed(read) == (expected, tokens)
    assert scanner.failed == ("error" in kinds) and scanner.done == ("done" in kinds)
    assert (scanner.usage is not None) == ("usage" in kinds)
