"""A worker of the simulated engine under a virtual clock: schedulers run for hours in milliseconds, and every invariant
is checked at every step."""

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

from duet_engine.simulated_engine.request import Failure, Refused, Request
from duet_engine.simulated_engine.scheduler import Scheduler
from duet_engine.simulated_engine.steps import Step


@dataclass(eq=False)
class Ear:
    """Hears what a client would."""

    tokens: int = 0
    token_times: list[float] = field(default_factory=list)
    finished: int = 0
    failures: list[Failure] = field(default_factory=list)

    def token(self, request: Request) -> None:
        assert not self.finished and not self.failures
        self.tokens += 1
        self.token_times.append(request.last_token_at)

    def finish(self) -> None:
        self.finished += 1


def ignore(subject: object) -> None:
    """Nobody is interested."""


class VirtualWorker:
    """Drives one scheduler from event to event."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.now = 0.0
        self.ears: dict[Request, Ear] = {}
        self.aborted: set[Request] = set()
        self.refusals: list[Refused] = []
        self.steps: list[tuple[float, Step]] = []
        self.on_claim: Callable[[Request], None] = ignore
        self.on_delivered: Callable[[Request], None] = ignore
        self.on_step: Callable[[Step], None] = ignore
        self._step: Step | None = None
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def at(self, time: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time, next(self._order), action))

    def submit_at(self, time: float, request: Request) -> None:
        self.at(time, lambda: self.submit(request))

    def submit(self, request: Request) -> None:
        try:
            self.scheduler.submit(request, self.now)
        except Refused as refused:
            self.refusals.append(refused)
        else:
            self.ears[request] = Ear()

    def abort(self, request: Request) -> None:
        if request in self.ears and self.scheduler.abort(request):
            self.aborted.add(request)

    def run(self, *, most_events: int = 200_000) -> None:
        """Until nothing is left to happen."""
        for _ in range(most_events):
            if self._step is None:
                self._start_step()
            moment = self._next_moment()
            if moment is None:
                return
            self.now = max(self.now, moment)
            self._happen()
        raise AssertionError("the worker never came to rest")

    def _next_moment(self) -> float | None:
        moments = [self._events[0][0]] if self._events else []
        pending = self.scheduler.next_event_at()
        if pending is not None:
            moments.append(pending)
        if self._step is not None:
            moments.append(self._ends_at)
        return min(moments, default=None)

    def _happen(self) -> None:
        self.scheduler.poll(self.now)
        if self._step is not None and self.now >= self._ends_at:
            step, self._step = self._step, None
            self.scheduler.finish_step(step, self.now, step.predicted_seconds)
        while self._events and self._events[0][0] <= self.now:
            heapq.heappop(self._events)[2]()
        self._listen()
        self.check()

    def _start_step(self) -> None:
        self._step = self.scheduler.start_step(self.now)
        self._listen()
        if self._step is not None:
            self.steps.append((self.now, self._step))
            self._ends_at = self.now + self._step.predicted_seconds
            self.on_step(self._step)
        self.check()

    def _listen(self) -> None:
        progress = self.scheduler.take_progress()
        for request in progress.tokens:
            self.ears[request].token(request)
        for request in progress.finished:
            self.ears[request].finish()
        for request, failure in progress.failed:
            self.ears[request].failures.append(failure)
        for request in progress.claims:
            self.on_claim(request)
        for request in progress.delivered:
            self.on_delivered(request)

    def check(self) -> None:
        """What must hold at any time."""
        scheduler, kv = self.scheduler, self.scheduler.kv
        held = list(scheduler.requests())
        assert len(held) == len(set(held)), "a request is in two places"
        assert 0 <= kv.used_tokens <= kv.capacity_tokens
        assert kv.used_tokens == sum(request.kv_tokens for request in held)
        assert kv.reserved_tokens == sum(request.kv_reserved_tokens for request in held)
        assert scheduler.context_tokens == sum(request.context_tokens for request in scheduler.running)
        assert len(scheduler.running) <= scheduler.limits.max_running_requests
        assert scheduler.work().total == len(held)

    def check_ended(self) -> None:
        """What must hold when nothing happens any more: every accepted request ended, and no token was lost."""
        assert self.scheduler.work().total == 0
        assert self.scheduler.kv.used_tokens == self.scheduler.kv.reserved_tokens == 0
        for request, ear in self.ears.items():
            assert request.done
            endings = ear.finished + len(ear.failures) + (request in self.aborted)
            assert endings == 1, f"{request.rid} ended {endings} times"
            assert ear.tokens == request.generated_tokens
            if ear.finished:
                assert ear.tokens == request.output_tokens
        assert self.scheduler.totals.output_tokens == sum(ear.tokens for ear in self.ears.values())
