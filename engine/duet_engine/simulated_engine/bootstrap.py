"""How a prefill and a decode worker hand a request over: one long-polled HTTP request for each room.

Invariant: the decode side asks only when it holds KV, and the answer comes when the KV has left; whichever side gives
up or dies, the other hears of it through the connection in the same second. `GET /rooms/N` answers 200 with the seed
of the output (so that both sides continue the same text), 500 when the prefill side failed, 504 when no such request
came; `DELETE /rooms/N` says that the decode side gave up before it held KV.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, cast

import httptools

from duet_engine.simulated_engine.request import Failure, Request, Room

if TYPE_CHECKING:
    from duet_engine.simulated_engine.engine import Engine
    from duet_engine.simulated_engine.http_server import Exchange

CONNECT_SECONDS = 5.0
ENDED_ROOM_MEMORY_SECONDS = 60.0
ROOMS_PATH = "/rooms/"


class PrefillRooms:
    """The prefill side: requests wait for claims, claims wait for requests."""

    def __init__(self, engine: Engine, *, timeout_seconds: float) -> None:
        self._engine = engine
        self._timeout_seconds = timeout_seconds
        self._loop = asyncio.get_running_loop()
        self._requests: dict[int, Request] = {}
        self._claims: dict[int, Exchange] = {}
        self._failed: dict[int, str] = {}
        self._abandoned: set[int] = set()

    def taken(self, number: int) -> bool:
        return number in self._requests

    def register(self, request: Request) -> None:
        """A request was accepted; it may have been claimed already."""
        if request.room is None or request.done:
            return
        number = request.room.number
        self._requests[number] = request
        if number in self._abandoned:
            self._fail_abandoned(request)
            return
        if number in self._claims:
            self._engine.claimed(request)
        else:
            self._loop.call_later(self._timeout_seconds, self._nobody_came, request)

    def handle(self, exchange: Exchange) -> None:
        """`GET /rooms/N`, the claim of a decode worker that holds KV."""
        if exchange.path == "/health":
            exchange.respond(200, b"OK", content_type="text/plain")
            return
        number = exchange.path.removeprefix(ROOMS_PATH)
        if not exchange.path.startswith(ROOMS_PATH) or not number.isdigit():
            exchange.respond_json(404, {"message": f"{exchange.path}: no such thing; known are /health and /rooms/N"})
        elif exchange.method == "DELETE":
            self._abandon(int(number))
            exchange.respond_json(200, {})
        else:
            self._claim(int(number), exchange)

    def _abandon(self, number: int) -> None:
        """The decode side gave up before it had KV to ask for; its prefill half may be still to come."""
        self._abandoned.add(number)
        self._loop.call_later(ENDED_ROOM_MEMORY_SECONDS, self._abandoned.discard, number)
        if number in self._requests:
            self._fail_abandoned(self._requests[number])

    def _fail_abandoned(self, request: Request) -> None:
        message = f"Prefill bootstrap failed for request {request.rid}: its decode worker gave up"
        self._engine.fail(request, Failure(message=message))

    def _claim(self, number: int, exchange: Exchange) -> None:
        if number in self._failed:
            exchange.respond_json(500, {"message": self._failed[number]})
            return
        if number in self._claims:
            exchange.respond_json(409, {"message": f"room {number} was claimed already"})
            return
        self._claims[number] = exchange
        exchange.on_disconnect = lambda: self._claimer_gone(number)
        if number in self._requests:
            self._engine.claimed(self._requests[number])
        else:
            self._loop.call_later(self._timeout_seconds, self._no_request_came, number, exchange)

    def delivered(self, request: Request) -> None:
        """The KV has left: answer the claim."""
        if request.room is None:
            return
        self._requests.pop(request.room.number, None)
        claim = self._claims.pop(request.room.number, None)
        if claim is not None:
            claim.respond_json(200, {"seed": request.seed, "prompt_tokens": request.prompt_tokens})

    def failed(self, request: Request, message: str) -> None:
        """The prefill side gave up on a request that it had accepted."""
        if request.room is None or self._requests.get(request.room.number) is not request:
            return
        del self._requests[request.room.number]
        self.reject(request, message)

    def reject(self, request: Request, message: str) -> None:
        """This room will never have KV: answer its claim, or the one that is still to come."""
        if request.room is None:
            return
        number = request.room.number
        self._failed[number] = message
        self._loop.call_later(ENDED_ROOM_MEMORY_SECONDS, self._failed.pop, number, None)
        claim = self._claims.pop(number, None)
        if claim is not None:
            claim.respond_json(500, {"message": message})

    def _claimer_gone(self, number: int) -> None:
        self._claims.pop(number, None)
        request = self._requests.get(number)
        if request is not None:
            message = f"Prefill transfer failed for request {request.rid}: the decode worker of room {number} is gone"
            self._engine.fail(request, Failure(message=message))

    def _nobody_came(self, request: Request) -> None:
        if request.room is not None and not request.done and request.room.number not in self._claims:
            message = (
                f"Prefill bootstrap failed for request {request.rid}: no decode worker asked for room "
                f"{request.room.number} in {self._timeout_seconds:g} s"
            )
            self._engine.measurements.failed_bootstraps += 1
            self._engine.fail(request, Failure(message=message))

    def _no_request_came(self, number: int, exchange: Exchange) -> None:
        if self._claims.get(number) is exchange and number not in self._requests:
            del self._claims[number]
            exchange.respond_json(504, {"message": f"no request came for room {number}"})


class DecodeRooms:
    """The decode side: one connection for each claimed room."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._open: dict[Request, _Claim] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def claim(self, request: Request) -> None:
        """Ask for the KV of a request that has its place here."""
        self._open[request] = _Claim(self, request)
        self._spawn(self._connect(request))

    def cancel(self, request: Request, message: str) -> None:  # noqa: ARG002 - the closed connection says it all
        """Nobody wants this request's KV any more."""
        claim = self._open.pop(request, None)
        if claim is not None:
            claim.close()
        elif request.room is not None and not request.claimed:
            self._spawn(_abandon(request.room))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, request: Request) -> None:
        claim, room = self._open.get(request), request.room
        if claim is None or room is None:
            return
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await loop.create_connection(lambda: claim, room.host, room.port)
        except (OSError, TimeoutError) as error:
            self.ended(request, failure=f"can't reach the prefill worker at {room.host}:{room.port}: {error}")

    def ended(self, request: Request, *, failure: str | None = None, seed: int = 0) -> None:
        """The prefill side has answered or is gone."""
        if self._open.pop(request, None) is None:
            return
        if failure is None:
            request.seed = seed
            self._engine.arrived(request)
            return
        self._engine.measurements.failed_transfers += 1
        number = request.room.number if request.room is not None else 0
        message = f"Decode transfer failed for request {request.rid}, room {number}: {failure}"
        self._engine.fail(request, Failure(message=message))


