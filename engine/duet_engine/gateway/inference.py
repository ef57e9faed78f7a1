"""One request's life: from its body to the last byte of its answer.

Invariant: a client's answer is begun only when an engine has produced a first token, so every earlier failure has a
proper HTTP status; once begun it ends with what the engine sent, or with an error event. Bodies are never logged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from time import monotonic

from duet_engine.gateway.access_log import log_access
from duet_engine.gateway.attempt import Answer
from duet_engine.gateway.callers import Callers
from duet_engine.gateway.demand import ClassCounters, Demand
from duet_engine.gateway.errors import GatewayError, error_event
from duet_engine.gateway.failures import Rejected, WorkerFailed
from duet_engine.gateway.live_settings import LiveSettings
from duet_engine.gateway.loop_lag import LoopLag
from duet_engine.gateway.record import End, RequestRecord
from duet_engine.gateway.relay import Relay
from duet_engine.gateway.requests import ClientRequest, parse
from duet_engine.gateway.settings import Limits
from duet_engine.gateway.token_stream import TokenStream
from duet_engine.gateway.tokens import TokenEstimator
from duet_engine.gateway.tracing import Tracer, context_of
from duet_engine.gateway.wire.exchange import Exchange
from duet_engine.gateway.wire.messages import Refusal
from duet_engine.protocol import ROUTE_HEADER
from duet_engine.slo import Objective

_OVERDUE = "overdue"
"""Why a request's task is cancelled when not because its client has left."""


