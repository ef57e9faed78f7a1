"""Demand and attainment over windows, from the documents that gateways give.

Invariant: no clock and no I/O, times come in with each call. A window that nothing was measured over gives None. An
instance that was already running when it was first seen contributes from then on; one that started meanwhile, from its
start; one that is gone, until its last document leaves the window.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from duet_operator.planner.types import Attainment, Demand
from duet_operator.signals.totals import Totals, mean, quantile, total, totals

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from duet_engine.protocol import GatewayDemand

SHORT_WINDOW_SECONDS = 300.0
LONG_WINDOW_SECONDS = 3600.0
COARSE_SPACING_SECONDS = 60.0
"""Beyond the fine window samples are kept so far apart, without their histograms."""


@dataclass(slots=True)
class _Sample:
    time_seconds: float
    totals: Totals


@dataclass(frozen=True, slots=True)
class _Measured:
    """What was counted over a window, and how long the window really was."""

    totals: Totals
    seconds: float


@dataclass(frozen=True, slots=True)
class _Series:
    """The samples of one instance, oldest first: all of late, and those from before, one a minute."""

    coarse: deque[_Sample] = field(default_factory=deque)
    fine: deque[_Sample] = field(default_factory=deque)

    def newest_first(self) -> Iterator[_Sample]:
        """Short windows are asked for most, so most searches end soon."""
        yield from reversed(self.fine)
        yield from reversed(self.coarse)

    def thin(self, *, now: float, fine_seconds: float) -> None:
        """Keep the last hour: what is older than `fine_seconds` once a minute, and one from before the hour as base."""
        while self.fine and now - self.fine[0].time_seconds > fine_seconds:
            sample = self.fine.popleft()
            if not self.coarse or sample.time_seconds - self.coarse[-1].time_seconds >= COARSE_SPACING_SECONDS:
                self.coarse.append(_Sample(sample.time_seconds, sample.totals.without_histograms()))
        while len(self.coarse) > 1 and now - self.coarse[1].time_seconds > LONG_WINDOW_SECONDS:
            self.coarse.popleft()


class DemandHistory:
    """The counters of one object's gateways over the last hour: all of the last `fine_seconds`, few from before."""

    def __init__(self, *, fine_seconds: float) -> None:
        self._fine_seconds = fine_seconds
        self._instances: dict[str, _Series] = {}
        self._measured: dict[tuple[float, float], _Measured | None] = {}
        """Window and time -> what was counted over it, for as long as nothing is added: several ask for the same."""
        self._began: float | None = None
        self._waiting: tuple[int, int] = (0, 0)

    def add(self, documents: Iterable[GatewayDemand], *, now_seconds: float) -> None:
        """What the gateways that answered say now."""
        documents = tuple(documents)
        self._measured.clear()
        for document in documents:
            self._add(document, now_seconds)
        if documents:
            self._began = now_seconds if self._began is None else self._began
            self._waiting = (
                sum(document.waiting_requests for document in documents),
                sum(document.waiting_tokens for document in documents),
            )
        self._forget(now_seconds)

    def demand(self, *, window_seconds: float, lengths_seconds: float, now_seconds: float) -> Demand | None:
        """What users asked for over the window; None before there is one.

        Lengths of answers are averaged over `lengths_seconds`: those that happen to end in a short window aren't those
        that were asked for in it.
        """
        measured = self._measure(window_seconds, now_seconds)
        lengths = self._measure(lengths_seconds, now_seconds)
        if measured is None or lengths is None:
            return None
        counted, seconds = measured.totals, measured.seconds
        # What is wrong in itself asks for no workers.
        arrivals = max(counted.arrivals - counted.refused, 0)
        input_tokens = max(counted.input_tokens - counted.refused_input_tokens, 0)
        return Demand(
            window_seconds=seconds,
            requests_per_second=arrivals / seconds,
            input_tokens_per_second=input_tokens / seconds,
            cached_tokens_per_second=counted.cached_tokens / seconds,
            output_tokens_per_second=counted.output_tokens / seconds,
            mean_input_tokens=input_tokens / arrivals if arrivals else 0.0,
            mean_output_tokens=_mean_output_tokens(lengths.totals),
            p95_input_tokens=quantile(counted.input_lengths, 0.95) or 0.0,
            deflected_requests_per_second=counted.deflected_requests / seconds,
            deflected_tokens_per_second=counted.deflected_tokens / seconds,
            rejected_requests_per_second=counted.rejected / seconds,
            waiting_requests=self._waiting[0],
            waiting_tokens=self._waiting[1],
        )

    def attainment(self, *, window_seconds: float, now_seconds: float) -> Attainment | None:
        """How well the objectives were met over the window."""
        measured = self._measure(window_seconds, now_seconds)
        if measured is None:
            return None
        counted = measured.totals
        return Attainment(
            window_seconds=measured.seconds,
            completed_requests=counted.judged,
            met_both_share=counted.met_both / counted.judged if counted.judged else None,
            ttft_p95_seconds=quantile(counted.ttft_seconds, 0.95),
            itl_p95_seconds=quantile(counted.itl_seconds, 0.95),
            capacity_misses=counted.capacity_misses,
        )

    def burn_rate(self, *, window_seconds: float, goal: float, now_seconds: float) -> float | None:
        """How fast the error budget burns: 1 uses it up exactly. None where no request ended or there is no budget."""
        measured = self._measure(window_seconds, now_seconds)
        if measured is None or not measured.totals.judged or goal >= 1.0:
            return None
        missed = 1.0 - measured.totals.met_both / measured.totals.judged
        return missed / (1.0 - goal)

    # --- inside ---

    def _add(self, document: GatewayDemand, now: float) -> None:
        sample = _Sample(now, totals(document))
        series = self._instances.get(document.instance_id)
        if series is None:
            series = self._instances[document.instance_id] = _Series()
            age = max(document.written_at_seconds - document.started_at_seconds, 0.0)
            if self._began is not None and now - age >= self._began:
                series.fine.append(_Sample(now - age, Totals()))
        if series.fine and series.fine[-1].time_seconds >= now:
            series.fine.pop()
        series.fine.append(sample)

    def _forget(self, now: float) -> None:
        for instance, series in tuple(self._instances.items()):
            series.thin(now=now, fine_seconds=self._fine_seconds)
            newest = next(series.newest_first(), None)
            if newest is None or now - newest.time_seconds > LONG_WINDOW_SECONDS:
                del self._instances[instance]

    def _measure(self, window_seconds: float, now: float) -> _Measured | None:
        key = window_seconds, now
        if key not in self._measured:
            self._measured[key] = self._count(window_seconds, now)
        return self._measured[key]

    def _count(self, window_seconds: float, now: float) -> _Measured | None:
        """All instances over one window, which begins at the oldest sample that was needed."""
        parts = [part for series in self._instances.values() if (part := _difference(series, now - window_seconds))]
        begin = min((begin for begin, _ in parts), default=now)
        return _Measured(total(counted for _, counted in parts), now - begin) if begin < now else None


def _mean_output_tokens(counted: Totals) -> float:
    """Of the answers that ended; from the counters where the histogram reaches back too far."""
    rough = counted.output_tokens / counted.completed if counted.completed else 0.0
    return mean(counted.output_lengths) or rough


def _difference(series: _Series, start: float) -> tuple[float, Totals] | None:
    """What one instance counted from about `start` on, and from when exactly; None without two samples to compare."""
    samples = series.newest_first()
    newest, first = next(samples, None), None
    if newest is None or newest.time_seconds <= start:
        return None
    for first in samples:
        if first.time_seconds <= start:
            break
    return None if first is None else (first.time_seconds, newest.totals.since(first.totals))
