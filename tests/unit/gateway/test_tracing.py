"""Spans: what a collector gets, whose trace they belong to, and what a collector that is away costs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from duet_engine.gateway import tracing
from duet_engine.gateway.record import End, RequestRecord
from duet_engine.gateway.tracing import Tracer, context_of, tracer

CALLER = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as opened:
        yield opened


def record(**changes: Any) -> RequestRecord:
    made = RequestRecord(arrived_at=10.0, path="/generate", streamed=True, route="prefill=p decode=d", rid="r")
    made.dispatched_at, made.first_at, made.last_at = 10.1, 10.4, 11.0
    made.end, made.output_tokens = End.COMPLETED, 7
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def test_a_trace_is_the_callers_or_its_own_or_none() -> None:
    below = context_of(CALLER)
    assert below is not None and (below.trace_id, below.parent_id) == ("ab" * 16, "cd" * 8)
    assert below.header().startswith("00-" + "ab" * 16) and below.span_id in below.header()
    for unusable in (None, "", "garbage", CALLER.upper(), "00-" + "0" * 32 + "-" + "cd" * 8 + "-01"):
        own = context_of(unusable)
        assert own is not None and own.trace_id != "ab" * 16 and not own.parent_id
    assert context_of(CALLER[:-2] + "00") is None, "the caller doesn't want it traced"


def test_without_the_variables_nothing_is_traced(session: Any = None) -> None:
    assert tracer(session, {}, instance="i") is None
    assert (
        tracer(session, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_SDK_DISABLED": "true"}, instance="i") is None
    )


async def test_a_collector_gets_the_request_and_its_steps(session: aiohttp.ClientSession) -> None:
    got: list[tuple[dict[str, Any], str]] = []

    async def traces(http: web.Request) -> web.Response:
        got.append((await http.json(), http.headers["x-tenant"]))
        return web.json_response({})

    app = web.Application()
    app.router.add_post("/v1/traces", traces)
    async with TestServer(app) as collector:
        variables = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": str(collector.make_url("/")),
            "OTEL_EXPORTER_OTLP_HEADERS": "x-tenant=a%20b",
            "OTEL_SERVICE_NAME": "chat",
        }
        made = tracer(session, variables, instance="i")
        context = context_of(CALLER)
        assert made is not None and context is not None
        made.finished(record(end=End.FAILED, error="gone"), context)
        await made.flush()
        await made.flush()
    ((document, tenant),) = got
    assert tenant == "a b"
    (resource_spans,) = document["resourceSpans"]
    assert {"key": "service.name", "value": {"stringValue": "chat"}} in resource_spans["resource"]["attributes"]
    request, *steps = resource_spans["scopeSpans"][0]["spans"]
    assert (request["traceId"], request["parentSpanId"]) == ("ab" * 16, "cd" * 8)
    assert request["status"] == {"code": 2, "message": "gone"}
    assert {"key": "gen_ai.usage.output_tokens", "value": {"intValue": "7"}} in request["attributes"]
    assert [step["name"] for step in steps] == ["queue", "first token", "decode"]
    assert all(step["parentSpanId"] == request["spanId"] for step in steps)
    lengths = [(int(step["endTimeUnixNano"]) - int(step["startTimeUnixNano"])) / 1e9 for step in steps]
    assert lengths == pytest.approx([0.1, 0.3, 0.6], abs=0.001)


async def test_a_collector_that_is_away_costs_spans_only(
    session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "MOST_WAITING_SPANS", 8)
    made = Tracer(session, "http://127.0.0.1:1/v1/traces", headers={}, resource={})
    context = context_of(None)
    assert context is not None
    for _ in range(5):
        made.finished(record(), context)
    assert made.dropped_total == 3, "no more wait than fit"
    await made.flush()
    assert made.dropped_total == 3 + 8
