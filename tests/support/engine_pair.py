"""A pair of the simulated engine's schedulers, or a unified one, under a virtual clock: step by step, nothing leapt."""

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass

from duet_engine.simulated_engine.prefill_role import PrefillScheduler
from duet_engine.simulated_engine.request import Refused, Request
from duet_engine.simulated_engine.scheduler import Scheduler
from duet_engine.simulated_engine.steps import Step


@dataclass
class Times:
    """What a client saw."""

    first: float = -1.0
    last: float = -1.0
    tokens: int = 0


class Driven:
    """A scheduler and its step under way."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.step: Step | None = None
        self.ends_at = 0.0


class EnginePair:
    """Requests go to both workers, or to the decoding one alone where they are local."""

    def __init__(self, decode: Scheduler, prefill: PrefillScheduler | None = None) -> None:
        self.now = 0.0
        self.times: dict[str, Times] = {}
        self.refused: set[str] = set()
        self.decode = Driven(decode)
        self.prefill = Driven(prefill) if prefill else None
        self._decode_side: dict[str, Request] = {}
        self._prefill_side: dict[str, Request] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def submit_at(self, moment: float, request: Request, prefill_half: Request | None = None) -> None:
        heapq.heappush(self._events, (moment, next(self._order), lambda: self._submit(request, prefill_half)))

    def run(self) -> None:
        """Until nothing is left to happen."""
        while True:
            moments = [driven.ends_at for driven in self._workers() if driven.step is not None]
            moments += [self._events[0][0]] if self._events else []
            pending = self.prefill.scheduler.next_event_at() if self.prefill else None
            moments += [pending] if pending is not None else []
            if not moments:
                return
            self.now = min(moments)
            self._happen()

    def _workers(self) -> list[Driven]:
        return [self.prefill, self.decode] if self.prefill else [self.decode]

    def _happen(self) -> None:
        ended = [driven for driven in self._workers() if driven.step is not None and driven.ends_at <= self.now]
        for driven in ended:
            assert driven.step is not None
            step, driven.step = driven.step, None
            driven.scheduler.finish_step(step, self.now, step.predicted_seconds)
        if self.prefill:
            self.prefill.scheduler.poll(self.now)
        while self._events and self._events[0][0] <= self.now:
            heapq.heappop(self._events)[2]()
        busy = True
        while busy:
            started = self._start()
            busy = self._listen() or started

    def _start(self) -> bool:
        started = False
        for driven in self._workers():
            if driven.step is None:
                driven.step = driven.scheduler.start_step(self.now)
                if driven.step is not None:
                    driven.ends_at = self.now + driven.step.predicted_seconds
                    started = True
        return started

    def _listen(self) -> bool:
        heard = False
        for driven in self._workers():
            progress = driven.scheduler.take_progress()
            heard = heard or bool(progress)
            for request in progress.claims:
                assert self.prefill is not None
                assert isinstance(self.prefill.scheduler, PrefillScheduler)
                self.prefill.scheduler.claimed(self._prefill_side[request.rid], self.now)
            for request in progress.delivered:
                self.decode.scheduler.arrived(self._decode_side[request.rid], self.now)  # type: ignore[attr-defined]
            self.refused.update(request.rid for request, _ in progress.failed)
            for request in progress.tokens if driven is self.decode else ():
                self._token(request)
        return heard

    def _token(self, request: Request) -> None:
        times = self.times[request.rid]
        times.tokens += 1
        times.last = self.now
        if times.tokens == 1:
            times.first = self.now

    def _submit(self, request: Request, prefill_half: Request | None) -> None:
        self._decode_side[request.rid] = request
        if prefill_half is not None:
            assert self.prefill is not None
            self._prefill_side[request.rid] = prefill_half
            self.prefill.scheduler.submit(prefill_half, self.now)
        self.times[request.rid] = Times()
        try:
            self.decode.scheduler.submit(request, self.now)
        except Refused:
            self.refused.add(request.rid)
