"""What users asked for and got, as counters that only grow: the gateway's half of every scaling decision.

Invariant: bounds are the same in every gateway and never change within a protocol version, so that documents of several
processes and pods add up count by count. Nothing here knows a clock.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache

from duet_engine.distribution import Distribution
from duet_engine.gateway.live_settings import DEFAULT_CLASS
from duet_engine.gateway.objective_edge import ObjectiveEdge
from duet_engine.gateway.record import End, RequestRecord, miss_cause
from duet_engine.gateway.report import ClassSeries, RequestCount
from duet_engine.protocol import ClassDemand, MissCause
from duet_engine.slo import Objective, Outcome, judge

_STEP = 1.08
"""Relative width of a bucket of time: what a percentile is known to."""


def _geometric(first: float, last: float) -> tuple[float, ...]:
    bounds = [first]
    while bounds[-1] < last:
        bounds.append(float(f"{bounds[-1] * _STEP:.4g}"))
    return tuple(bounds)


TTFT_BOUNDS_SECONDS = _geometric(0.01, 120.0)
GAP_BOUNDS_SECONDS = _geometric(0.001, 10.0)
LENGTH_BOUNDS_TOKENS = tuple(float(2**power) for power in range(21))
E2E_BOUNDS_SECONDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 300.0, 600.0)
RATIO_BOUNDS = (0.25, 0.5, 0.67, 0.8, 0.9, 1.0, 1.11, 1.25, 1.5, 2.0, 4.0)
"""Observed over predicted TTFT."""


class ClassCounters:
    """Counters of one class of requests."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.arrivals = 0
        self.ends: Counter[End] = Counter()
        self.given_up = 0
        """Of the cancelled ones, those whose first token was late."""
        self.met_both = 0
        self.met_ttft = 0
        self.met_itl = 0
        self.missed: Counter[MissCause] = Counter()
        self.input_tokens_total = 0
        self.refused_input_tokens_total = 0
        self.cached_tokens_total = 0
        self.output_tokens_total = 0
        self.deflected_requests = 0
        self.deflected_tokens = 0
        self.ttft = Distribution(TTFT_BOUNDS_SECONDS)
        self.itl = Distribution(GAP_BOUNDS_SECONDS)
        self.tpot = Distribution(GAP_BOUNDS_SECONDS)
        self.input_tokens = Distribution(LENGTH_BOUNDS_TOKENS)
        self.output_tokens = Distribution(LENGTH_BOUNDS_TOKENS)
        self.ttft_over_predicted = Distribution(RATIO_BOUNDS)
        self.e2e = Distribution(E2E_BOUNDS_SECONDS)
        self.ttft_edge, self.itl_edge = ObjectiveEdge(), ObjectiveEdge()

    def arrived(self, record: RequestRecord, objective: Objective) -> None:
        """A request that is well formed; its tokens as far as they are known now."""
        self.ttft_edge.move(objective.ttft_seconds, self.ttft)
        self.itl_edge.move(objective.itl_seconds, self.itl)
        self.arrivals += 1
        self.input_tokens_total += record.prompt_tokens
        self.input_tokens.observe(record.prompt_tokens)

    def began(self, record: RequestRecord) -> None:
        """Its first token is here, perhaps with others in the same read."""
        self.output_tokens_total += record.relayed_tokens
        if record.relayed_tokens > 1:
            self._no_gaps(record.relayed_tokens - 1)
        if record.streamed:
            self.ttft.observe(record.ttft_seconds)
            self.ttft_edge.count += record.ttft_seconds <= self.ttft_edge.bound
        if record.deflected:
            self.deflected_requests += 1
            self.deflected_tokens += record.prompt_tokens

    def gap(self, seconds: float, tokens: int) -> None:
        """`tokens` tokens came in one read, `seconds` after the one before them: one gap, and none between them."""
        self.output_tokens_total += tokens
        self.itl.counts[bisect_left(GAP_BOUNDS_SECONDS, seconds)] += 1  # `observe`, without its call: for each token
        self.itl.sum += seconds
        if seconds <= self.itl_edge.bound:
            self.itl_edge.count += 1
        if tokens > 1:
            self._no_gaps(tokens - 1)

    def _no_gaps(self, count: int) -> None:
        self.itl.observe(0.0, count)
        self.itl_edge.count += count

    def ended(self, record: RequestRecord, objective: Objective) -> None:
        """A request is over: judge it."""
        assert record.end is not None
        self.ends[record.end] += 1
        self.cached_tokens_total += record.cached_tokens
        self.output_tokens_total += max(0, record.output_tokens - record.relayed_tokens)
        given_up = record.given_up(objective)
        self.given_up += given_up
        if record.end is End.REFUSED:
            self.refused_input_tokens_total += record.prompt_tokens
            return
        if record.end is End.CANCELLED and not given_up:
            return
        outcome = record.outcome()
        if record.end is End.COMPLETED:
            self._completed(record, outcome)
        verdict = judge(outcome, objective)
        self.met_both += verdict.met
        self.met_ttft += verdict.ttft_met
        self.met_itl += verdict.itl_met
        cause = miss_cause(record, verdict, objective)
        if cause is not None:
            self.missed[cause] += 1

    def _completed(self, record: RequestRecord, outcome: Outcome) -> None:
        self.output_tokens.observe(record.output_tokens)
        self.e2e.observe(record.last_at - record.arrived_at)
        if record.output_tokens > 1:
            self.tpot.observe(outcome.tpot_seconds)
        if record.streamed and record.first_at is not None and record.predicted_ttft_seconds > 0:
            assert record.dispatched_at is not None
            self.ttft_over_predicted.observe((record.first_at - record.dispatched_at) / record.predicted_ttft_seconds)

    def series(self) -> ClassSeries:
        """What only Prometheus wants to know."""
        return ClassSeries(
            name=self.name,
            ttft_over_predicted=self.ttft_over_predicted.document(),
            e2e_seconds=self.e2e.document(),
            ttft_objective_seconds=self.ttft_edge.bound,
            ttft_within_total=self.ttft_edge.count,
            itl_objective_seconds=self.itl_edge.bound,
            itl_within_total=self.itl_edge.count,
        )

    def document(self, waiting_requests: int = 0) -> ClassDemand:
        """The class's part of the demand document."""
        return ClassDemand(
            name=self.name,
            arrivals_total=self.arrivals,
            completed_total=self.ends[End.COMPLETED],
            failed_total=self.ends[End.FAILED],
            rejected_total=self.ends[End.REJECTED],
            given_up_total=self.given_up,
            refused_total=self.ends[End.REFUSED],
            refused_input_tokens_total=self.refused_input_tokens_total,
            met_both_total=self.met_both,
            met_ttft_total=self.met_ttft,
            met_itl_total=self.met_itl,
            missed_total=dict(self.missed),
            input_tokens_total=self.input_tokens_total,
            cached_tokens_total=self.cached_tokens_total,
            output_tokens_total=self.output_tokens_total,
            deflected_requests_total=self.deflected_requests,
            deflected_tokens_total=self.deflected_tokens,
            ttft_seconds=self.ttft.document(),
            itl_seconds=self.itl.document(),
            tpot_seconds=self.tpot.document(),
            input_tokens=self.input_tokens.document(),
            output_tokens=self.output_tokens.document(),
            waiting_requests=waiting_requests,
        )


