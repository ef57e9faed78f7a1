"""From request bodies to requests: SGLang's native form and OpenAI's two.

Invariant: a body either becomes a request or a `BadRequest` that names the field. Token counts follow fixed rules,
because there is no tokenizer: ids count exactly, text counts one token per four UTF-8 bytes, a chat message four
more. Without `ignore_eos` the output's length is drawn from the request's seed, exponentially with the configured
mean; the seed is a checksum of the prompt and of `seed`, so that equal requests get equal answers.
"""

from __future__ import annotations

import math
import uuid
import zlib
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from duet_engine.protocol import DISPATCH_FIELD, Dispatch
from duet_engine.simulated_engine.request import Finish, Request, Room

BYTES_PER_TOKEN = 4
TOKENS_PER_MESSAGE = 4
DEFAULT_NATIVE_TOKENS = 128
DEFAULT_COMPLETION_TOKENS = 16
END_OF_SEQUENCE_ID = 2


class BadRequest(ValueError):
    """A body that SGLang would answer with 400 too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What limits a request's length on this worker."""

    context_length: int
    kv_capacity_tokens: int
    mean_output_tokens: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    """A body, understood."""

    request: Request
    model: str
    include_usage: bool
    continuous_usage: bool
    dispatch: Dispatch | None


def parse_native(body: dict[str, Any], bounds: Bounds) -> Parsed:
    """`POST /generate`."""
    sampling = body.get("sampling_params") or {}
    if not isinstance(sampling, dict):
        raise BadRequest("sampling_params: must be one object; batches are not simulated")
    if (body.get("input_ids") is None) == (body.get("text") is None):
        raise BadRequest("Either text, input_ids or input_embeds should be provided.")
    has_ids = body.get("input_ids") is not None
    prompt = _ids(body["input_ids"], "input_ids") if has_ids else _text(body["text"], "text")
    return _parsed(
        body,
        bounds,
        prompt=prompt,
        limit=_count(sampling, "max_new_tokens", DEFAULT_NATIVE_TOKENS),
        sampling=sampling,
    )


def parse_completion(body: dict[str, Any], bounds: Bounds) -> Parsed:
    """`POST /v1/completions`."""
    prompt = body.get("prompt")
    if not prompt:
        raise BadRequest("Prompt cannot be empty")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
        prompt = prompt[0]
    content = _text(prompt, "prompt") if isinstance(prompt, str) else _ids(prompt, "prompt")
    return _parsed(
        body,
        bounds,
        prompt=content,
        limit=_count(body, "max_tokens", DEFAULT_COMPLETION_TOKENS),
        sampling=body,
    )


