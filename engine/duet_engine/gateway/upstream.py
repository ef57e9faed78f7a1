"""The way to the engines: one attempt at one assignment.

Invariant: both sides of a pair are dispatched to at once and share their fate until the first token: when one fails,
the other is cancelled. However an attempt ends early, both workers are told and both connections closed.
"""

from __future__ import annotations

import asyncio
import io
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from time import monotonic
from typing import Any

import aiohttp

from duet_engine.gateway.events import EventScanner, Usage, failure_of, usage_of
from duet_engine.gateway.failures import WorkerFailed, check, failed, failure_in, json_object, raise_failure
from duet_engine.gateway.requests import CHAT_COMPLETIONS, ClientRequest
from duet_engine.gateway.routing import Assignment
from duet_engine.gateway.settings import Limits
from duet_engine.gateway.workers import SentWork, Worker
from duet_engine.mounted_files import no_credentials
from duet_engine.policy.dispatch import Local
from duet_engine.protocol import DISPATCH_FIELD, Dispatch, Role

log = logging.getLogger(__name__)

ABORT_PATH = "/abort_request"
RID_BYTES = 16
"""SGLang aborts by prefix: ids are random and of one length, so that none is another's prefix."""
BLAME_SECONDS = 0.1
"""One side of a pair often fails because the other did: how long its own failure is waited for."""
LOST_SILENCE_SECONDS = 5.0
"""A begun answer whose worker's state stream is lost is broken off when nothing has come for so long: a node that
vanishes closes no connection."""
LONGEST_PREFILL_ANSWER_BYTES = 16 * 2**20
_LARGE_BODY_BYTES = 2**20
"""From here on aiohttp wants a file, which it sends piece by piece."""


@dataclass(slots=True, eq=False)
class Answer:
    """What a client gets: a whole body, or events to relay. The first events have been looked at."""

    attempt: Attempt
    content: bytes
    tokens: int
    """Events with tokens in `content`."""
    streamed: bool

    @property
    def usage(self) -> Usage | None:
        return self.attempt.usage()


class Upstream:
    """What all attempts share: connections, identity, and the tasks that outlive a request."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        *,
        limits: Limits,
        gateway_id: str,
        changed: Callable[[], None],
        credentials: Callable[[], dict[str, str]] = no_credentials,
    ) -> None:
        self.session = session
        self.credentials = credentials
        self.gateway_id = gateway_id
        self.changed = changed
        """A worker has less to do than before."""
        self._limits = limits
        self._background: set[asyncio.Task[None]] = set()

    def timeout(self, request: ClientRequest) -> aiohttp.ClientTimeout:
        """No bound on the whole, only on silence; an answer that isn't streamed is silent until its last token."""
        idle_seconds = self._limits.idle_timeout_seconds
        if not request.streamed:
            idle_seconds += request.output_limit_tokens * self._limits.unstreamed_seconds_per_token
        return aiohttp.ClientTimeout(
            total=None, sock_connect=self._limits.connect_timeout_seconds, sock_read=idle_seconds
        )

    def in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Run to its end even when the request's own task is gone."""
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def close(self) -> None:
        """Wait for what is still being told to engines."""
        if self._background:
            await asyncio.wait(self._background, timeout=2.0)


