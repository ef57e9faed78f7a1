"""Brings the live settings to the engines.

Invariant: level-triggered. Whenever an engine's state shows an older generation than the one in force, it is sent
again, one request at a time for each worker; so new, restarted and briefly unreachable engines need no special case.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import aiohttp

from duet_engine.gateway.live_settings import LiveSettings
from duet_engine.gateway.workers import Worker
from duet_engine.mounted_files import no_credentials
from duet_engine.protocol import KNOBS_PATH, Role, WorkerState

log = logging.getLogger(__name__)

PAUSE_SECONDS = 1.0
_TIMEOUT = aiohttp.ClientTimeout(total=5.0, sock_connect=2.0)


class KnobPusher:
    """Pushes to those that lag behind."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        live: Callable[[], LiveSettings],
        *,
        credentials: Callable[[], dict[str, str]] = no_credentials,
    ) -> None:
        self._session = session
        self._live = live
        self._credentials = credentials
        self._pushes: dict[str, asyncio.Task[None]] = {}

    def check(self, worker: Worker, state: WorkerState) -> None:
        """Start a push when this state is behind."""
        if worker.member.role is Role.PREFILL or state.knobs_generation >= self._live().generation:
            return
        if worker.key not in self._pushes:
            task = asyncio.create_task(self._push(worker))
            self._pushes[worker.key] = task
            task.add_done_callback(lambda _: self._pushes.pop(worker.key, None))

    async def _push(self, worker: Worker) -> None:
        knobs = self._live().knobs()
        try:
            async with self._session.put(
                worker.member.url + KNOBS_PATH,
                data=knobs.write(),
                headers=self._credentials(),
                timeout=_TIMEOUT,
                raise_for_status=True,
            ):
                log.info("worker %s: knobs of generation %d sent", worker.name, knobs.generation)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            log.warning("worker %s: knobs of generation %d not taken: %s", worker.name, knobs.generation, error)
            await asyncio.sleep(PAUSE_SECONDS)