class Inference:
    """Serves exchanges, each in a task that ends when its client leaves."""

    def __init__(
        self,
        relay: Relay,
        *,
        callers: Callers,
        demand: Demand,
        tokens: TokenEstimator,
        lag: LoopLag,
        limits: Limits,
        live: Callable[[], LiveSettings],
        tracer: Tracer | None = None,
    ) -> None:
        self._tracer = tracer
        self._relay = relay
        self._callers = callers
        self._demand = demand
        self._tokens = tokens
        self._lag = lag
        self._limits = limits
        self._live = live
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def inflight(self) -> int:
        return len(self._tasks)

    def start(self, exchange: Exchange) -> None:
        """Serve an exchange from now on."""
        task = self._loop.create_task(self._answered(exchange))
        self._tasks.add(task)
        exchange.on_overdue = partial(task.cancel, _OVERDUE)  # type: ignore[assignment]  # as below
        exchange.on_gone = task.cancel  # type: ignore[assignment]  # its answer, whether it could, matters to nobody
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._loop.call_exception_handler({"message": "a request failed", "exception": error})

    async def _answered(self, exchange: Exchange) -> None:
        path = exchange.head.path
        try:
            caller = self._callers.identify(exchange.head.headers)
            request = parse(path, exchange.body, model_names=self._live().model_names, class_name=caller.class_name)
        except Refusal as refusal:  # its key was taken away just now
            exchange.refuse(refusal)
            return
        except GatewayError as error:
            respond_error(exchange, error)
            return
        record = RequestRecord(
            arrived_at=exchange.arrived_at,
            accept_wait_seconds=exchange.accept_wait_seconds,
            path=path,
            streamed=request.streamed,
            key=caller.key,
            class_name=caller.class_name,
            prompt_tokens=request.given_tokens or self._tokens.estimate(request.text_bytes, caller.class_name),
        )
        if self._tracer is not None:
            record.trace = context_of(exchange.head.headers.get("traceparent"))
        counters = self._demand.of(record)
        counters.arrived(record, self._objective(record))
        try:
            await self._served(exchange, request, record, counters)
        except GatewayError as error:
            self._failed(exchange, record, error)
        except asyncio.CancelledError as cancelled:
            if _OVERDUE not in cancelled.args:
                record.end, record.error = End.CANCELLED, "the client left"
                raise
            limit = self._limits.total_timeout_seconds
            self._failed(exchange, record, GatewayError(504, f"no complete answer within {limit:g} s"))
        except BaseException as error:
            self._failed(exchange, record, GatewayError(500, "internal error of the gateway"))
            record.error = repr(error)
            raise
        finally:
            self._finish(record, counters)

    def _failed(self, exchange: Exchange, record: RequestRecord, error: GatewayError) -> None:
        record.end = End.REJECTED if error.status in (429, 503) else End.FAILED
        record.error = error.message
        if record.answer_begun:
            exchange.write(error_event(error.message, status=error.status))
            exchange.finish()
        else:
            respond_error(exchange, error, route=record.route)

    async def _served(
        self, exchange: Exchange, request: ClientRequest, record: RequestRecord, counters: ClassCounters
    ) -> None:
        try:
            answer = await self._relay.answer(request, record, on_retry=self._count_retry)
        except Rejected as rejected:
            record.end = End.REFUSED
            exchange.respond(rejected.status, rejected.body, headers=((ROUTE_HEADER, record.route),))
            return
        try:
            if answer.streamed:
                await self._stream(exchange, answer, record, counters)
            else:
                self._whole(exchange, answer, record, counters)
        finally:
            answer.attempt.cancel()
        usage = answer.attempt.usage()
        if request.given_tokens is None and usage is not None:
            self._tokens.learn(
                text_bytes=request.text_bytes, prompt_tokens=usage.prompt_tokens, class_name=record.class_name
            )

    def _whole(self, exchange: Exchange, answer: Answer, record: RequestRecord, counters: ClassCounters) -> None:
        record.last_at = monotonic()
        if record.first_at is None:
            assert record.dispatched_at is not None
            record.first_at = min(record.last_at, record.dispatched_at + record.predicted_ttft_seconds)
        counters.began(record)
        self._completed(answer, record)
        exchange.respond(200, answer.content, headers=((ROUTE_HEADER, record.route),))

    async def _stream(self, exchange: Exchange, answer: Answer, record: RequestRecord, counters: ClassCounters) -> None:
        attempt = answer.attempt
        stream = TokenStream(exchange, attempt, record, counters, itl_seconds=self._objective(record).itl_seconds)
        record.answer_begun = True
        try:
            await attempt.relay_to(stream)
        except WorkerFailed as failed:
            if failed.blames_worker:
                failed.worker.failed(monotonic())
            raise GatewayError(502, f"the stream broke off: {failed}") from failed
        if attempt.reported_failure:
            record.end, record.error = End.FAILED, "the engine sent an error event"
        else:
            self._completed(answer, record)
        exchange.finish()

    def _completed(self, answer: Answer, record: RequestRecord) -> None:
        record.end = End.COMPLETED
        record.output_tokens = record.relayed_tokens
        usage = answer.attempt.usage()
        if usage is not None:
            record.prompt_tokens = usage.prompt_tokens
            record.output_tokens = usage.output_tokens
            record.cached_tokens = usage.cached_tokens
        answer.attempt.succeeded()

    def _objective(self, record: RequestRecord) -> Objective:
        return self._live().objective_of(record.class_name)

    def _count_retry(self, reason: str) -> None:
        self._demand.retries[reason] += 1

    def _finish(self, record: RequestRecord, counters: ClassCounters) -> None:
        if record.end is None:  # an error of the gateway's own, on its way to the log
            record.end = End.FAILED
        ended_at = monotonic()
        record.last_at = max(record.last_at, record.arrived_at) if record.first_at else ended_at
        record.loop_lag_seconds = self._lag.p99_seconds()
        counters.ended(record, self._objective(record))
        self._demand.ended(record)
        if self._tracer is not None and record.trace is not None:
            self._tracer.finished(record, record.trace)
        log_access(record, total_seconds=ended_at - record.arrived_at)


def respond_error(exchange: Exchange, error: GatewayError, *, route: str = "") -> None:
    """An error before an answer has begun."""
    headers = [(ROUTE_HEADER, route)] if route else []
    if error.retry_after_seconds is not None:
        headers.append(("retry-after", str(max(1, round(error.retry_after_seconds)))))
    exchange.respond(error.status, error.body(), headers=headers)
