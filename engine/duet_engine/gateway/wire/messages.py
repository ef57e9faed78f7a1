"""What travels: a request that was understood, a refusal of one that wasn't, and the heads of both directions.

Invariant: no byte of a client's head is ever passed on; every head that leaves is built here from values of our own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus

from duet_engine.gateway.errors import error_body

Headers = dict[str, str]
"""By lower-case name."""
HeaderItems = Iterable[tuple[str, str]]

JSON = "application/json"
PLAIN_TEXT = "text/plain; charset=utf-8"
_HEADS_KEPT = 4096
_REASONS = {status.value: status.phrase for status in HTTPStatus}


@dataclass(frozen=True, slots=True)
class Head:
    """A request's first part."""

    method: str
    path: str
    """Without its query, which nothing here reads."""
    headers: Headers


class Refusal(Exception):
    """An answer to a request that isn't handled, for the reason that it gives; the connection ends with it."""

    def __init__(self, status: int, message: str, headers: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers

    def answer(self) -> bytes:
        """Head and body."""
        body = error_body(self.message, status=self.status)
        fixed = (("content-type", JSON), ("content-length", str(len(body))), ("connection", "close"))
        return response_head(self.status, (*fixed, *self.headers)) + body


def response_head(status: int, headers: HeaderItems) -> bytes:
    """Status line and headers, with the empty line after them."""
    lines = [f"HTTP/1.1 {status} {_REASONS.get(status, 'Unknown')}", *_lines(headers)]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")


@lru_cache(maxsize=_HEADS_KEPT)
def stream_head(headers: tuple[tuple[str, str], ...]) -> bytes:
    """Of a streamed answer: the same for all that go one way."""
    return response_head(200, headers)


@lru_cache(maxsize=_HEADS_KEPT)
def request_head(path: str, headers: tuple[tuple[str, str], ...]) -> bytes:
    """Of a POST, but for its length and the empty line at the end: the same for all requests to one worker."""
    return "".join(f"{part}\r\n" for part in (f"POST {path} HTTP/1.1", *_lines(headers))).encode("latin-1")


def _lines(headers: HeaderItems) -> Iterator[str]:
    return (f"{name}: {value}" for name, value in headers)
