"""OpenTelemetry spans of requests, sent as OTLP over HTTP with JSON where the standard variables name a collector.

Invariant: a request costs a few lists; a collector that is slow or away costs spans, never requests or memory. Spans
are made when a request has ended, from its record, and hold what the access log holds: no prompts, answers or keys.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Mapping
from time import monotonic
from typing import Any
from urllib.parse import unquote

import aiohttp

from duet_engine.gateway.record import End, RequestRecord, TraceContext

log = logging.getLogger(__name__)

FLUSH_SECONDS = 2.0
MOST_WAITING_SPANS = 4096
_TIMEOUT = aiohttp.ClientTimeout(total=5.0)
_PARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_SERVER, _INTERNAL, _ERROR = 2, 1, 2
_Span = dict[str, Any]


def context_of(traceparent: str | None) -> TraceContext | None:
    """A new span below the caller's, or a trace of its own; None where the caller wants no trace."""
    found = _PARENT.fullmatch(traceparent or "")
    if found is None or found[1] == "0" * 32 or found[2] == "0" * 16:
        return TraceContext(secrets.token_hex(16), secrets.token_hex(8))
    return TraceContext(found[1], secrets.token_hex(8), found[2]) if int(found[3], 16) & 1 else None


class Tracer:
    """Keeps spans until the next batch leaves."""

    def __init__(
        self, session: aiohttp.ClientSession, url: str, *, headers: Mapping[str, str], resource: _Span
    ) -> None:
        self._session = session
        self._url = url
        self._headers = dict(headers)
        self._resource = resource
        self._waiting: list[_Span] = []
        self._epoch_seconds = time.time() - monotonic()
        self._complained = False
        self.dropped_total = 0

    def finished(self, record: RequestRecord, context: TraceContext) -> None:
        """A request has ended: its span, and those of what it waited for."""
        if len(self._waiting) >= MOST_WAITING_SPANS:
            self.dropped_total += 1
            return
        self._waiting.append(self._span(record.path, context, _SERVER, record.arrived_at, record.last_at, record))
        steps = (
            ("queue", record.arrived_at, record.dispatched_at),
            ("first token", record.dispatched_at, record.first_at),
            ("decode", record.first_at, record.last_at),
        )
        for name, start, end in steps:
            if start is not None and end is not None and end >= start:
                child = TraceContext(context.trace_id, secrets.token_hex(8), context.span_id)
                self._waiting.append(self._span(name, child, _INTERNAL, start, end))

    async def run(self) -> None:
        """Send what waits, now and then; never ends by itself."""
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            await self.flush()

    async def flush(self) -> None:
        """Send what waits now."""
        spans, self._waiting = self._waiting, []
        if not spans:
            return
        document = {"resourceSpans": [{"resource": self._resource, "scopeSpans": [{"scope": _SCOPE, "spans": spans}]}]}
        try:
            async with self._session.post(
                self._url, json=document, headers=self._headers, timeout=_TIMEOUT, raise_for_status=True
            ):
                self._complained = False
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self.dropped_total += len(spans)
            if not self._complained:
                log.warning(
                    "%d spans could not be sent to %s: %s", len(spans), self._url, str(error) or type(error).__name__
                )
                self._complained = True

    def _span(
        self,
        name: str,
        context: TraceContext,
        kind: int,
        start: float,
        end: float,
        record: RequestRecord | None = None,
    ) -> _Span:
        span: _Span = {
            "traceId": context.trace_id,
            "spanId": context.span_id,
            "name": name,
            "kind": kind,
            "startTimeUnixNano": self._nanoseconds(start),
            "endTimeUnixNano": self._nanoseconds(max(start, end)),
        }
        if context.parent_id:
            span["parentSpanId"] = context.parent_id
        if record is not None:
            span["attributes"] = _attributes(_told(record))
            if record.end in (End.FAILED, End.REJECTED):
                span["status"] = {"code": _ERROR, "message": record.error}
        return span

    def _nanoseconds(self, at: float) -> str:
        return str(int((self._epoch_seconds + at) * 1e9))


def tracer(session: aiohttp.ClientSession, environment: Mapping[str, str], *, instance: str) -> Tracer | None:
    """By the variables of the OpenTelemetry specification; None where they name no collector."""
    base = environment.get("OTEL_EXPORTER_OTLP_ENDPOINT", "")
    url = environment.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or (base.rstrip("/") + "/v1/traces" if base else "")
    if not url or environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    pairs = (pair.partition("=") for pair in environment.get("OTEL_EXPORTER_OTLP_HEADERS", "").split(",") if pair)
    headers = {name.strip(): unquote(value.strip()) for name, _, value in pairs}
    service = environment.get("OTEL_SERVICE_NAME", "duet-gateway")
    resource = {"attributes": _attributes({"service.name": service, "service.instance.id": instance})}
    return Tracer(session, url, headers=headers, resource=resource)


_SCOPE = {"name": "duet_engine.gateway"}


def _told(record: RequestRecord) -> dict[str, str | int | bool]:
    return {
        "url.path": record.path,
        "duet.end": str(record.end),
        "duet.route": record.route,
        "duet.rid": record.rid,
        "duet.class": record.class_name,
        "duet.streamed": record.streamed,
        "duet.retries": record.retries,
        "gen_ai.usage.input_tokens": record.prompt_tokens,
        "gen_ai.usage.output_tokens": record.output_tokens,
    }


def _attributes(values: Mapping[str, str | int | bool]) -> list[_Span]:
    return [{"key": key, "value": _value(value)} for key, value in values.items()]


def _value(value: str | int | bool) -> _Span:
    if isinstance(value, bool):
        return {"boolValue": value}
    return {"intValue": str(value)} if isinstance(value, int) else {"stringValue": value}
