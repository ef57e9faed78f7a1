"""The endpoints that generate: body in, request to the engine, answer attached.

Invariant: a request is refused, rejected or accepted before anything is written. Which of them depends on the role:
prefill and decode workers take P/D halves, decode workers also deflected requests, unified workers everything else.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from duet_engine.protocol import RefusalReason, Role
from duet_engine.simulated_engine.answers import (
    Answer,
    NativeAnswer,
    StreamedChat,
    StreamedCompletion,
    WholeChat,
    WholeCompletion,
    respond_error,
    respond_refusal,
)
from duet_engine.simulated_engine.parsing import BadRequest, Bounds, Parsed, parse_chat, parse_completion, parse_native
from duet_engine.simulated_engine.request import Refused, Request

if TYPE_CHECKING:
    from duet_engine.simulated_engine.bootstrap import PrefillRooms
    from duet_engine.simulated_engine.engine import Engine
    from duet_engine.simulated_engine.http_server import Exchange

Parser = Callable[[dict[str, Any], Bounds], Parsed]
AnswerFactory = Callable[..., Answer]


class GenerateEndpoints:
    """`/generate`, `/v1/completions`, `/v1/chat/completions`."""

    def __init__(self, engine: Engine, rooms: PrefillRooms | None) -> None:
        self._engine = engine
        self._rooms = rooms
        self._bounds = Bounds(
            context_length=engine.settings.context_length,
            kv_capacity_tokens=engine.profile.kv_capacity_tokens,
            mean_output_tokens=engine.settings.mean_output_tokens,
        )

    def native(self, exchange: Exchange) -> None:
        self._serve(exchange, parse_native, streamed=NativeAnswer, whole=NativeAnswer)

    def completions(self, exchange: Exchange) -> None:
        self._serve(exchange, parse_completion, streamed=StreamedCompletion, whole=WholeCompletion)

    def chat(self, exchange: Exchange) -> None:
        self._serve(exchange, parse_chat, streamed=StreamedChat, whole=WholeChat)

    def _serve(self, exchange: Exchange, parse: Parser, *, streamed: AnswerFactory, whole: AnswerFactory) -> None:
        engine = self._engine
        try:
            parsed = parse(read_object(exchange.body), self._bounds)
        except BadRequest as error:
            respond_error(exchange, str(error), status=400, kind="BadRequestError")
            return
        if parsed.dispatch is not None:
            engine.note_dispatch(parsed.dispatch)
        request = parsed.request
        if engine.stepper.faults.fail_next_requests > 0:
            engine.stepper.faults.fail_next_requests -= 1
            self._reject_room(request, "failure asked for by /simulate/faults")
            respond_error(exchange, "failure asked for by /simulate/faults", status=500, kind="InternalServerError")
            return
        try:
            self._check_role(parsed)
            answer = (streamed if request.streamed else whole)(exchange, parsed, model=engine.settings.served_name)
            request.listener = answer
            exchange.on_disconnect = lambda: engine.disconnected(request)
            engine.submit(request)
        except Refused as refused:
            engine.count_refusal(refused.refusal.reason)
            self._reject_room(request, f"the prefill worker refused request {request.rid}: {refused}")
            respond_refusal(exchange, refused.refusal)
        except BadRequest as error:
            respond_error(exchange, str(error), status=400, kind="BadRequest")
        else:
            if self._rooms is not None:
                self._rooms.register(request)

    def _reject_room(self, request: Request, message: str) -> None:
        if self._rooms is not None:
            self._rooms.reject(request, message)

    def _check_role(self, parsed: Parsed) -> None:
        """Whether this kind of worker takes this kind of request at all."""
        role, request = self._engine.settings.role, parsed.request
        if request.deflected and role is not Role.DECODE:
            raise Refused(
                RefusalReason.WRONG_ROLE, f"only a decode worker prefills deflected requests, not a {role} one"
            )
        if role is Role.UNIFIED or request.deflected:
            return
        if request.room is None:
            raise BadRequest(f"Disaggregated request received without bootstrap room id. {request.rid}")
        if role is Role.DECODE and not (request.room.host and request.room.port):
            raise BadRequest("bootstrap_host, bootstrap_port: a decode worker needs both to fetch KV")
        if self._rooms is not None and self._rooms.taken(request.room.number):
            raise BadRequest(f"bootstrap_room: {request.room.number} is in use")


def read_object(body: bytes) -> dict[str, Any]:
    """A JSON object, or a `BadRequest` that says what is wrong."""
    try:
        document = json.loads(body)
    except ValueError as error:
        raise BadRequest(f"body: not JSON: {error}") from error
    if not isinstance(document, dict):
        raise BadRequest("body: must be a JSON object")
    return document
