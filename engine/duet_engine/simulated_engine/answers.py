"""From progress to bytes: the answers of SGLang's three generating endpoints, streamed or whole.

Invariant: nothing is sent before the first token, so that a request can still be refused with a status; after it an
error is an event inside the stream. A streamed answer's bytes are made from parts that were prepared once.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from duet_engine.protocol import REFUSAL_HEADER, openai_error
from duet_engine.simulated_engine.parsing import END_OF_SEQUENCE_ID
from duet_engine.simulated_engine.request import Failure, Finish, Request

if TYPE_CHECKING:
    from duet_engine.protocol import Refusal
    from duet_engine.simulated_engine.http_server import Exchange
    from duet_engine.simulated_engine.parsing import Parsed

SERVER_SENT_EVENTS = "text/event-stream; charset=utf-8"
DONE = b"data: [DONE]\n\n"
PLACEHOLDER = "=the token's text="


def compact(document: Any) -> bytes:  # noqa: ANN401
    """JSON as SGLang writes it."""
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


def event(document: Any) -> bytes:  # noqa: ANN401
    """One server-sent event."""
    return b"data: " + compact(document) + b"\n\n"


def respond_refusal(exchange: Exchange, refusal: Refusal) -> None:
    """Tell a gateway that nothing was done and that it may go elsewhere."""
    headers = {REFUSAL_HEADER: refusal.reason.value, "retry-after": str(max(1, round(refusal.retry_after_seconds)))}
    exchange.respond(503, refusal.write(), headers=headers)


def respond_error(exchange: Exchange, message: str, *, status: int, kind: str) -> None:
    """An error in the shape of SGLang's OpenAI endpoints."""
    exchange.respond_json(status, openai_error(message, kind=kind, code=status))


def usage(request: Request) -> dict[str, Any]:
    """Token counts so far. There is no prefix cache, so `cached_tokens` is always 0."""
    return {
        "prompt_tokens": request.prompt_tokens,
        "total_tokens": request.context_tokens,
        "completion_tokens": request.generated_tokens,
        "prompt_tokens_details": {"cached_tokens": 0},
        "reasoning_tokens": 0,
    }


def matched_stop(request: Request) -> int | None:
    return END_OF_SEQUENCE_ID if request.finish is Finish.STOP else None


class Answer(ABC):
    """What all answers share: one exchange, one request, errors."""

    def __init__(self, exchange: Exchange, parsed: Parsed, *, model: str) -> None:
        self.exchange = exchange
        self.parsed = parsed
        self.model = parsed.model or model
        self.created = int(time.time())

    def token(self, request: Request) -> None:  # noqa: B027  a stream alone has something to do here
        """Whole answers wait for the end."""

    @abstractmethod
    def finished(self, request: Request) -> None:
        """All tokens are there."""

    def failed(self, request: Request, failure: Failure) -> None:  # noqa: ARG002
        """A refusal and whole answers get a status; a stream gets an error event, as SGLang's do."""
        if self.exchange.streaming or (self.parsed.request.streamed and failure.refusal is None):
            if not self.exchange.streaming:
                self.exchange.start_stream(SERVER_SENT_EVENTS)
            self.exchange.finish(event(self._error_event(failure)) + DONE)
        elif failure.refusal is not None:
            respond_refusal(self.exchange, failure.refusal)
        else:
            respond_error(self.exchange, failure.message, status=failure.status, kind=str(failure.status))

    def _error_event(self, failure: Failure) -> dict[str, Any]:
        return {"error": openai_error(failure.message, kind=failure.kind, code=failure.status)}


