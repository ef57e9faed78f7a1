"""One request to an OpenAI endpoint, timed as a user would see it.

Invariant: on the token path only event ends are counted; JSON is parsed once, at the end. Whatever isn't a whole,
correct answer is a failure that says what was wrong: another status than 200, an error event, a stream without its
end, or another number of tokens than asked for.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import aiohttp

from duet_dev.demo.records import Record
from duet_engine.protocol import ROUTE_HEADER

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
OPENING_EVENTS = {CHAT: 1}
"""Events before a stream's first token: chat opens with the role, sent together with that token."""
EVENT_END = b"\n\n"
LAST_EVENT = b"data: [DONE]"
KEPT_BYTES = 8192
"""Enough of a stream's end for its last events, which carry usage or an error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What to send."""

    index: int
    endpoint: str
    streamed: bool
    body: bytes
    input_tokens: int
    output_tokens: int


@dataclass(slots=True)
class StreamReader:
    """Times of a stream's events, and its last bytes."""

    sent_at: float
    first_event_at: float | None = None
    gaps_seconds: list[float] = field(default_factory=list)
    tail: bytes = b""
    _last_event_at: float = 0.0

    def feed(self, data: bytes, now: float) -> None:
        """Bytes as they came. Several events in one read came at once: one gap and then zeros."""
        split_end = self.tail.endswith(b"\n") and not self.tail.endswith(EVENT_END) and data.startswith(b"\n")
        events = data.count(EVENT_END) + split_end
        self.tail = (self.tail + data)[-KEPT_BYTES:]
        if not events:
            return
        if self.first_event_at is None:
            self.first_event_at = now
        else:
            self.gaps_seconds.append(now - self._last_event_at)
        self.gaps_seconds.extend([0.0] * (events - 1))
        self._last_event_at = now


def stream_failure(tail: bytes, output_tokens: int) -> str | None:
    """What is wrong with a stream that ended so, or None."""
    events = [event for event in tail.split(EVENT_END) if event.strip()]
    for event in events:
        if b'"error"' in event and (message := _error_message(event.removeprefix(b"data: "))):
            return message
    if not events or events[-1].strip() != LAST_EVENT:
        return "the stream ended without its last event"
    usage = next((event for event in reversed(events) if b'"completion_tokens"' in event), None)
    if usage is None:
        return "the stream had no usage"
    return answer_failure(usage.removeprefix(b"data: "), output_tokens)


def answer_failure(body: bytes, output_tokens: int) -> str | None:
    """What is wrong with a whole answer, or a stream's usage event, or None."""
    try:
        produced = json.loads(body)["usage"]["completion_tokens"]
    except (ValueError, KeyError, TypeError):
        return f"unreadable usage: {body[:200]!r}"
    return None if produced == output_tokens else f"{produced} output tokens, asked for {output_tokens}"


def _error_message(event: bytes) -> str | None:
    try:
        error = json.loads(event).get("error")
    except (ValueError, AttributeError):
        return None
    return f"error event: {error}" if error else None


async def send(session: aiohttp.ClientSession, ask: Ask) -> Record:
    """Send one request and read its whole answer; never raises for what the server does."""
    clock_offset = time.time() - time.perf_counter()
    reader = StreamReader(sent_at=time.perf_counter())
    failure: str | None
    headers: Mapping[str, str] = {}
    try:
        async with session.post(ask.endpoint, data=ask.body) as response:
            headers = response.headers
            if response.status != 200:
                failure = f"HTTP {response.status}: {(await response.text())[:200]}"
            elif ask.streamed:
                async for data in response.content.iter_any():
                    reader.feed(data, time.perf_counter())
                failure = stream_failure(reader.tail, ask.output_tokens)
            else:
                failure = answer_failure(await response.read(), ask.output_tokens)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        failure = f"{type(error).__name__}: {error}"
    ended_at = time.perf_counter()
    first_gap = OPENING_EVENTS.get(ask.endpoint, 0)
    gaps_seconds = reader.gaps_seconds[first_gap : first_gap + ask.output_tokens - 1]
    return Record(
        index=ask.index,
        endpoint=ask.endpoint,
        streamed=ask.streamed,
        sent_at_seconds=reader.sent_at + clock_offset,
        duration_seconds=ended_at - reader.sent_at,
        input_tokens=ask.input_tokens,
        output_tokens=ask.output_tokens,
        ttft_seconds=None if reader.first_event_at is None else reader.first_event_at - reader.sent_at,
        gaps_milliseconds=tuple(round(1000 * gap, 1) for gap in gaps_seconds),
        deflected=headers.get(ROUTE_HEADER, "").startswith("deflect"),
        failure=failure,
    )
