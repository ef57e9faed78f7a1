"""The public endpoints: OpenAI's and SGLang's, streamed or not.

Invariant: a client's answer is begun only when an engine has produced a first token, so every earlier failure has a
proper HTTP status; once begun it ends with what the engine sent, or with an error event. Bodies are never logged.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from time import monotonic

from aiohttp import web

from duet_engine.gateway.demand import ClassCounters, Demand
from duet_engine.gateway.errors import GatewayError, error_event
from duet_engine.gateway.failures import Rejected, WorkerFailed
from duet_engine.gateway.live_settings import LiveSettings
from duet_engine.gateway.loop_lag import LoopLag
from duet_engine.gateway.record import End, RequestRecord
from duet_engine.gateway.relay import Relay
from duet_engine.gateway.requests import PATHS, ClientRequest, parse
from duet_engine.gateway.settings import Limits
from duet_engine.gateway.tokens import TokenEstimator
from duet_engine.gateway.upstream import Answer
from duet_engine.protocol import ROUTE_HEADER

access_log = logging.getLogger("duet_engine.gateway.access")

_JSON = "application/json"
_NOTICEABLE_SECONDS = 0.001
_SMALL_WRITE_BYTES = 32 * 1024
"""Into an empty buffer it never has to wait."""


class _Client:
    """Where a stream goes. One that leaves its answer unread for too long is as good as gone."""

    __slots__ = ("_http", "_response", "_stall_seconds")

    def __init__(self, http: web.Request, response: web.StreamResponse, stall_seconds: float) -> None:
        self._http = http
        self._response = response
        self._stall_seconds = stall_seconds

    async def write(self, data: bytes) -> None:
        """Send, or wait until there is room to.

        Raises:
            ConnectionResetError: the client is gone.
        """
        transport = self._http.transport
        if transport is None or (len(data) < _SMALL_WRITE_BYTES and not transport.get_write_buffer_size()):
            await self._response.write(data)
            return
        try:
            async with asyncio.timeout(self._stall_seconds):
                await self._response.write(data)
        except TimeoutError:
            transport.abort()
            raise ConnectionResetError(f"nothing read for {self._stall_seconds:g} s") from None


class PublicServer:
    """Handlers of the address that users call."""

    def __init__(
        self,
        relay: Relay,
        *,
        demand: Demand,
        tokens: TokenEstimator,
        lag: LoopLag,
        limits: Limits,
        live: Callable[[], LiveSettings],
        unready_reason: Callable[[], str | None],
    ) -> None:
        self._relay = relay
        self._demand = demand
        self._tokens = tokens
        self._lag = lag
        self._limits = limits
        self._live = live
        self._unready_reason = unready_reason
        self._started_at_seconds = int(time.time())
        self.inflight = 0
        self.idle = asyncio.Event()
        self.idle.set()

    def application(self) -> web.Application:
        app = web.Application(client_max_size=self._limits.body_bytes)
        for path in PATHS:
            app.router.add_post(path, self._inference)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/health", self._health)
        app.router.add_get("/ready", self._ready)
        app.middlewares.append(_json_errors)
        return app

    async def _inference(self, http: web.Request) -> web.StreamResponse:
        self.inflight += 1
        self.idle.clear()
        try:
            return await self._answered(http)
        finally:
            self.inflight -= 1
            if not self.inflight:
                self.idle.set()

    async def _answered(self, http: web.Request) -> web.StreamResponse:
        arrived_at = monotonic()
        request = parse(http.path, await self._body(http), model_names=self._live().model_names)
        record = RequestRecord(
            arrived_at=arrived_at,
            path=request.path,
            streamed=request.streamed,
            prompt_tokens=request.given_tokens or self._tokens.estimate(request.text_bytes),
        )
        counters = self._demand.of(record)
        counters.arrived(record)
        try:
            return await self._served(http, request, record, counters)
        except GatewayError as error:
            record.end = End.REJECTED if error.status in (429, 503) else End.FAILED
            record.error = error.message
            raise
        except (asyncio.CancelledError, ConnectionResetError) as error:
            record.end, record.error = End.CANCELLED, str(error)
            raise
        finally:
            self._finish(record, counters)

    async def _body(self, http: web.Request) -> bytes:
        try:
            async with asyncio.timeout(self._limits.body_timeout_seconds):
                return await http.read()
        except TimeoutError as error:
            limit = self._limits.body_timeout_seconds
            raise GatewayError(408, f"body: not complete within {limit:g} s") from error

    async def _served(
        self, http: web.Request, request: ClientRequest, record: RequestRecord, counters: ClassCounters
    ) -> web.StreamResponse:
        try:
            answer = await self._relay.answer(request, record, on_retry=self._count_retry)
        except Rejected as rejected:
            record.end = End.REFUSED
            return web.Response(
                status=rejected.status,
                body=rejected.body,
                content_type=_JSON,
                headers={ROUTE_HEADER: record.route},
            )
        try:
            response = (
                await self._stream(http, answer, record, counters)
                if answer.streamed
                else self._whole(answer, record, counters)
            )
        finally:
            answer.attempt.cancel()
        if request.given_tokens is None and answer.usage is not None:
            self._tokens.learn(text_bytes=request.text_bytes, prompt_tokens=answer.usage.prompt_tokens)
        return response

    def _whole(self, answer: Answer, record: RequestRecord, counters: ClassCounters) -> web.Response:
        record.last_at = monotonic()
        if record.first_at is None:
            assert record.dispatched_at is not None
            record.first_at = min(record.last_at, record.dispatched_at + record.predicted_ttft_seconds)
        counters.began(record)
        self._completed(answer, record)
        return web.Response(body=answer.content, content_type=_JSON, headers={ROUTE_HEADER: record.route})

    async def _stream(
        self, http: web.Request, answer: Answer, record: RequestRecord, counters: ClassCounters
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={ROUTE_HEADER: record.route, "Cache-Control": "no-cache"})
        response.content_type = "text/event-stream"
        record.last_at = record.first_at or record.arrived_at
        record.relayed_tokens = answer.tokens
        counters.began(record)
        client = _Client(http, response, self._limits.client_stall_seconds)
        await response.prepare(http)
        await client.write(answer.content)
        try:
            await self._relay_events(answer, client, record, counters)
        except WorkerFailed as failed:
            record.end, record.error = End.FAILED, str(failed)
            if failed.blames_worker:
                failed.worker.failed(monotonic())
            await client.write(error_event(f"the stream broke off: {failed}", status=502))
        else:
            if answer.attempt.reported_failure:
                record.end, record.error = End.FAILED, "the engine sent an error event"
            else:
                self._completed(answer, record)
        await response.write_eof()
        return response

    async def _relay_events(
        self, answer: Answer, client: _Client, record: RequestRecord, counters: ClassCounters
    ) -> None:
        clock, itl_seconds = monotonic, self._live().objective.itl_seconds
        blocked_seconds = 0.0
        async for events, tokens in answer.attempt.rest():
            now = clock()
            if tokens > 0:
                gap_seconds = now - record.last_at
                counters.gap(gap_seconds, tokens)
                if gap_seconds > itl_seconds:
                    record.gaps_over_objective += 1
                    record.gaps_over_for_client += 2 * blocked_seconds > gap_seconds
                record.last_at = now
                record.relayed_tokens += tokens
                blocked_seconds = 0.0
            await client.write(events)
            written_seconds = clock() - now
            if written_seconds > _NOTICEABLE_SECONDS:
                blocked_seconds += written_seconds
                record.blocked_seconds += written_seconds

    def _completed(self, answer: Answer, record: RequestRecord) -> None:
        record.end = End.COMPLETED
        record.output_tokens = record.relayed_tokens
        usage = answer.usage
        if usage is not None:
            record.prompt_tokens = usage.prompt_tokens
            record.output_tokens = usage.output_tokens
            record.cached_tokens = usage.cached_tokens
        answer.attempt.succeeded()

    def _count_retry(self, reason: str) -> None:
        self._demand.retries[reason] += 1

    def _finish(self, record: RequestRecord, counters: ClassCounters) -> None:
        if record.end is None:  # an error of the gateway's own, on its way to the log
            record.end = End.FAILED
        record.last_at = max(record.last_at, record.arrived_at) if record.first_at else monotonic()
        record.loop_lag_seconds = self._lag.p99_seconds()
        counters.ended(record, self._live().objective)
        kind = record.route.split("=", 1)[0] or "none"
        self._demand.requests[record.path, kind, record.end] += 1
        access_log.info(
            "%s %s%s prompt=%d output=%d ttft=%.0fms total=%.0fms waited=%.0fms retries=%d route=[%s]%s",
            record.path,
            record.end,
            " stream" if record.streamed else "",
            record.prompt_tokens,
            record.output_tokens,
            record.ttft_seconds * 1e3,
            (monotonic() - record.arrived_at) * 1e3,
            record.waited_seconds * 1e3,
            record.retries,
            record.route,
            f" error={record.error!r}" if record.error else "",
        )

    async def _models(self, _: web.Request) -> web.Response:
        names = self._live().model_names[:1]
        entries = [
            {"id": name, "object": "model", "created": self._started_at_seconds, "owned_by": "duet", "root": name}
            for name in names
        ]
        return web.json_response({"object": "list", "data": entries})

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _ready(self, _: web.Request) -> web.Response:
        reason = self._unready_reason()
        return web.Response(status=503, text=reason) if reason else web.Response(text="ready")


@web.middleware
async def _json_errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Errors that come before an answer has begun, as JSON."""
    try:
        return await handler(request)
    except GatewayError as error:
        return _error_response(error)
    except web.HTTPException as error:
        if error.status == 413:
            error.text = "body: larger than this gateway accepts"
        return _error_response(GatewayError(error.status, error.text or error.reason))


def _error_response(error: GatewayError) -> web.Response:
    response = web.Response(status=error.status, body=error.body(), content_type=_JSON)
    if error.retry_after_seconds is not None:
        response.headers["Retry-After"] = str(max(1, round(error.retry_after_seconds)))
    return response