class StreamedAnswer(Answer):
    """An OpenAI stream: prepared bytes around each token's text."""

    def __init__(self, exchange: Exchange, parsed: Parsed, *, model: str) -> None:
        super().__init__(exchange, parsed, model=model)
        self._before, _, self._after = event(self._chunk(parsed.request, text=PLACEHOLDER)).partition(
            PLACEHOLDER.encode()
        )

    def token(self, request: Request) -> None:
        if self.exchange.streaming:
            self.exchange.write(self._token_event(request))
        else:
            self.exchange.start_stream(SERVER_SENT_EVENTS)
            self.exchange.write(self._first_events() + self._token_event(request))

    def finished(self, request: Request) -> None:
        if not self.exchange.streaming:
            self.exchange.start_stream(SERVER_SENT_EVENTS)
        last = self._last_events(request)
        if self.parsed.include_usage:
            last += event(self._envelope([]) | {"usage": usage(request)})
        self.exchange.finish(last + DONE)

    def _token_event(self, request: Request) -> bytes:
        text = request.token_text(request.generated_tokens - 1)
        if self.parsed.continuous_usage:
            return event(self._chunk(request, text=text) | {"usage": usage(request)})
        return b"%b%b%b" % (self._before, text.encode(), self._after)

    @abstractmethod
    def _envelope(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """An event with these choices."""

    @abstractmethod
    def _chunk(self, request: Request, *, text: str) -> dict[str, Any]:
        """The event of one token."""

    def _first_events(self) -> bytes:
        return b""

    @abstractmethod
    def _last_events(self, request: Request) -> bytes:
        """What follows the last token."""


class StreamedCompletion(StreamedAnswer):
    """`/v1/completions`, streamed: the last token carries the finish reason."""

    def _envelope(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.parsed.request.rid,
            "object": "text_completion",
            "created": self.created,
            "choices": choices,
            "model": self.model,
            "usage": None,
        }

    def _chunk(self, request: Request, *, text: str, finish: Finish | None = None) -> dict[str, Any]:
        choice = {
            "index": 0,
            "text": text,
            "logprobs": None,
            "finish_reason": finish,
            "matched_stop": matched_stop(request) if finish else None,
        }
        return self._envelope([choice])

    def _token_event(self, request: Request) -> bytes:
        if request.generated_tokens < request.output_tokens:
            return super()._token_event(request)
        text = request.token_text(request.generated_tokens - 1)
        last = self._chunk(request, text=text, finish=request.finish)
        return event(last | {"usage": usage(request)} if self.parsed.continuous_usage else last)

    def _last_events(self, request: Request) -> bytes:
        aborted = request.finish is Finish.ABORT
        return event(self._chunk(request, text="", finish=Finish.ABORT)) if aborted else b""


class StreamedChat(StreamedAnswer):
    """`/v1/chat/completions`, streamed: a role event before the first token, a finish event after the last."""

    def _envelope(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.parsed.request.rid,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }

    def _delta(self, delta: dict[str, Any], *, finish: Finish | None = None) -> dict[str, Any]:
        choice = {
            "index": 0,
            "delta": {"reasoning_content": None} | delta,
            "logprobs": None,
            "finish_reason": finish,
            "matched_stop": matched_stop(self.parsed.request) if finish else None,
        }
        return self._envelope([choice])

    def _chunk(self, request: Request, *, text: str) -> dict[str, Any]:  # noqa: ARG002
        return self._delta({"content": text})

    def _first_events(self) -> bytes:
        return event(self._delta({"role": "assistant", "content": ""}))

    def _last_events(self, request: Request) -> bytes:
        return event(self._delta({}, finish=request.finish))


class WholeCompletion(Answer):
    """`/v1/completions`, not streamed."""

    def finished(self, request: Request) -> None:
        self.exchange.respond(200, compact(self._envelope(request, self._choice(request), "text_completion")))

    def _choice(self, request: Request) -> dict[str, Any]:
        return {"index": 0, "text": request.text()} | self._ending(request)

    def _ending(self, request: Request) -> dict[str, Any]:
        return {"logprobs": None, "finish_reason": request.finish, "matched_stop": matched_stop(request)}

    def _envelope(self, request: Request, choice: dict[str, Any], kind: str) -> dict[str, Any]:
        return {
            "id": request.rid,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": [choice],
            "usage": usage(request),
            "metadata": {"weight_version": "default"},
        }


class WholeChat(WholeCompletion):
    """`/v1/chat/completions`, not streamed."""

    def finished(self, request: Request) -> None:
        message = {"role": "assistant", "content": request.text(), "reasoning_content": None, "tool_calls": None}
        choice = {"index": 0, "message": message} | self._ending(request)
        self.exchange.respond(200, compact(self._envelope(request, choice, "chat.completion")))


class NativeAnswer(Answer):
    """`/generate`, streamed or not: every event carries the whole text so far."""

    def __init__(self, exchange: Exchange, parsed: Parsed, *, model: str) -> None:
        super().__init__(exchange, parsed, model=model)
        self._text = ""
        self._ids: list[int] = []

    def token(self, request: Request) -> None:
        index = request.generated_tokens - 1
        self._text += request.token_text(index)
        self._ids.append(request.token_id(index))
        if request.streamed and request.generated_tokens < request.output_tokens:
            if not self.exchange.streaming:
                self.exchange.start_stream(SERVER_SENT_EVENTS)
            self.exchange.write(event(self._document(request, finish=None)))

    def finished(self, request: Request) -> None:
        document = self._document(request, finish=self._finish_reason(request))
        if not request.streamed:
            self.exchange.respond(200, compact(document))
            return
        if not self.exchange.streaming:
            self.exchange.start_stream(SERVER_SENT_EVENTS)
        self.exchange.finish(event(document) + DONE)

    def _document(self, request: Request, *, finish: dict[str, Any] | None) -> dict[str, Any]:
        meta: dict[str, Any] = {
            "id": request.rid,
            "finish_reason": finish,
            "prompt_tokens": request.prompt_tokens,
            "weight_version": "default",
            "total_retractions": request.retractions,
            "completion_tokens": request.generated_tokens,
            "cached_tokens": 0,
        }
        if finish is not None:
            meta["e2e_latency"] = request.last_token_at - request.arrived_at
        return {"text": self._text, "output_ids": self._ids, "meta_info": meta}

    def _finish_reason(self, request: Request) -> dict[str, Any]:
        if request.finish is Finish.ABORT:
            return {"type": "abort", "message": "Aborted"}
        if request.finish is Finish.STOP:
            return {"type": "stop", "matched": END_OF_SEQUENCE_ID}
        return {"type": "length", "length": request.generated_tokens}

    def _error_event(self, failure: Failure) -> dict[str, Any]:
        return {"error": {"message": failure.message}}
