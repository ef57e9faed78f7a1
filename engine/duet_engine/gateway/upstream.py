"""The way to the engines: what all attempts share.

Invariant: heads of requests to engines are made of this gateway's own values; a worker that nobody waits for any more
is told within one turn of the event loop.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from functools import lru_cache
from urllib.parse import urlsplit

from duet_engine.gateway.requests import ClientRequest
from duet_engine.gateway.settings import Limits
from duet_engine.gateway.silence import SilenceWatch
from duet_engine.gateway.wire.client_connection import AnswerSink
from duet_engine.gateway.wire.messages import JSON, Headers, request_head
from duet_engine.gateway.wire.pool import Address, Call, ConnectionPool
from duet_engine.gateway.workers import Worker
from duet_engine.mounted_files import no_credentials

log = logging.getLogger(__name__)

ABORT_PATH = "/abort_request"
ABORT_SECONDS = 2.0
CLOSE_SECONDS = 2.0
_SCHEME, _HTTP_PORT = "http://", 80


class Upstream:
    """Connections, identity, and the tidings of aborts, which outlive their requests."""

    def __init__(
        self,
        *,
        limits: Limits,
        gateway_id: str,
        changed: Callable[[], None],
        credentials: Callable[[], dict[str, str]] = no_credentials,
    ) -> None:
        self.gateway_id = gateway_id
        self.changed = changed
        """A worker has less to do than before."""
        self._limits = limits
        self._credentials = credentials
        self._pool = ConnectionPool(connect_timeout_seconds=limits.connect_timeout_seconds)
        self.silence = SilenceWatch()
        self._aborts: set[_Abort] = set()
        self._all_told = asyncio.Event()

    def silence_seconds(self, request: ClientRequest) -> float:
        """Longest silence of an engine; one whose answer isn't streamed is silent until its last token."""
        seconds = self._limits.idle_timeout_seconds
        if not request.streamed:
            seconds += request.output_limit_tokens * self._limits.unstreamed_seconds_per_token
        return seconds

    def post(self, worker: Worker, path: str, body: bytes, sink: AnswerSink, *, traceparent: str = "") -> Call:
        """Send a body to a worker."""
        url = worker.member.url
        fixed = (("host", url.removeprefix(_SCHEME)), ("content-type", JSON), *self._credentials().items())
        own = f"traceparent: {traceparent}\r\n".encode() if traceparent else b""
        head = b"%b%bcontent-length: %d\r\n\r\n" % (request_head(path, fixed), own, len(body))
        return self._pool.call(address_of(url), head + body, sink)

    def abort(self, worker: Worker, rid: str) -> None:
        """Tell a worker that nobody waits for a request any more."""
        told = _Abort(worker, self._told)
        self._aborts.add(told)
        told.follow(self.post(worker, ABORT_PATH, json.dumps({"rid": rid}).encode(), told))

    def forget(self, worker: Worker) -> None:
        """The worker is gone for good."""
        self._pool.forget(address_of(worker.member.url))

    async def close(self) -> None:
        """Wait for what is still being told to engines."""
        if self._aborts:
            self._all_told.clear()
            try:
                await asyncio.wait_for(self._all_told.wait(), CLOSE_SECONDS)
            except TimeoutError:
                log.info("%d aborts were not confirmed", len(self._aborts))
        self.silence.close()
        self._pool.close()

    def _told(self, abort: _Abort) -> None:
        self._aborts.discard(abort)
        if not self._aborts:
            self._all_told.set()


class _Abort:
    """Gets the answer to an abort, which matters to nobody."""

    def __init__(self, worker: Worker, over: Callable[[_Abort], None]) -> None:
        self._worker = worker
        self._over = over
        self._timer: asyncio.TimerHandle | None = None

    def follow(self, call: Call) -> None:
        def give_up() -> None:
            call.cancel()
            self.answer_broke(TimeoutError(f"no answer within {ABORT_SECONDS:g} s"))

        self._timer = asyncio.get_running_loop().call_later(ABORT_SECONDS, give_up)

    def answer_began(self, status: int, headers: Headers) -> None: ...

    def answer_data(self, data: bytes) -> None: ...

    def answer_ended(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._over(self)

    def answer_broke(self, error: Exception) -> None:
        log.debug("abort at %s: %s", self._worker.name, error)
        self.answer_ended()


@lru_cache(maxsize=4096)
def address_of(url: str) -> Address:
    """Host and port of a worker's URL."""
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or _HTTP_PORT
