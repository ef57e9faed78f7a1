"""SGLang's warm-up: at its start the server asks itself for a few tokens, over HTTP and without a token of ours.

Invariant: these calls prove themselves by a secret that only this process knows, good until the warm-up is over. That a
caller has this pod's address proves nothing: behind a service mesh every caller has.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable
from typing import Any

HEADER = "x-duet-warm-up"


class WarmUp:
    """The secret of one process's warm-up."""

    def __init__(self) -> None:
        self._secret: str | None = None

    def proven(self, headers: dict[str, str]) -> bool:
        """Whether a call is one of ours."""
        shown = headers.get(HEADER)
        return self._secret is not None and shown is not None and hmac.compare_digest(shown, self._secret)

    def begin(self) -> dict[str, str]:
        """What calls must carry from now on."""
        self._secret = secrets.token_urlsafe(32)
        return {HEADER: self._secret}

    def end(self) -> None:
        """Nobody is believed any more."""
        self._secret = None

    def run(self, original: Callable[..., Any], *arguments: Any, **options: Any) -> Any:  # noqa: ANN401
        """SGLang's warm-up, with the proof in the calls that it makes by `requests`."""
        from sglang.srt.entrypoints import http_server

        plain = http_server.requests
        http_server.requests = Requests(plain, self.begin())
        try:
            return original(*arguments, **options)
        finally:
            http_server.requests = plain
            self.end()

    def send(self, original: Callable[..., Any], **options: Any) -> Any:  # noqa: ANN401
        """The part of it for prefill and decode servers, which brings its headers along."""
        shown = {} if self._secret is None else {HEADER: self._secret}
        return original(**options | {"headers": {**options.get("headers", {}), **shown}})


class Requests:
    """The library `requests` with headers in each call, as far as SGLang's warm-up uses it."""

    def __init__(self, library: Any, headers: dict[str, str]) -> None:  # noqa: ANN401
        self._library = library
        self._headers = headers

    def get(self, url: str, *, headers: dict[str, str] | None = None, **options: Any) -> Any:  # noqa: ANN401
        return self._library.get(url, headers={**(headers or {}), **self._headers}, **options)

    def post(self, url: str, *, headers: dict[str, str] | None = None, **options: Any) -> Any:  # noqa: ANN401
        return self._library.post(url, headers={**(headers or {}), **self._headers}, **options)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._library, name)