def _head(method: str, room: Room) -> bytes:
    lines = (f"{method} {ROOMS_PATH}{room.number} HTTP/1.1", f"host: {room.host}:{room.port}", "connection: close")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


async def _abandon(room: Room) -> None:
    """Tell the prefill side that nobody will come; if it can't be reached, its own timeout says the same."""
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(CONNECT_SECONDS):
            reader, writer = await asyncio.open_connection(room.host, room.port)
            writer.write(_head("DELETE", room))
            await reader.read()
            writer.close()


class _Claim(asyncio.Protocol):
    """The connection of one claim."""

    def __init__(self, rooms: DecodeRooms, request: Request) -> None:
        self._rooms = rooms
        self._request = request
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._body: list[bytes] = []
        self._closed = False

    def close(self) -> None:
        self._closed = True
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._closed or self._request.room is None:
            self._transport.abort()
            return
        room = self._request.room
        self._transport.write(_head("GET", room))

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._rooms.ended(self._request, failure=f"the prefill worker's answer isn't HTTP: {error}")
            self.close()

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        try:
            document = json.loads(b"".join(self._body))
            if status == 200:
                self._rooms.ended(self._request, seed=int(document["seed"]))
            else:
                self._rooms.ended(self._request, failure=str(document["message"]))
        except (ValueError, KeyError, TypeError) as error:
            self._rooms.ended(self._request, failure=f"unreadable answer of the prefill worker ({status}): {error!r}")
        if self._transport is not None:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        reason = f": {exc}" if exc is not None else ""
        self._rooms.ended(self._request, failure=f"the prefill worker closed the connection{reason}")
