"""Server-sent events as bytes: counts them, and looks into the few that say something about the whole answer.

Invariant: what goes on is what came, cut only at event ends, less the usage event that the gateway asked for and the
client didn't. Nothing is parsed but that event, and only where its marker stands; a marker can't stand inside a JSON
string, where its quotes would be escaped. An event that differs from one already looked at only inside the string that
is its text, without a quote in it, has the same structure, so nothing in it is looked for again.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from duet_engine.gateway.wire.chunks import CHUNK_END, unframed

END = b"\n\n"
DONE = b"data: [DONE]\n\n"
_PREFIX = b"data:"
_USAGE = re.compile(rb'"usage":\s?\{')
_ERROR = re.compile(rb'data:\s?\{"error":')
_USAGE_NAME, _NO_USAGE, _ERROR_NAME = b'"usage":', b'"usage":null', b'"error":'
"""Looked for first: much quicker than an expression, and most events have at most these."""
_ROLE = re.compile(rb'"delta":\s?\{[^{}]*"role":\s?"')
_FINISH = re.compile(rb'"finish_reason":\s?"')
_TEXT = re.compile(rb'"(?:text|content|reasoning_content)":\s?"([^"\\]*)"')
_QUOTE = ord('"')
LARGEST_EVENT_BYTES = 16 * 2**20


class EventTooLarge(ValueError):
    """An upstream sent megabytes without an event end."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the engine counted them."""

    prompt_tokens: int
    output_tokens: int
    cached_tokens: int = 0


class EventScanner:
    """The events of one answer. A chat's first event only names the role, and its last only the reason to finish."""

    def __init__(self, *, hide_usage: bool, chat: bool = False) -> None:
        self._hide_usage = hide_usage
        self._chat = chat
        self._rest = b""
        self._last = b""
        self._last_chunk = b""
        """The same as a chunk, when that is how it came."""
        self._structure(before=END, after=END)
        self.usage: Usage | None = None
        self.done = False
        self.failed = False
        """An error event went by."""

    def _structure(self, *, before: bytes, after: bytes) -> None:
        """What stands around the text of an event that carries one token and says nothing else."""
        self._before, self._after, self._after_chunk = before, after, after + CHUNK_END
        self._before_bytes, self._after_chunk_bytes = len(before), -len(self._after_chunk)

    def is_token(self, chunk: bytes, start: int) -> bool:
        """Whether a chunk, whose content begins at `start`, is an event of one token that says nothing else."""
        if self._rest or not (chunk.startswith(self._before, start) and chunk.endswith(self._after_chunk)):
            return False
        if chunk.find(b'"', start + self._before_bytes, self._after_chunk_bytes) >= 0:
            return False
        self._last_chunk = chunk
        return True

    def feed(self, chunk: bytes) -> tuple[bytes, int]:
        """Whole events, ready to go on, and how many of them carry tokens."""
        if self._last_chunk:
            self._last, self._last_chunk = unframed(self._last_chunk), b""
        if chunk.startswith(self._before) and chunk.endswith(self._after) and not self._rest:
            text = chunk[len(self._before) : -len(self._after)]
            if _QUOTE not in text:
                self._last = chunk
                return chunk, 1
        if not self._rest and chunk.endswith(END):
            whole = chunk
        else:
            data = self._rest + chunk
            cut = data.rfind(END)
            if cut < 0:
                if len(data) > LARGEST_EVENT_BYTES:
                    raise EventTooLarge(f"no event end in {len(data)} bytes")
                self._rest = data
                return b"", 0
            whole, self._rest = data[: cut + 2], data[cut + 2 :]
        events = whole.count(END)
        if whole.endswith(DONE):
            self.done = True
            events -= 1
        if self._chat:
            events -= len(_ROLE.findall(whole)) + len(_FINISH.findall(whole))
        if _ERROR_NAME in whole and _ERROR.search(whole):
            self.failed = True
        if whole.count(_USAGE_NAME) > whole.count(_NO_USAGE) and _USAGE.search(whole):
            return self._take_usage(whole, events)
        if whole != DONE:
            self._last = whole
        if events == 1 == whole.count(END) and not self.failed:
            self._learn(whole)
        return whole, events

    def _learn(self, event: bytes) -> None:
        """Remember the structure of an event that carries one token and nothing to be looked at."""
        text = _TEXT.search(event)
        if text is not None:
            self._structure(before=event[: text.start(1)], after=event[text.end(1) :])

    def final_usage(self) -> Usage | None:
        """The usage event, else what the last event says (SGLang's own endpoint counts in each)."""
        if self._last_chunk:
            self._last, self._last_chunk = unframed(self._last_chunk), b""
        if self.usage is None and self._last:
            whole = self._last.removesuffix(DONE)
            last_event = whole[whole.rfind(END, 0, -len(END)) + 1 :].lstrip(b"\n")
            payload = payload_of(last_event)
            self.usage = usage_of(payload) if payload is not None else None
            self._last = b""
        return self.usage

    def _take_usage(self, whole: bytes, events: int) -> tuple[bytes, int]:
        kept = []
        for event in split(whole):
            payload = payload_of(event) if _USAGE.search(event) else None
            if payload is not None:
                self.usage = usage_of(payload) or self.usage
                if payload.get("choices") == []:
                    events -= 1
                    if self._hide_usage:
                        continue
            kept.append(event)
        return b"".join(kept), events


