"""Listens to one engine: what it is, then its state line by line, and pushes it the knobs that it lacks.

Invariant: the stream is the probe. A worker whose stream is broken or silent is out of service until a line comes.
A server without Duet's endpoints is asked for its load instead, to the same effect.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from http import HTTPStatus
from time import monotonic
from typing import NoReturn

import aiohttp

from duet_engine.gateway.knobs import KnobPusher
from duet_engine.gateway.lines import lines
from duet_engine.gateway.plain_sglang import POLL_SECONDS, PlainServer
from duet_engine.gateway.workers import Worker
from duet_engine.mounted_files import no_credentials
from duet_engine.protocol import INFO_PATH, STATE_PATH, ProtocolError, WorkerInfo, WorkerState

log = logging.getLogger(__name__)

SILENCE_SECONDS = 5.0
FIRST_PAUSE_SECONDS = 0.1
LONGEST_REASON_BYTES = 300
LONGEST_PAUSE_SECONDS = 0.5
_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=2.0, sock_read=SILENCE_SECONDS)


async def listen(
    worker: Worker,
    session: aiohttp.ClientSession,
    *,
    knobs: KnobPusher,
    heard: Callable[[Worker], None],
    changed: Callable[[], None],
    credentials: Callable[[], dict[str, str]] = no_credentials,
) -> None:
    """Keep one worker's state up to date until cancelled."""
    pause_seconds, complained = FIRST_PAUSE_SECONDS, False
    while True:
        try:
            if not await _describe(worker, session, credentials()):
                await _follow_plain(worker, PlainServer(worker, session, _TIMEOUT, credentials), heard)
            async with session.get(
                worker.member.url + STATE_PATH, params={"stream": "1"}, headers=credentials(), timeout=_TIMEOUT
            ) as response:
                await _check(response)
                async for line in lines(response.content):
                    state = WorkerState.read(line)
                    worker.heard(state, monotonic())
                    knobs.check(worker, state)
                    heard(worker)
                    pause_seconds, complained = FIRST_PAUSE_SECONDS, False
            reason = "stream ended"
        except (aiohttp.ClientError, TimeoutError, OSError, ProtocolError, ValueError) as error:
            reason = str(error) or type(error).__name__
        worker.lost()
        changed()
        if not complained:
            log.info("worker %s at %s: no state: %s", worker.name, worker.member.url, reason)
            complained = True
        await asyncio.sleep(pause_seconds)
        pause_seconds = min(2 * pause_seconds, LONGEST_PAUSE_SECONDS)


async def _describe(worker: Worker, session: aiohttp.ClientSession, headers: dict[str, str]) -> bool:
    """Ask what it is; False when it doesn't know the question."""
    async with session.get(worker.member.url + INFO_PATH, headers=headers, timeout=_TIMEOUT) as response:
        if response.status == HTTPStatus.NOT_FOUND:
            return False
        await _check(response)
        _take(worker, WorkerInfo.read(await response.read()))
    worker.plain = False
    return True


async def _follow_plain(worker: Worker, server: PlainServer, heard: Callable[[Worker], None]) -> NoReturn:
    """Ask again and again, until it can't be reached."""
    _take(worker, await server.info())
    worker.plain = True
    while True:
        worker.heard(await server.state(), monotonic())
        heard(worker)
        await asyncio.sleep(POLL_SECONDS)


def _take(worker: Worker, info: WorkerInfo) -> None:
    if info.role is not worker.member.role:
        raise ProtocolError(f"it runs as {info.role}, but is listed as {worker.member.role}")
    worker.describe(info)


async def _check(response: aiohttp.ClientResponse) -> None:
    """An engine that refuses says why, such as that this gateway isn't one of its callers."""
    if response.status != HTTPStatus.OK:
        said = (await response.read())[:LONGEST_REASON_BYTES].decode(errors="replace")
        raise ProtocolError(f"{response.url.path} answered {response.status}: {said}")