class Demand:
    """All classes of one process."""

    def __init__(self) -> None:
        self._classes = {DEFAULT_CLASS: ClassCounters(DEFAULT_CLASS)}
        self.retries: Counter[str] = Counter()
        """By what went wrong before: refused or failed."""
        self.requests: Counter[tuple[str, str, str, str]] = Counter()
        """By path, route kind, its reason, and end."""

    def of(self, record: RequestRecord) -> ClassCounters:
        """The counters of a request's class."""
        found = self._classes.get(record.class_name)
        if found is None:
            found = self._classes[record.class_name] = ClassCounters(record.class_name)
        return found

    def classes(self) -> Iterable[ClassCounters]:
        return self._classes.values()

    def ended(self, record: RequestRecord) -> None:
        """Which way it went and how it ended."""
        self.requests[record.path, *_kind_and_reason(record.route), str(record.end)] += 1

    def request_counts(self) -> tuple[RequestCount, ...]:
        return tuple(
            RequestCount(path=path, route=route, reason=reason, outcome=outcome, count=count)
            for (path, route, reason, outcome), count in self.requests.items()
        )

    def documents(self, waiting: Mapping[str, int] | None = None) -> tuple[ClassDemand, ...]:
        """With how many wait now, by class."""
        known = waiting or {}
        return tuple(counters.document(known.get(name, 0)) for name, counters in self._classes.items())


@lru_cache(maxsize=4096)
def _kind_and_reason(route: str) -> tuple[str, str]:
    return route.split("=", 1)[0] or "none", route.partition(" reason=")[2]
