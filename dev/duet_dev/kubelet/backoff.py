"""How long to wait before the next try: doubling, bounded, forgotten after a long good run."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

FORGET_AFTER_LONGEST_WAITS = 2


@dataclass(slots=True)
class Backoff:
    first_seconds: float
    longest_seconds: float
    clock: Callable[[], float] = time.monotonic
    _next: float = field(init=False)
    _started: float | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._next = self.first_seconds

    def started(self) -> None:
        """A try begins; if it lasts, its end is not held against it."""
        self._started = self.clock()

    def next_seconds(self) -> float:
        lasted = self.clock() - self._started if self._started is not None else 0.0
        if lasted >= FORGET_AFTER_LONGEST_WAITS * self.longest_seconds:
            self._next = self.first_seconds
        seconds = min(self._next, self.longest_seconds)
        self._next = 2 * seconds
        return seconds
