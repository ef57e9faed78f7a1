"""A client's request: checked, stripped of what only a gateway may say, and rendered for a worker.

Invariant: no field by which a client could steer engines (bootstrap, dispatch, request id, priority) reaches a worker;
the fields that do are the gateway's own. What isn't supported is refused by name, never served half.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from duet_engine.gateway.errors import GatewayError
from duet_engine.gateway.live_settings import DEFAULT_CLASS
from duet_engine.policy.prefix_index import text_blocks
from duet_engine.protocol import DISPATCH_FIELD

COMPLETIONS = "/v1/completions"
CHAT_COMPLETIONS = "/v1/chat/completions"
GENERATE = "/generate"
PATHS = (COMPLETIONS, CHAT_COMPLETIONS, GENERATE)

OWN_FIELDS = frozenset(
    (
        *(DISPATCH_FIELD, "rid", "priority", "routing_key", "data_parallel_rank", "routed_dp_rank"),
        *("disagg_prefill_dp_rank", "decode_tp_size", "received_time", "no_logs", "custom_labels"),
        "external_trace_header",
    )
)
_OWN_PREFIX = "bootstrap_"
REFUSED_FIELDS = ("image_data", "video_data", "audio_data", "input_embeds", "custom_logit_processor")
"""Addresses that an engine would fetch, tensors and code: none of it is text to be continued."""
_ANY_MODEL = "default"
"""SGLang's name for whatever model it serves."""
_MOST_TOKEN_ID = 2**62
_DEFAULT_OUTPUT_TOKENS = {COMPLETIONS: 16, CHAT_COMPLETIONS: 512, GENERATE: 128}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientRequest:
    """A request that may be sent to workers, as often as it takes."""

    path: str
    streamed: bool
    body: bytes
    """The client's JSON object without own fields, complete but for its closing brace."""
    size_bytes: int
    text_bytes: int
    """Bytes of the prompt when it is text; 0 when its tokens are given."""
    given_tokens: int | None
    output_limit_tokens: int
    prefix_blocks: tuple[int, ...] = ()
    """The prompt as `policy.prefix_index` knows prompts."""
    hides_usage: bool
    """The usage event was asked for by the gateway, not by the client."""
    class_name: str = DEFAULT_CLASS

    def rendered(self, own_members: str) -> bytes:
        """The body for one worker; its own members are JSON already, without braces."""
        separator = b"" if self.body == b"{" else b","
        return b"%b%b%b}" % (self.body, separator, own_members.encode())


def parse(path: str, raw: bytes, *, model_names: Iterable[str], class_name: str = DEFAULT_CLASS) -> ClientRequest:
    """Check a body.

    Raises:
        GatewayError: 400 naming the field, or 404 for a model that isn't served here.
    """
    fields = _json_object(raw)
    _refuse_unsupported(path, fields)
    _check_model(fields.get("model"), tuple(model_names))
    streamed = fields.get("stream", False)
    if streamed is None:
        streamed = False
    if not isinstance(streamed, bool):
        raise _bad(f"stream: must be true or false, got {streamed!r}")
    text_bytes, given_tokens = _prompt_size(path, fields)
    kept = {
        name: value for name, value in fields.items() if name not in OWN_FIELDS and not name.startswith(_OWN_PREFIX)
    }
    hides_usage = streamed and path != GENERATE and _ask_for_usage(kept)
    return ClientRequest(
        path=path,
        streamed=streamed,
        body=_dump(kept)[:-1],
        size_bytes=len(raw),
        text_bytes=text_bytes,
        given_tokens=given_tokens,
        output_limit_tokens=_output_limit(path, fields),
        prefix_blocks=tuple(text_blocks(_prompt_bytes(path, fields))),
        hides_usage=hides_usage,
        class_name=class_name,
    )


def _json_object(raw: bytes) -> dict[str, Any]:
    try:
        fields = _decode(raw.decode())
    except UnicodeDecodeError as error:
        raise _bad(f"body: not UTF-8: {error}") from error
    except RecursionError as error:
        raise _bad("body: nested too deeply") from error
    except ValueError as error:
        raise _bad(f"body: not valid JSON: {error}") from error
    if not isinstance(fields, dict):
        raise _bad(f"body: must be a JSON object, got {type(fields).__name__}")
    return fields


