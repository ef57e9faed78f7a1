"""The path of every token: whole events from an engine's socket to a client's, counted as they pass.

Invariant: gaps are taken when the bytes are read, before the client can be waited for; n events in one read are one gap
and n - 1 zeros. A client that doesn't keep up stops the reading of its engine, never anyone else's.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from duet_engine.protocol import ROUTE_HEADER

if TYPE_CHECKING:
    from duet_engine.gateway.attempt import Attempt
    from duet_engine.gateway.demand import ClassCounters
    from duet_engine.gateway.record import RequestRecord
    from duet_engine.gateway.wire.exchange import Exchange

EVENT_STREAM = "text/event-stream; charset=utf-8"


class TokenStream:
    """Receives one attempt's stream for one exchange."""

    __slots__ = (
        "_attempt",
        "_blocked_in_gap_seconds",
        "_blocked_since",
        "_counters",
        "_exchange",
        "_itl_seconds",
        "_record",
    )

    def __init__(
        self,
        exchange: Exchange,
        attempt: Attempt,
        record: RequestRecord,
        counters: ClassCounters,
        *,
        itl_seconds: float,
    ) -> None:
        self._exchange = exchange
        self._attempt = attempt
        self._record = record
        self._counters = counters
        self._itl_seconds = itl_seconds
        self._blocked_since: float | None = None
        self._blocked_in_gap_seconds = 0.0
        exchange.on_flow = self.flow

    def begin(self, first: bytes, tokens: int) -> None:
        """The answer's head and first events."""
        record = self._record
        record.last_at = record.first_at or record.arrived_at
        record.relayed_tokens = tokens
        self._counters.began(record)
        headers = ((ROUTE_HEADER, record.route), ("cache-control", "no-cache"))
        self._exchange.begin(first, content_type=EVENT_STREAM, headers=headers)

    @property
    def takes_chunks(self) -> bool:
        return self._exchange.chunked

    def events(self, whole: bytes, tokens: int, now: float) -> None:
        """Further events."""
        if tokens > 0:
            self._count(tokens, now)
        self._exchange.write(whole)

    def token(self, chunk: bytes, now: float) -> None:
        """One event with one token, framed."""
        self._count(1, now)
        self._exchange.write_chunk(chunk)

    def _count(self, tokens: int, now: float) -> None:
        record = self._record
        gap_seconds = now - record.last_at
        self._counters.gap(gap_seconds, tokens)
        if gap_seconds > self._itl_seconds:
            record.gaps_over_objective += 1
            record.gaps_over_for_client += 2 * self._blocked_in_gap_seconds > gap_seconds
        self._blocked_in_gap_seconds = 0.0
        record.last_at = now
        record.relayed_tokens += tokens

    def flow(self, running: bool) -> None:
        """The client doesn't keep up, or has caught up."""
        self._attempt.flow(running)
        if not running:
            self._blocked_since = monotonic()
        elif self._blocked_since is not None:
            seconds = monotonic() - self._blocked_since
            self._blocked_since = None
            self._blocked_in_gap_seconds += seconds
            self._record.blocked_seconds += seconds
