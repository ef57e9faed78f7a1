"""The public endpoints: which paths there are, and what is answered without an engine.

Invariant: a path or method that isn't served is refused by name before its body is read.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from duet_engine.gateway.callers import Callers
from duet_engine.gateway.inference import Inference
from duet_engine.gateway.live_settings import LiveSettings
from duet_engine.gateway.requests import PATHS
from duet_engine.gateway.wire.exchange import Exchange
from duet_engine.gateway.wire.messages import PLAIN_TEXT, Head, Refusal

_READ = ("GET", "HEAD")
_PROBES = ("/health", "/ready")
"""Whoever balances load has no key."""
_METHODS = {**dict.fromkeys(PATHS, ("POST",)), **dict.fromkeys(("/v1/models", *_PROBES), _READ)}


class PublicServer:
    """Handlers of the address that users call."""

    def __init__(
        self,
        inference: Inference,
        *,
        callers: Callers,
        live: Callable[[], LiveSettings],
        unready_reason: Callable[[], str | None],
    ) -> None:
        self._inference = inference
        self._callers = callers
        self._live = live
        self._unready_reason = unready_reason
        self._started_at_seconds = int(time.time())
        self._handlers = {
            **dict.fromkeys(PATHS, inference.start),
            "/v1/models": self._models,
            "/health": self._health,
            "/ready": self._ready,
        }

    def check(self, head: Head) -> Refusal | None:
        """Whether this request's body is worth reading."""
        methods = _METHODS.get(head.path)
        if methods is None:
            served = ", ".join(PATHS)
            return Refusal(404, f"Not Found: {head.path} isn't served here; text is generated at {served}")
        if head.method not in methods:
            allowed = ", ".join(methods)
            return Refusal(405, f"{head.method} isn't served at {head.path}; use {allowed}", (("allow", allowed),))
        if head.path in _PROBES:
            return None
        try:
            self._callers.identify(head.headers)
        except Refusal as refusal:
            return refusal
        return None

    def handle(self, exchange: Exchange) -> None:
        """Answer now, or later from a task."""
        self._handlers[exchange.head.path](exchange)

    def _models(self, exchange: Exchange) -> None:
        names = self._live().model_names[:1]
        entries = [
            {"id": name, "object": "model", "created": self._started_at_seconds, "owned_by": "duet", "root": name}
            for name in names
        ]
        exchange.respond_json(200, {"object": "list", "data": entries})

    def _health(self, exchange: Exchange) -> None:
        exchange.respond(200, content_type=PLAIN_TEXT)

    def _ready(self, exchange: Exchange) -> None:
        reason = self._unready_reason()
        exchange.respond(503 if reason else 200, (reason or "ready").encode(), content_type=PLAIN_TEXT)
