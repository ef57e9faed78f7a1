"""Answers of the gateway itself when a request can't be served.

Invariant: every error has an HTTP status, a sentence for the client, and Retry-After where trying again makes sense.
"""

from __future__ import annotations

import json

from duet_engine.protocol import openai_error

_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
}


class GatewayError(Exception):
    """An answer other than the engine's."""

    def __init__(self, status: int, message: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.retry_after_seconds = retry_after_seconds

    def body(self) -> bytes:
        """The body in the shape that OpenAI clients read (`error.message`) and SGLang's (`message`)."""
        return error_body(self.message, status=self.status)


def _kind(status: int) -> str:
    return _KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")


def error_body(message: str, *, status: int) -> bytes:
    """JSON of an error."""
    flat = openai_error(message, kind=_kind(status), code=status)
    nested = {key: flat[key] for key in ("message", "type", "param", "code")}
    return json.dumps({**flat, "error": nested}).encode()


def error_event(message: str, *, status: int) -> bytes:
    """The last event of a stream that broke after its first token."""
    flat = openai_error(message, kind=_kind(status), code=status)
    nested = {key: flat[key] for key in ("message", "type", "param", "code")}
    return b"data: " + json.dumps({"error": nested}).encode() + b"\n\n"