class Attempt:
    """One request at one assignment."""

    def __init__(self, upstream: Upstream, request: ClientRequest, assignment: Assignment) -> None:
        self.assignment = assignment
        self.first_token_at: float | None = None
        self._upstream = upstream
        self._request = request
        self._rid = secrets.token_hex(RID_BYTES)
        self._scanner = EventScanner(hide_usage=request.hides_usage, chat=request.path == CHAT_COMPLETIONS)
        self._usage: Usage | None = None
        self._prefill_task: asyncio.Task[None] | None = None
        self._decode_task: asyncio.Task[Answer] | None = None
        self._response: aiohttp.ClientResponse | None = None
        self._over = False
        self._last_heard_at = 0.0
        self._silence_timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._lost: asyncio.Future[None] = self._loop.create_future()

    async def open(self) -> Answer:
        """Send to all workers of the assignment and wait for the first token, or the whole answer if not streamed."""
        bootstrap = self._bootstrap()
        self._decode_task = self._loop.create_task(self._decode(bootstrap))
        waited_for: set[asyncio.Future[Any]] = {self._decode_task, self._lost}
        if self.assignment.prefill is not None:
            self._prefill_task = self._loop.create_task(self._prefill(self.assignment.prefill, bootstrap))
            self._prefill_task.add_done_callback(self._prefill_ended)
            waited_for.add(self._prefill_task)
        for worker in self.assignment.workers():
            worker.on_lost.add(self._worker_lost)
        try:
            while not (self._decode_task.done() or self._lost.done()):
                done, waited_for = await asyncio.wait(waited_for, return_when=asyncio.FIRST_COMPLETED)
                if self._prefill_task in done and self._prefill_task.exception() is not None:
                    break
            failure = await self._failure()
            if failure is not None:
                raise failure
            answer = self._decode_task.result()
            for worker in self.assignment.workers():
                worker.breaker.began()
            return answer
        except BaseException:
            self.cancel()
            raise
        finally:
            self._lost.cancel()

    async def rest(self) -> AsyncIterator[tuple[bytes, int]]:
        """Whole events after the first ones, and how many of them carry tokens.

        Raises:
            WorkerFailed: the stream broke.
        """
        assert self._response is not None
        worker = self.assignment.decode
        try:
            async for chunk in self._response.content.iter_any():
                self._last_heard_at = monotonic()
                whole, tokens = self._scanner.feed(chunk)
                if whole:
                    yield whole, tokens
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise failed(worker, error) from error
        if not self._scanner.done:
            raise WorkerFailed(worker, "stream ended without [DONE]", lost=True)

    @property
    def reported_failure(self) -> bool:
        """The engine itself sent an error event."""
        return self._scanner.failed

    def usage(self) -> Usage | None:
        """What the engine counted; complete once the answer is."""
        return self._usage or self._scanner.final_usage()

    def succeeded(self) -> None:
        """The answer is complete."""
        self._end()
        for worker in self.assignment.workers():
            worker.breaker.succeeded()
        self._upstream.changed()

    def cancel(self) -> None:
        """Nobody wants the answer any more: tell both workers, close both connections. Safe to call twice."""
        if self._over:
            return
        self._end()
        for task in (self._prefill_task, self._decode_task):
            if task is not None:
                task.cancel()
        if self._response is not None:
            self._response.close()
        for worker in self.assignment.workers():
            if worker.connected:
                self._upstream.in_background(self._abort(worker))
        self._upstream.changed()

    def _end(self) -> None:
        self._over = True
        if self._silence_timer is not None:
            self._silence_timer.cancel()
        for worker in self.assignment.workers():
            worker.on_lost.discard(self._worker_lost)
        self.assignment.release()

    # --- the two sides ---

    async def _prefill(self, worker: Worker, bootstrap: dict[str, Any]) -> None:
        assert self.assignment.prefill_work is not None
        try:
            async with await self._post(
                worker, self._body(worker, self.assignment.prefill_work, bootstrap)
            ) as response:
                await check(worker, response)
                content = bytearray()
                async for chunk in response.content.iter_any():
                    if len(content) < LONGEST_PREFILL_ANSWER_BYTES:
                        content += chunk
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise failed(worker, error) from error
        raise_failure(worker, failure_in(bytes(content), streamed=self._request.streamed))
        if self.first_token_at is None and not self._request.streamed:
            self.first_token_at = monotonic()

    async def _decode(self, bootstrap: dict[str, Any]) -> Answer:
        worker = self.assignment.decode
        try:
            response = await self._post(worker, self._body(worker, self.assignment.decode_work, bootstrap))
            self._response = response
            await check(worker, response)
            if self._request.streamed:
                return await self._first_events(worker, response)
            content = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise failed(worker, error) from error
        payload = json_object(content)
        raise_failure(worker, failure_of(payload))
        self._usage = usage_of(payload)
        return Answer(self, content, 0, streamed=False)

    async def _first_events(self, worker: Worker, response: aiohttp.ClientResponse) -> Answer:
        content = b""
        async for chunk in response.content.iter_any():
            whole, tokens = self._scanner.feed(chunk)
            content += whole
            if whole:
                self.first_token_at = self._last_heard_at = monotonic()
                raise_failure(worker, failure_in(content, streamed=True))
                return Answer(self, content, tokens, streamed=True)
        raise WorkerFailed(worker, "stream ended before its first event", lost=True)

    def _bootstrap(self) -> dict[str, Any]:
        prefill = self.assignment.prefill
        if prefill is None:
            return {}
        return {
            "bootstrap_host": prefill.member.host,
            "bootstrap_port": prefill.bootstrap_port,
            "bootstrap_room": secrets.randbits(63),
        }

    def _body(self, worker: Worker, work: SentWork, bootstrap: dict[str, Any]) -> bytes:
        route = self.assignment.route
        local = isinstance(route, Local)
        dispatch = Dispatch(
            gateway=self._upstream.gateway_id,
            sequence=work.sequence,
            deflected=local and worker.member.role is Role.DECODE,
            chunk_schedule_tokens=route.chunks_tokens if isinstance(route, Local) else (),
            uncached_tokens=work.prompt_tokens,
        )
        own = {"rid": self._rid, **bootstrap, DISPATCH_FIELD: dispatch.model_dump(mode="json", exclude_none=True)}
        return self._request.rendered(own)

    async def _post(self, worker: Worker, body: bytes) -> aiohttp.ClientResponse:
        """Once more when the connection closed without an answer: mostly a pooled one, closed as it was taken."""
        try:
            return await self._post_once(worker, body)
        except aiohttp.ServerDisconnectedError:
            return await self._post_once(worker, body)

    async def _post_once(self, worker: Worker, body: bytes) -> aiohttp.ClientResponse:
        return await self._upstream.session.post(
            worker.member.url + self._request.path,
            data=body if len(body) < _LARGE_BODY_BYTES else io.BytesIO(body),
            headers={"Content-Type": "application/json", **self._upstream.credentials()},
            timeout=self._upstream.timeout(self._request),
        )

    async def _abort(self, worker: Worker) -> None:
        timeout = aiohttp.ClientTimeout(total=2.0)
        try:
            async with self._upstream.session.post(
                worker.member.url + ABORT_PATH,
                json={"rid": self._rid},
                headers=self._upstream.credentials(),
                timeout=timeout,
            ):
                pass
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            log.debug("abort of %s at %s: %s", self._rid, worker.name, error)

    def _worker_lost(self, worker: Worker) -> None:
        """Nothing is heard of a worker any more: a prompt that it hasn't finished is better off elsewhere."""
        if self._lost.done():  # the answer has begun
            if worker is self.assignment.decode and self._silence_timer is None:
                self._break_off_if_silent()
            return
        prefilled = self._prefill_task is not None and _succeeded(self._prefill_task)
        if not (prefilled and worker is self.assignment.prefill):
            self._lost.set_exception(WorkerFailed(worker, "its state stream broke off", lost=True))

    def _break_off_if_silent(self) -> None:
        """Tokens may still come though the state stream is lost; without any for a while the answer is lost too."""
        self._silence_timer = None
        if self._over or self._response is None or self.assignment.decode.connected:
            return
        left_seconds = self._last_heard_at + LOST_SILENCE_SECONDS - monotonic()
        if left_seconds > 0:
            self._silence_timer = self._loop.call_later(left_seconds, self._break_off_if_silent)
            return
        self._response.content.set_exception(aiohttp.ServerDisconnectedError("its state and its tokens ceased to come"))
        self._response.close()

    def _prefill_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            task.exception()  # after the first token a prefill's failure changes nothing
        self.assignment.prefill_ended()
        self._upstream.changed()

    async def _failure(self) -> BaseException | None:
        """What made this attempt fail, if anything did: a lost worker rather than what its peer made of that."""
        tasks: list[asyncio.Future[Any]] = [self._lost]
        tasks += [task for task in (self._prefill_task, self._decode_task) if task is not None]
        failures = [error for task in tasks if task.done() and (error := task.exception()) is not None]
        if not failures or (self._decode_task is not None and _succeeded(self._decode_task)):
            return None
        if isinstance(failures[0], WorkerFailed) and not failures[0].lost:
            await asyncio.wait(tasks, timeout=BLAME_SECONDS)
            failures = [error for task in tasks if task.done() and (error := task.exception()) is not None]
        lost = [error for error in failures if isinstance(error, WorkerFailed) and error.lost]
        return (lost or failures)[0]


def _succeeded(task: asyncio.Task[Any]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None