def split(whole: bytes) -> list[bytes]:
    """Events with their ends."""
    return [event + END for event in whole.split(END)[:-1]]


def payload_of(event: bytes) -> dict[str, Any] | None:
    """The JSON object of an event; None for anything else."""
    if not event.startswith(_PREFIX):
        return None
    try:
        payload = json.loads(event[len(_PREFIX) :].decode())
    except ValueError:
        return None
    return payload if isinstance(payload, dict) else None


def usage_of(payload: dict[str, Any]) -> Usage | None:
    """Token counts of an answer or event, OpenAI's `usage` or SGLang's `meta_info`."""
    usage = payload.get("usage")
    if isinstance(usage, dict):
        details = usage.get("prompt_tokens_details") or {}
        return _usage(usage.get("prompt_tokens"), usage.get("completion_tokens"), details.get("cached_tokens"))
    meta = payload.get("meta_info")
    if isinstance(meta, dict):
        return _usage(meta.get("prompt_tokens"), meta.get("completion_tokens"), meta.get("cached_tokens"))
    return None


@dataclass(frozen=True, slots=True)
class AnswerFailure:
    """An answer that says inside a 200 that there is none."""

    message: str
    status: int


def failure_of(payload: dict[str, Any]) -> AnswerFailure | None:
    """The error or abort that an answer or event reports."""
    error = payload.get("error")
    if error is None and payload.get("object") == "error":
        error = payload
    if isinstance(error, dict):
        return AnswerFailure(str(error.get("message", "error")), _status(error.get("code")))
    reason = _finish_reason(payload)
    if reason == "abort":
        return AnswerFailure("aborted by the engine", 503)
    if isinstance(reason, dict) and reason.get("type") == "abort":
        return AnswerFailure(str(reason.get("message", "aborted by the engine")), _status(reason.get("status_code")))
    return None


def _finish_reason(payload: dict[str, Any]) -> object:
    meta = payload.get("meta_info")
    if isinstance(meta, dict):
        return meta.get("finish_reason")
    choices = payload.get("choices")
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        return choices[0].get("finish_reason")
    return None


def _status(code: object) -> int:
    return code if isinstance(code, int) and 400 <= code <= 599 else 503


def _usage(prompt: object, output: object, cached: object) -> Usage | None:
    if not isinstance(prompt, int) or not isinstance(output, int):
        return None
    return Usage(prompt, output, cached if isinstance(cached, int) else 0)
