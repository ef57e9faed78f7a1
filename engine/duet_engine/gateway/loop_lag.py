"""How late this process's event loop runs: the part of a request's latency that the gateway itself adds.

Invariant: measuring costs one callback each interval, whatever the load.
"""

from __future__ import annotations

import asyncio
from collections import deque
from time import monotonic

from duet_engine.distribution import Distribution

INTERVAL_SECONDS = 0.02
WINDOW_SECONDS = 10.0
SATURATED_SECONDS = 0.02
TICKS_REMEMBERED = 10
BOUNDS_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0)


class LoopLag:
    """Lateness of a periodic callback, over the last seconds and since the start."""

    def __init__(self) -> None:
        self.total = Distribution(BOUNDS_SECONDS)
        self._samples: deque[float] = deque(maxlen=round(WINDOW_SECONDS / INTERVAL_SECONDS))
        self._handle: asyncio.TimerHandle | None = None
        self._p99_seconds = 0.0
        self._ticks_since = TICKS_REMEMBERED

    def start(self) -> None:
        """Begin to measure on the running loop."""
        self._schedule(asyncio.get_running_loop())

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()

    def p99_seconds(self) -> float:
        """0 while nothing was measured. Every request asks, so it is worked out a few times a second only."""
        if self._ticks_since >= TICKS_REMEMBERED and self._samples:
            ordered = sorted(self._samples)
            self._p99_seconds = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
            self._ticks_since = 0
        return self._p99_seconds

    @property
    def saturated(self) -> bool:
        return self.p99_seconds() > SATURATED_SECONDS

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        self._handle = loop.call_later(INTERVAL_SECONDS, self._tick, loop, monotonic() + INTERVAL_SECONDS)

    def _tick(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        late_seconds = max(0.0, monotonic() - due)
        self._samples.append(late_seconds)
        self._ticks_since += 1
        self.total.observe(late_seconds)
        self._schedule(loop)
