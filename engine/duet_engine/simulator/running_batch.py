"""The running batch of one worker: a decode step costs the same however many requests are in it.

Invariant: every running request gets one token in each step. What a request is owed (tokens, gaps over the objective,
KV) is the difference of the batch's counts between its joining and its leaving; only its first gap after joining is its
own, because the others' last token came at another moment.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from operator import sub
from typing import TYPE_CHECKING

from duet_engine.simulator.flight import Flight, Stage

if TYPE_CHECKING:
    from duet_engine.simulator.kv import KvPool

GapListener = Callable[[list[float], int], None]


class RunningBatch:
    """Whoever decodes on one worker."""

    def __init__(self, kv: KvPool, *, itl_limits: tuple[float, ...], gaps: GapListener) -> None:
        self.flights: dict[Flight, None] = {}
        self.context_tokens = 0
        self.output_tokens = 0
        self._kv, self._gaps = kv, gaps
        self._finishing: list[tuple[int, int, Flight]] = []
        self._order = count()
        self._last_token_at = 0.0
        self._fresh: list[Flight] = []
        """Joined since the last step."""
        self._itl_limits, self._least_limit = itl_limits, min(itl_limits)
        self._over = [0] * len(itl_limits)
        """Steps whose gap exceeded the objective, by objective."""

    def __len__(self) -> int:
        return len(self.flights)

    # --- who runs ---

    def join(self, flight: Flight) -> None:
        flight.stage = Stage.RUNNING
        self.flights[flight] = None
        self._kv.join(flight.kv)
        self.context_tokens += flight.context_tokens
        flight.gaps_over_start = self._over[flight.limit_index]
        self._fresh.append(flight)
        flight.finish_step = self._kv.steps + flight.output_tokens - flight.generated_tokens
        heappush(self._finishing, (flight.finish_step, next(self._order), flight))

    def leave(self, flight: Flight) -> None:
        """Its counts are its own again."""
        generated = self._kv.leave(flight.kv)
        flight.generated_tokens += generated
        if generated:
            flight.last_token_at = self._last_token_at
        else:
            self._fresh.remove(flight)
        flight.gaps_over_objective += self._over[flight.limit_index] - flight.gaps_over_start
        self.context_tokens -= flight.context_tokens
        flight.finish_step = -1
        del self.flights[flight]

    def least_advanced(self) -> Flight:
        """Whoever has generated least: retracted first."""
        steps = self._kv.steps
        return min(self.flights, key=lambda flight: flight.generated_tokens + steps - flight.kv.joined_step)

    def steps_to_finish(self) -> int:
        """Decode steps until the first request ends."""
        finishing = self._finishing
        while finishing[0][2].finish_step != finishing[0][0]:
            heappop(finishing)  # it left early
        return finishing[0][0] - self._kv.steps

    # --- steps ---

    def decode(self, ends: list[float]) -> list[Flight]:
        """Decode steps that ended at these moments; the requests that ended with them have left the batch."""
        ended: list[Flight] = []
        while ends and self.flights:
            due = self.steps_to_finish()
            if due > len(ends):
                self._emit(ends)
                break
            self._emit(ends[:due])
            self._leave_due(ended)
            ends = ends[due:]
        return ended

    def own_gap(self, flight: Flight, now: float) -> None:
        """A gap that this request alone saw."""
        gap = now - flight.last_token_at
        flight.gaps_over_objective += gap > self._itl_limits[flight.limit_index]
        self._gaps([gap], 1)

    def _emit(self, ends: list[float]) -> None:
        requests, steps = len(self.flights), len(ends)
        previous, least = self._last_token_at, self._least_limit
        fresh, self._fresh = self._fresh, []
        if fresh:
            self._first_gaps(fresh, ends[0], previous)
        gaps = [ends[0] - previous]
        if steps > 1:
            gaps += map(sub, ends[1:], ends)
        if max(gaps) > least:
            self._count_over(gaps)
        if fresh:
            self._gaps(gaps[:1], requests - len(fresh))
            del gaps[0]
        self._gaps(gaps, requests)
        self._last_token_at = ends[-1]
        self._kv.advance(steps)
        self.context_tokens += requests * steps
        self.output_tokens += requests * steps

    def _first_gaps(self, fresh: list[Flight], end: float, previous: float) -> None:
        shared = end - previous
        for flight in fresh:
            flight.gaps_over_start += shared > self._itl_limits[flight.limit_index]
            self.own_gap(flight, end)

    def _count_over(self, gaps: list[float]) -> None:
        for index, limit in enumerate(self._itl_limits):
            self._over[index] += sum([gap > limit for gap in gaps])

    def _leave_due(self, ended: list[Flight]) -> None:
        finishing, step = self._finishing, self._kv.steps
        while finishing and finishing[0][0] <= step:
            finish_step, _, flight = heappop(finishing)
            if flight.finish_step == finish_step:
                self.leave(flight)
                ended.append(flight)
