"""Who is waited for, and for how long nothing has come: one sweep for all instead of a timer for each.

Invariant: nothing is swept for while nobody is waited for.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Protocol

SWEEP_SECONDS = 0.25


class Awaited(Protocol):
    """Something that is expected to say something."""

    def check_silence(self, now: float) -> None:
        """Give up when it has been silent for too long."""
        ...


class SilenceWatch:
    """All that one process waits for."""

    def __init__(self) -> None:
        self._awaited: set[Awaited] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    def add(self, awaited: Awaited) -> None:
        self._awaited.add(awaited)
        if self._timer is None:
            self._timer = self._loop.call_later(SWEEP_SECONDS, self._sweep)

    def discard(self, awaited: Awaited) -> None:
        self._awaited.discard(awaited)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _sweep(self) -> None:
        now = monotonic()
        for each in tuple(self._awaited):
            each.check_silence(now)
        self._timer = self._loop.call_later(SWEEP_SECONDS, self._sweep) if self._awaited else None
