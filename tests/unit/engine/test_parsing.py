"""Bodies become requests by fixed rules; a bad field is named."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duet_engine.simulated_engine.parsing import BadRequest, Bounds, parse_chat, parse_completion, parse_native
from duet_engine.simulated_engine.request import Finish, Room

HELLO = [{"role": "user", "content": "hi"}]
BOUNDS = Bounds(context_length=4096, kv_capacity_tokens=3000, mean_output_tokens=100)


@pytest.mark.parametrize(
    ("parse", "body", "tokens", "limit"),
    [
        (parse_native, {"input_ids": [1, 2, 3]}, 3, 128),
        (parse_native, {"text": "12345", "sampling_params": {"max_new_tokens": 7}}, 2, 7),
        (parse_completion, {"prompt": [5] * 100}, 100, 16),
        (parse_completion, {"prompt": "12345678"}, 2, 16),
        (parse_completion, {"prompt": ["1234"], "max_tokens": 9}, 1, 9),
        (parse_chat, {"messages": [{"role": "user", "content": "12345678"}], "max_tokens": 5}, 6, 5),
        (
            parse_chat,
            {"messages": [{"role": "user", "content": "x"}], "max_tokens": 5, "max_completion_tokens": 6},
            5,
            6,
        ),
        (parse_chat, {"messages": [{"role": "user", "content": [{"type": "text", "text": "1234"}]}]}, 5, 2995),
        (parse_chat, {"messages": [{"role": "user", "content": "x"}], "input_ids": [1] * 50, "max_tokens": 1}, 50, 1),
    ],
)
def test_token_counts_and_limits(parse: Any, body: dict[str, Any], tokens: int, limit: int) -> None:
    request = parse(body | {"ignore_eos": True}, BOUNDS).request
    assert (request.prompt_tokens, request.max_new_tokens) == (tokens, limit)


@pytest.mark.parametrize(
    ("parse", "body", "named"),
    [
        (parse_native, {}, "text, input_ids"),
        (parse_native, {"text": "a", "input_ids": [1]}, "text, input_ids"),
        (parse_native, {"text": ["a", "b"]}, "text"),
        (parse_native, {"text": "a", "sampling_params": [{}]}, "sampling_params"),
        (parse_native, {"text": "a", "sampling_params": {"max_new_tokens": 0}}, "max_new_tokens"),
        (parse_completion, {"prompt": ""}, "Prompt"),
        (parse_completion, {"prompt": ["a", "b"]}, "prompt"),
        (parse_completion, {"prompt": "a", "max_tokens": "many"}, "max_tokens"),
        (parse_completion, {"prompt": "a", "n": 2}, "n: "),
        (parse_completion, {"prompt": "a", "bootstrap_room": "x"}, "bootstrap_room"),
        (parse_completion, {"prompt": "a", "duet": {"sequence": 1}}, "duet.gateway"),
        (parse_completion, {"prompt": "a", "duet": 5}, "duet"),
        (parse_completion, {"prompt": "a" * 12_000}, "longer than the model's context length"),
        (parse_completion, {"prompt": "a", "max_tokens": 5000}, "maximum context length"),
        (parse_completion, {"prompt": "a\ud800"}, "prompt"),
        (parse_chat, {"messages": []}, "Messages"),
        (parse_chat, {"messages": ["hello"]}, "messages"),
    ],
)
def test_a_bad_field_is_named(parse: Any, body: dict[str, Any], named: str) -> None:
    with pytest.raises(BadRequest, match=named):
        parse(body, BOUNDS)


def test_a_deflected_request_keeps_its_schedule_and_no_room() -> None:
    dispatch = {"gateway": "g", "sequence": 4, "deflected": True, "chunk_schedule_tokens": [256, 128]}
    parsed = parse_completion({"prompt": "a", "duet": dispatch, "bootstrap_room": 5}, BOUNDS)
    assert parsed.request.deflected and parsed.request.room is None
    assert parsed.request.chunk_bounds == (256, 128)
    assert parsed.dispatch is not None and parsed.dispatch.sequence == 4


def test_a_half_of_a_pair_keeps_its_room() -> None:
    body = {"prompt": "a", "bootstrap_host": "10.0.0.1", "bootstrap_port": 8998, "bootstrap_room": 2**62}
    assert parse_completion(body, BOUNDS).request.room == Room(host="10.0.0.1", port=8998, number=2**62)


@given(st.integers(0, 10_000), st.integers(1, 500))
def test_without_ignore_eos_the_output_is_drawn_from_the_seed(seed: int, limit: int) -> None:
    body = {"prompt": "tell me", "max_tokens": limit, "seed": seed}
    one, again = parse_completion(body, BOUNDS).request, parse_completion(body, BOUNDS).request
    assert (one.output_tokens, one.finish, one.text()) == (again.output_tokens, again.finish, again.text())
    assert 1 <= one.output_tokens <= limit
    assert (one.finish is Finish.LENGTH) == (one.output_tokens == limit)


def test_drawn_outputs_have_the_set_mean() -> None:
    lengths = [
        parse_completion({"prompt": "x", "max_tokens": 2000, "seed": seed}, BOUNDS).request.output_tokens
        for seed in range(3000)
    ]
    assert sum(lengths) / len(lengths) == pytest.approx(BOUNDS.mean_output_tokens, rel=0.1)