def _not_json(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")


# Made once: `json.loads` and `json.dumps` make theirs anew for each call with options.
_decode = json.JSONDecoder(parse_constant=_not_json).decode
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def _refuse_unsupported(path: str, fields: Mapping[str, Any]) -> None:
    sampling = fields.get("sampling_params")
    if path == GENERATE and sampling is not None and not isinstance(sampling, dict):
        raise _bad("sampling_params: must be one object; a list of them needs a list of prompts, which isn't supported")
    counted = sampling if path == GENERATE and sampling is not None else fields
    for name in ("n", "best_of"):
        if counted.get(name) not in (None, 1):
            raise _bad(f"{name}: only 1 is supported, got {counted[name]!r}; send one request for each answer")
    for name in REFUSED_FIELDS:
        if fields.get(name) is not None:
            raise _bad(f"{name}: isn't supported; this gateway serves text")
    options = fields.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise _bad("stream_options: must be an object")


def _check_model(name: object, known: tuple[str, ...]) -> None:
    if name is None:
        return
    if not isinstance(name, str):
        raise _bad(f"model: must be a string, got {name!r}")
    if known and name not in known and name != _ANY_MODEL:
        raise GatewayError(404, f"model: {name!r} isn't served here; served: {', '.join(sorted(set(known)))}")


def _prompt_size(path: str, fields: Mapping[str, Any]) -> tuple[int, int | None]:
    """Bytes of text, or a count of given tokens."""
    if path == CHAT_COMPLETIONS:
        return _chat_bytes(fields.get("messages")), None
    if path == COMPLETIONS:
        if "prompt" not in fields:
            raise _bad("prompt: missing")
        return _text_or_tokens("prompt", fields["prompt"])
    if (fields.get("text") is None) == (fields.get("input_ids") is None):
        raise _bad("text, input_ids: give exactly one of the two")
    name = "text" if fields.get("text") is not None else "input_ids"
    return _text_or_tokens(name, fields[name])


def _prompt_bytes(path: str, fields: Mapping[str, Any]) -> bytes:
    """Bytes that begin alike where prompts do; only called for prompts whose size is known to be countable."""
    if path == CHAT_COMPLETIONS:
        return _dump({"tools": fields.get("tools"), "messages": fields["messages"]})
    name = "prompt" if path == COMPLETIONS else "input_ids" if fields.get("text") is None else "text"
    prompt: str | list[int] = fields[name]
    if isinstance(prompt, str):
        return prompt.encode("utf-8", "surrogatepass")
    return b"".join(token.to_bytes(8, "little", signed=True) for token in prompt if abs(token) < _MOST_TOKEN_ID)


def _text_or_tokens(name: str, value: object) -> tuple[int, int | None]:
    if isinstance(value, str):
        return max(1, _utf8_bytes(value)), None
    if isinstance(value, list) and value and all(type(token) is int for token in value):
        return 0, len(value)
    if isinstance(value, list) and value:
        raise _bad(f"{name}: a list of prompts isn't supported; send one request for each")
    raise _bad(f"{name}: must be text or a list of token ids")


def _chat_bytes(messages: object) -> int:
    if not isinstance(messages, list) or not messages:
        raise _bad("messages: must be a list with at least one message")
    total = 0
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise _bad(f"messages.{index}: must be an object")
        content = message.get("content")
        if isinstance(content, str):
            total += _utf8_bytes(content)
        elif isinstance(content, list):
            total += sum(_part_bytes(part, f"messages.{index}.content.{place}") for place, part in enumerate(content))
        elif content is not None:
            raise _bad(f"messages.{index}.content: must be text or a list of parts")
    return max(1, total)


def _part_bytes(part: object, where: str) -> int:
    if not isinstance(part, dict) or not isinstance(part.get("text"), str):
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        raise _bad(f"{where}: only text parts are supported, got {kind!r}")
    return _utf8_bytes(part["text"])


def _output_limit(path: str, fields: Mapping[str, Any]) -> int:
    source: Mapping[str, Any] = fields
    names: tuple[str, ...] = ("max_completion_tokens", "max_tokens")
    if path == GENERATE:
        source, names = fields.get("sampling_params") or {}, ("max_new_tokens",)
    for name in names:
        value = source.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise _bad(f"{name}: must be a number of tokens, got {value!r}")
        return value
    return _DEFAULT_OUTPUT_TOKENS[path]


def _ask_for_usage(kept: dict[str, Any]) -> bool:
    """Make the engine count the tokens of a stream; True when the client didn't ask for it."""
    options = kept.get("stream_options") or {}
    if options.get("include_usage") or options.get("continuous_usage_stats"):
        return False
    kept["stream_options"] = {**options, "include_usage": True}
    return True


def _dump(value: Mapping[str, Any]) -> bytes:
    """What engines can read too.

    Raises:
        GatewayError: 400 for what JSON's grammar allows but neither Unicode nor floating point holds; engines answer
            such values with 500, for which they would be blamed.
    """
    try:
        return _encode(value).encode()
    except UnicodeEncodeError as error:
        raise _bad(f"body: half of a surrogate pair is no text: {error.object[error.start]!r}") from error
    except ValueError as error:
        raise _bad("body: a number is too large for floating point") from error


def _utf8_bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _bad(message: str) -> GatewayError:
    return GatewayError(400, message)
