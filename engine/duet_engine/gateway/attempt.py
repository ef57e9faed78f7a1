"""One attempt at one assignment: both workers of a pair are asked at once and share their fate.

Invariant: until the first token the failure of either side ends the other; the one that failed first by itself is
named, not what its peer made of that. However an attempt ends early, both workers are told and both connections closed.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from dataclasses import dataclass
from functools import lru_cache
from time import monotonic

from duet_engine.gateway.assignment import Assignment
from duet_engine.gateway.events import EventScanner, Usage, usage_of
from duet_engine.gateway.failures import WorkerFailed, json_object
from duet_engine.gateway.requests import CHAT_COMPLETIONS, ClientRequest
from duet_engine.gateway.sent_work import SentWork
from duet_engine.gateway.side import Side, StreamReceiver, StreamSide
from duet_engine.gateway.upstream import Upstream
from duet_engine.gateway.workers import Worker
from duet_engine.policy.dispatch import Local
from duet_engine.protocol import DISPATCH_FIELD, PROTOCOL_VERSION, Role

RID_BYTES = 16
"""SGLang aborts by prefix: ids are random and of one length, so that none is another's prefix."""
BLAME_SECONDS = 0.1
"""One side of a pair often fails because the other did: how long its own failure is waited for."""
LOST_SILENCE_SECONDS = 5.0
"""A begun answer whose worker's state stream is lost is broken off when nothing has come for so long: a node that
vanishes closes no connection."""


@dataclass(slots=True, eq=False)
class Answer:
    """What a client gets. A stream's first events have been looked at and wait for `Attempt.relay_to`."""

    attempt: Attempt
    streamed: bool
    content: bytes = b""
    """Of an answer that isn't streamed."""


