"""Drives a scheduler with the event loop's clock.

Invariant: a step ends when the model says so, measured from the end of the step before; a late timer shortens the wait
for the next one, so that rates stay right on a busy machine. Callbacks may call back into this object.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from duet_engine.protocol import StepKind

if TYPE_CHECKING:
    from duet_engine.simulated_engine.scheduler import Scheduler
    from duet_engine.simulated_engine.steps import Step

MAX_CATCH_UP_SECONDS = 0.1
"""A loop that was held up longer than this doesn't make good for it by a burst of steps."""
SHORTEST_NOISY_SHARE = 0.2


def now() -> float:
    """The clock of all moments in this engine."""
    return time.monotonic()


@dataclass(slots=True)
class Faults:
    """What tests ask for; see `/simulate/faults`."""

    slow_factor: float = 1.0
    hang_until: float = 0.0
    fail_next_requests: int = 0


class Stepper:
    """The present step and the timer that ends it."""

    def __init__(
        self,
        scheduler: Scheduler,
        *,
        step_noise: float,
        seed: int,
        tell: Callable[[], None],
        changed: Callable[[], None],
    ) -> None:
        self.faults = Faults()
        self.step: Step | None = None
        self.started_at = 0.0
        self._scheduler = scheduler
        self._step_noise = step_noise
        self._random = random.Random(seed)
        self._tell = tell
        """Passes on the scheduler's progress."""
        self._changed = changed
        """Hears that the kind of step or the number of requests is another."""
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._seconds = 0.0
        self._ends_at = 0.0
        self._progressed_at = now()
        self._shape: tuple[StepKind, int, int] = (StepKind.IDLE, 0, 0)

    def wake(self) -> None:
        """Something changed from outside: an idle worker starts a step at once."""
        if self.step is None:
            self._advance(now())
        else:
            self._tell()

    def reschedule(self) -> None:
        """The faults have changed, and with them the moment at which the present step ends."""
        self._advance(now())

    def stuck_seconds(self) -> float:
        """How long a step is overdue or, in a hang, work has waited for one; 0 when all is well."""
        moment = now()
        if self.step is not None:
            return max(0.0, moment - max(self._progressed_at, self._ends_at))
        hangs = self.faults.hang_until > moment and self._scheduler.work().total > 0
        return moment - self._progressed_at if hangs else 0.0

    def _on_timer(self, due_at: float) -> None:
        self._timer = None
        self._advance(max(now(), due_at))  # timers have a resolution of a millisecond and may be early by half of it

    def _advance(self, moment: float) -> None:
        self._scheduler.poll(moment)
        start_at = moment
        ended_at = max(self._ends_at, self.faults.hang_until)
        if self.step is not None and moment >= ended_at:
            step, self.step = self.step, None
            self._scheduler.finish_step(step, ended_at, self._seconds)
            self._progressed_at = moment
            if moment - ended_at < MAX_CATCH_UP_SECONDS:
                start_at = ended_at
        self._tell()
        if self.step is None and moment >= self.faults.hang_until:
            self._start_step(start_at)
        self._set_timer()
        self._notice_change()

    def _start_step(self, start_at: float) -> None:
        self.step = self._scheduler.start_step(start_at)
        if self.step is not None:
            self._seconds = self.step.predicted_seconds * self._noise() * self.faults.slow_factor
            self.started_at = start_at
            self._ends_at = start_at + self._seconds
        self._tell()

    def _noise(self) -> float:
        if not self._step_noise:
            return 1.0
        return max(SHORTEST_NOISY_SHARE, self._random.gauss(1.0, self._step_noise))

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        moments = [moment for moment in (self._scheduler.next_event_at(), self._next_step_at()) if moment is not None]
        if moments:
            due_at = min(moments)
            self._timer = self._loop.call_later(max(0.0, due_at - now()), self._on_timer, due_at)

    def _next_step_at(self) -> float | None:
        """When the present step ends or, after a hang, the next one may begin."""
        if self.step is not None:
            return max(self._ends_at, self.faults.hang_until)
        return self.faults.hang_until if self.faults.hang_until > now() else None

    def _notice_change(self) -> None:
        scheduler = self._scheduler
        kind = StepKind.IDLE if self.step is None else self.step.kind
        shape = (kind, len(scheduler.running), scheduler.work().total)
        if shape != self._shape:
            self._shape = shape
            self._changed()