def parse_chat(body: dict[str, Any], bounds: Bounds) -> Parsed:
    """`POST /v1/chat/completions`."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequest("Messages cannot be empty.")
    if body.get("input_ids") is not None:
        tokens, checksum = _ids(body["input_ids"], "input_ids")
    else:
        tokens, checksum = _text("\n".join(_message_text(message) for message in messages), "messages", empty=True)
        tokens += TOKENS_PER_MESSAGE * len(messages)
    longest = max(1, bounds.context_length - tokens - 1)
    name = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
    return _parsed(body, bounds, prompt=(tokens, checksum), limit=_count(body, name, longest), sampling=body)


def _parsed(
    body: dict[str, Any], bounds: Bounds, *, prompt: tuple[int, int], limit: int, sampling: dict[str, Any]
) -> Parsed:
    tokens, checksum = prompt
    if sampling.get("n") not in (None, 1):
        raise BadRequest("n: only 1 is simulated")
    limit = _checked_limit(tokens, limit, bounds)
    seed = zlib.crc32(str(sampling.get("seed") or sampling.get("sampling_seed") or 0).encode(), checksum)
    output_tokens, finish = limit, Finish.LENGTH
    if not sampling.get("ignore_eos"):
        output_tokens, finish = _drawn_output(seed, limit, bounds.mean_output_tokens)
    dispatch = _dispatch(body.get(DISPATCH_FIELD))
    deflected = dispatch is not None and dispatch.deflected
    options = body.get("stream_options") or {}
    return Parsed(
        request=Request(
            rid=str(body.get("rid") or uuid.uuid4().hex),
            prompt_tokens=tokens,
            max_new_tokens=limit,
            output_tokens=output_tokens,
            finish=finish,
            seed=seed,
            room=None if deflected else _room(body),
            deflected=deflected,
            chunk_bounds=dispatch.chunk_schedule_tokens if dispatch is not None else (),
            streamed=bool(body.get("stream")),
        ),
        model=str(body.get("model") or ""),
        include_usage=bool(options.get("include_usage")),
        continuous_usage=bool(options.get("continuous_usage_stats")),
        dispatch=dispatch,
    )


def _checked_limit(tokens: int, limit: int, bounds: Bounds) -> int:
    """The output limit, cut to what KV can ever hold; refused where the context can't hold it."""
    longest = min(bounds.context_length, bounds.kv_capacity_tokens)
    if tokens >= longest:
        raise BadRequest(f"The input ({tokens} tokens) is longer than the model's context length ({longest} tokens).")
    if tokens + limit > bounds.context_length:
        raise BadRequest(
            f"Requested token count exceeds the model's maximum context length of {bounds.context_length} tokens. "
            f"You requested a total of {tokens + limit} tokens: {tokens} tokens from the input messages and "
            f"{limit} tokens for the completion. Please reduce the number of tokens in the input messages or the "
            "completion to fit within the limit."
        )
    return min(limit, longest - tokens)


def _drawn_output(seed: int, limit: int, mean_tokens: float) -> tuple[int, Finish]:
    uniform = (seed + 0.5) / 2**32
    drawn = 1 + int(-math.log(uniform) * mean_tokens)
    return (drawn, Finish.STOP) if drawn < limit else (limit, Finish.LENGTH)


def _dispatch(value: object) -> Dispatch | None:
    if value is None:
        return None
    try:
        return Dispatch.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in (DISPATCH_FIELD, *first["loc"]))
        raise BadRequest(f"{where}: {first['msg']}") from error


def _room(body: dict[str, Any]) -> Room | None:
    room, host, port = body.get("bootstrap_room"), body.get("bootstrap_host"), body.get("bootstrap_port")
    if room is None:
        return None
    if not isinstance(room, int) or isinstance(room, bool):
        raise BadRequest("bootstrap_room: must be an integer")
    if host is not None and not isinstance(host, str):
        raise BadRequest("bootstrap_host: must be a string")
    if port is not None and not isinstance(port, int):
        raise BadRequest("bootstrap_port: must be an integer")
    return Room(host=host or "", port=port or 0, number=room)


def _count(body: dict[str, Any], name: str, default: int) -> int:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BadRequest(f"{name}: must be a positive integer, got {value!r}")
    return value


def _ids(value: object, name: str) -> tuple[int, int]:
    """Number of ids and their checksum."""
    if not isinstance(value, list) or not value or not isinstance(value[0], int):
        raise BadRequest(f"{name}: must be a list of token ids; batches are not simulated")
    return len(value), zlib.crc32(repr(value).encode())


def _text(value: object, name: str, *, empty: bool = False) -> tuple[int, int]:
    """Estimated number of tokens and checksum."""
    if not isinstance(value, str) or not (value or empty):
        raise BadRequest(f"{name}: must be a text; batches are not simulated")
    try:
        data = value.encode()
    except UnicodeEncodeError as error:
        raise BadRequest(f"{name}: not text that UTF-8 can hold: {error.reason}") from error
    return max(1, -(-len(data) // BYTES_PER_TOKEN)), zlib.crc32(data)


def _message_text(message: object) -> str:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise BadRequest("messages: each must be an object with a role")
    content = message.get("content")
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return str(content or "")
