"""One request inside the engine: what was asked, how far it is, and who hears about it.

Invariant: a request is in exactly one stage; `DONE` is final, and its listener hears exactly one of `finished` and
`failed`, after all its tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from duet_engine.protocol import Refusal, RefusalReason

WORDS = (
    *("the", "of", "and", "to", "in", "is", "for", "on", "that", "by", "this", "with", "you", "it", "not", "or", "be"),
    *("are", "from", "at", "as", "your", "all", "have", "new", "more", "an", "was", "we", "will", "home", "can", "us"),
    *("about", "if", "page", "my", "has", "search", "free", "but", "our", "one", "other", "do", "no", "they", "site"),
    *("he", "up", "may", "what", "which", "their", "news", "out", "use", "any", "there", "see", "only", "so", "his"),
)
"""Texts of the vocabulary's tokens: token `i` reads as a space and `WORDS[i % len(WORDS)]`."""


class Stage(StrEnum):
    """Where a request is. The names are those of SGLang's queues."""

    NEW = "new"
    BOOTSTRAP = "bootstrap"
    WAITING = "waiting"
    INFLIGHT = "inflight"
    PREALLOC = "prealloc"
    TRANSFER = "transfer"
    TRANSFERRED = "transferred"
    DEFLECTED = "deflected"
    RUNNING = "running"
    RETRACTED = "retracted"
    DONE = "done"


class Finish(StrEnum):
    """Why a generation ended, in SGLang's words."""

    LENGTH = "length"
    STOP = "stop"
    ABORT = "abort"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a request ended without its tokens. With a refusal nothing at all was done for it."""

    message: str
    status: int = 500
    kind: str = "INTERNAL_SERVER_ERROR"
    refusal: Refusal | None = None


class Refused(Exception):
    """Nothing was done for a request; another worker may take it at once."""

    def __init__(self, reason: RefusalReason, message: str, *, retry_after_seconds: float = 1.0) -> None:
        super().__init__(message)
        self.refusal = Refusal(reason=reason, message=message, retry_after_seconds=retry_after_seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """Where prefill and decode worker meet for one request."""

    host: str
    port: int
    number: int


class Listener(Protocol):
    """Who writes a request's answer."""

    def token(self, request: Request) -> None:
        """The request has one more token."""

    def finished(self, request: Request) -> None:
        """All tokens are there."""

    def failed(self, request: Request, failure: Failure) -> None:
        """No further token comes."""


@dataclass(slots=True, kw_only=True, eq=False)
class Request:
    """A request and its progress. `output_tokens` is how many tokens it gets; only the simulation knows it ahead."""

    rid: str
    prompt_tokens: int
    max_new_tokens: int
    output_tokens: int
    finish: Finish = Finish.LENGTH
    seed: int = 0
    room: Room | None = None
    deflected: bool = False
    chunk_bounds: tuple[int, ...] = ()
    streamed: bool = False
    listener: Listener | None = None

    stage: Stage = Stage.NEW
    computed_tokens: int = 0
    generated_tokens: int = 0
    chunks_done: int = 0
    retractions: int = 0
    kv_tokens: int = 0
    kv_reserved_tokens: int = 0
    arrived_at: float = 0.0
    queued_at: float = 0.0
    progressed_at: float = 0.0
    started_at: float | None = None
    """When the first step with it began."""
    first_token_at: float | None = None
    last_token_at: float = 0.0
    gap_seconds: float = 0.0
    """Between the last token and the one before."""
    claimed: bool = False
    """The prefill side has been asked for its KV."""
    transferred_at: float = 0.0

    @property
    def context_tokens(self) -> int:
        return self.prompt_tokens + self.generated_tokens

    @property
    def uncomputed_tokens(self) -> int:
        """What prefill must still compute. A retracted request computes its own output again."""
        return self.context_tokens - self.computed_tokens

    @property
    def done(self) -> bool:
        return self.stage is Stage.DONE

    def token_id(self, index: int) -> int:
        """Output token `index`: a fixed function of the request, so that equal requests get equal answers."""
        return (self.seed + index * 7919) % 32_000

    def token_text(self, index: int) -> str:
        return " " + WORDS[self.token_id(index) % len(WORDS)]

    def text(self) -> str:
        """Everything generated so far."""
        return "".join(self.token_text(index) for index in range(self.generated_tokens))