class Attempt:
    """One request at one assignment."""

    def __init__(
        self, upstream: Upstream, request: ClientRequest, assignment: Assignment, *, traceparent: str = ""
    ) -> None:
        self._traceparent = traceparent
        self.assignment = assignment
        self.rid = secrets.token_hex(RID_BYTES)
        self.first_token_at: float | None = None
        self._upstream = upstream
        self._request = request
        self._silence_seconds = upstream.silence_seconds(request)
        self._loop = asyncio.get_running_loop()
        self._opened: asyncio.Future[Answer] = self._loop.create_future()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._decode: Side | StreamSide = self._decode_side()
        self._prefill: Side | None = None
        self._usage: Usage | None = None
        self._over = False
        self._timer: asyncio.TimerHandle | None = None

    async def open(self) -> Answer:
        """Send to all workers of the assignment and wait for the first token, or the whole answer if not streamed.

        Raises:
            Refused, Rejected, WorkerFailed: there will be none.
        """
        try:
            self._send_all()
            return await self._opened
        except BaseException:
            self.cancel()
            raise

    async def relay_to(self, receiver: StreamReceiver) -> None:
        """Give a stream's events to a receiver until its end, those that came before first.

        Raises:
            WorkerFailed: the stream broke.
        """
        decode = self._decode
        assert isinstance(decode, StreamSide)
        decode.give_to(receiver)
        if decode.failure is not None:
            raise decode.failure
        if not decode.ended:
            await self._ended

    def flow(self, running: bool) -> None:
        """Stop reading the decode worker's answer, or go on."""
        if self._decode.call is not None:
            self._decode.call.flow(running)

    def usage(self) -> Usage | None:
        """What the engine counted; complete once the answer is."""
        if self._usage is None:
            if isinstance(self._decode, StreamSide):
                self._usage = self._decode.scanner.final_usage()
            else:
                self._usage = usage_of(json_object(bytes(self._decode.content)))
        return self._usage

    @property
    def reported_failure(self) -> bool:
        """The engine itself sent an error event."""
        return isinstance(self._decode, StreamSide) and self._decode.scanner.failed

    def succeeded(self) -> None:
        """The answer is complete. The prefill worker may still be about to say that its part is, too."""
        self._end()
        for worker in self.assignment.workers():
            worker.breaker.succeeded()
        self._upstream.changed()

    def cancel(self) -> None:
        """Nobody wants the answer any more: tell both workers, close both connections. Safe to call twice."""
        if self._over:
            return
        self._end()
        if self._prefill is not None:
            self._prefill.stop()
        for worker in self.assignment.workers():
            if worker.connected:
                self._upstream.abort(worker, self.rid)
        self._upstream.changed()

    # --- what the sides say ---

    def stream_began(self, now: float) -> None:
        """The decode worker's first token is here."""
        self.first_token_at = now
        if self.assignment.prefill is None:
            self.assignment.first_token_came()
            self._upstream.changed()
        self._succeed()

    def side_ended(self, side: Side) -> None:
        if side is self._prefill:
            if self.first_token_at is None and not self._request.streamed:
                self.first_token_at = monotonic()
            self.assignment.prefill_ended()
            self._upstream.changed()
        elif self._request.streamed:
            _resolve(self._ended)
        else:
            self._succeed()

    def side_failed(self, side: Side, error: Exception) -> None:
        if side is self._prefill:
            self.assignment.prefill_ended()
            self._upstream.changed()
        if self._opened.done():
            # After the first token a prefill's failure changes nothing.
            if side is self._decode and not self._ended.done():
                self._ended.set_exception(error)
                self._ended.exception()
            return
        other = self._prefill if side is self._decode else self._decode
        certain = not isinstance(error, WorkerFailed) or error.lost
        if certain or other is None or other.over:
            self._fail()
        elif self._timer is None:
            self._timer = self._loop.call_later(BLAME_SECONDS, self._fail)

    def _succeed(self) -> None:
        if self._opened.done() or self._over:
            return
        for worker in self.assignment.workers():
            worker.breaker.began()
        streamed = self._request.streamed
        self._opened.set_result(Answer(self, streamed, b"" if streamed else bytes(self._decode.content)))

    def _fail(self) -> None:
        """With the failure of a lost worker rather than with what its peer made of that."""
        if self._opened.done() or self._over:
            return
        sides = [side for side in (self._prefill, self._decode) if side is not None]
        failures = [side.failure for side in sides if side.failure is not None]
        lost = [error for error in failures if isinstance(error, WorkerFailed) and error.lost]
        self._opened.set_exception((lost or failures)[0])

    def _end(self) -> None:
        self._over = True
        self._decode.stop()
        if self._timer is not None:
            self._timer.cancel()
        for worker in self.assignment.workers():
            worker.on_lost.discard(self._worker_lost)
        self.assignment.release()

    # --- workers that vanish ---

    def _worker_lost(self, worker: Worker) -> None:
        """Nothing is heard of a worker any more: a prompt that it hasn't finished is better off elsewhere."""
        if self._opened.done():
            if worker is self.assignment.decode and self._timer is None:
                self._break_off_if_silent()
            return
        side = self._decode if worker is self.assignment.decode else self._prefill
        if side is not None:
            side.fail(WorkerFailed(worker, "its state stream broke off", lost=True))

    def _break_off_if_silent(self) -> None:
        """Tokens may still come though the state stream is lost; without any for a while the answer is lost too."""
        self._timer = None
        if self._over or self.assignment.decode.connected:
            return
        left_seconds = self._decode.last_heard_at + LOST_SILENCE_SECONDS - monotonic()
        if left_seconds > 0:
            self._timer = self._loop.call_later(left_seconds, self._break_off_if_silent)
        else:
            message = "its state and its tokens ceased to come"
            self._decode.fail(WorkerFailed(self.assignment.decode, message, lost=True))

    # --- what is sent ---

    def _decode_side(self) -> Side | StreamSide:
        if not self._request.streamed:
            return self._side(self.assignment.decode)
        scanner = EventScanner(hide_usage=self._request.hides_usage, chat=self._request.path == CHAT_COMPLETIONS)
        return StreamSide(
            self,
            self.assignment.decode,
            watch=self._upstream.silence,
            silence_seconds=self._silence_seconds,
            scanner=scanner,
        )

    def _side(self, worker: Worker) -> Side:
        return Side(
            self,
            worker,
            watch=self._upstream.silence,
            silence_seconds=self._silence_seconds,
            streamed=self._request.streamed,
        )

    def _send_all(self) -> None:
        for worker in self.assignment.workers():
            worker.on_lost.add(self._worker_lost)
        bootstrap = self._bootstrap()
        prefill, work = self.assignment.prefill, self.assignment.prefill_work
        if prefill is not None and work is not None:
            self._prefill = self._side(prefill)
            self._send(self._prefill, work, bootstrap)
        self._send(self._decode, self.assignment.decode_work, bootstrap)

    def _send(self, side: Side, work: SentWork, bootstrap: str) -> None:
        body = self._request.rendered(self._own_members(side.worker, work, bootstrap))
        side.call = self._upstream.post(side.worker, self._request.path, body, side, traceparent=self._traceparent)

    def _bootstrap(self) -> str:
        prefill = self.assignment.prefill
        if prefill is None:
            return ""
        host, port, room = _quoted(prefill.member.host), prefill.bootstrap_port, secrets.randbits(63)
        return f',"bootstrap_host":{host},"bootstrap_port":{port},"bootstrap_room":{room}'

    def _own_members(self, worker: Worker, work: SentWork, bootstrap: str) -> str:
        """As JSON, written out: a serialiser takes three times as long, for each of the two workers."""
        own = f'"rid":"{self.rid}"{bootstrap}'
        if worker.plain:
            return own
        route = self.assignment.route
        local = isinstance(route, Local)
        deflected = "true" if local and worker.member.role is Role.DECODE else "false"
        chunks = ",".join(map(str, route.chunks_tokens)) if isinstance(route, Local) else ""
        return (  # `protocol.Dispatch`
            f'{own},"{DISPATCH_FIELD}":{{"version":{PROTOCOL_VERSION},"gateway":{_quoted(self._upstream.gateway_id)},'
            f'"sequence":{work.sequence},"deflected":{deflected},"chunk_schedule_tokens":[{chunks}],'
            f'"uncached_tokens":{work.prompt_tokens}}}'
        )


@lru_cache(maxsize=4096)
def _quoted(text: str) -> str:
    return json.dumps(text)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
