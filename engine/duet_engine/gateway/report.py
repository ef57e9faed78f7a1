"""Everything that one gateway process counted, as one document; several of them add up to their pod's.

Invariant: totals only grow while `demand.instance_id` stays the same, whichever process is asked. The identity of a
pod is that of all its processes: when one of them starts anew, so does the pod's.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TypeVar

from pydantic import Field

from duet_engine.protocol import ClassDemand, GatewayDemand, Histogram, Message, WorkerReport

Part = TypeVar("Part", bound=Message)


class RequestCount(Message):
    """How many requests went one way and ended one way."""

    path: str
    route: str
    reason: str = ""
    outcome: str
    count: int


class ClassSeries(Message):
    """What Prometheus learns of a class beyond the demand document."""

    name: str
    ttft_over_predicted: Histogram
    e2e_seconds: Histogram
    ttft_objective_seconds: float = 0.0
    ttft_within_total: int = 0
    itl_objective_seconds: float = 0.0
    itl_within_total: int = 0


class WorkerCounts(Message):
    """What one worker did to this gateway's requests."""

    uid: str
    refusals_total: int = 0
    ejections_total: int = 0


class ProcessReport(Message):
    """One process, or all of a pod."""

    demand: GatewayDemand
    requests: tuple[RequestCount, ...] = ()
    retries: dict[str, int] = Field(default_factory=dict)
    classes: tuple[ClassSeries, ...] = ()
    workers: tuple[WorkerCounts, ...] = ()
    accept_wait_seconds: Histogram | None = None
    bytes_per_token: float = 0.0
    counting: str = ""


def together(reports: Sequence[ProcessReport]) -> ProcessReport:
    """The report of a pod from those of its processes."""
    if len(reports) == 1:
        return reports[0]
    return ProcessReport(
        demand=_demand([each.demand for each in reports]),
        requests=_requests(reports),
        retries=dict(sum((Counter(each.retries) for each in reports), Counter())),
        classes=tuple(_class_series(same) for same in _by("name", (part for each in reports for part in each.classes))),
        workers=tuple(_summed(same) for same in _by("uid", (part for each in reports for part in each.workers))),
        accept_wait_seconds=_all_added(each.accept_wait_seconds for each in reports),
        bytes_per_token=sum(each.bytes_per_token for each in reports) / len(reports),
        counting=reports[0].counting,
    )


def added(histograms: Iterable[Histogram]) -> Histogram:
    """Count by count."""
    first, *others = histograms
    counts = tuple(map(sum, zip(first.counts, *(each.counts for each in others), strict=True)))
    return Histogram(bounds=first.bounds, counts=counts, sum=first.sum + sum(each.sum for each in others))


def _all_added(histograms: Iterable[Histogram | None]) -> Histogram | None:
    known = [each for each in histograms if each is not None]
    return added(known) if known else None


def _demand(parts: Sequence[GatewayDemand]) -> GatewayDemand:
    identity = hashlib.sha256(" ".join(sorted(each.instance_id for each in parts)).encode()).hexdigest()[:16]
    profiles = {profile.digest: profile for each in parts for profile in each.profiles}
    return GatewayDemand(
        instance_id=identity,
        sequence=sum(each.sequence for each in parts),
        written_at_seconds=max(each.written_at_seconds for each in parts),
        gateway=parts[0].gateway,
        started_at_seconds=max(each.started_at_seconds for each in parts),
        generation=min(each.generation for each in parts),
        waiting_requests=sum(each.waiting_requests for each in parts),
        waiting_tokens=sum(each.waiting_tokens for each in parts),
        inflight_requests=sum(each.inflight_requests for each in parts),
        loop_lag_p99_seconds=max(each.loop_lag_p99_seconds for each in parts),
        loop_lag_seconds=_all_added(each.loop_lag_seconds for each in parts),
        saturated=any(each.saturated for each in parts),
        classes=tuple(_class(same) for same in _by("name", (part for each in parts for part in each.classes))),
        workers=tuple(_worker(same) for same in _by("uid", (part for each in parts for part in each.workers))),
        profiles=tuple(profiles.values()),
    )


def _class(parts: Sequence[ClassDemand]) -> ClassDemand:
    missed = sum((Counter(each.missed_total) for each in parts), Counter())
    waiting = sum(each.waiting_requests for each in parts)
    return _summed(parts).model_copy(update={"missed_total": dict(missed), "waiting_requests": waiting})


def _class_series(parts: Sequence[ClassSeries]) -> ClassSeries:
    objectives = {name: getattr(parts[0], name) for name in ("ttft_objective_seconds", "itl_objective_seconds")}
    return _summed(parts).model_copy(update=objectives)


def _worker(parts: Sequence[WorkerReport]) -> WorkerReport:
    """The freshest state; out of service only where all find it so."""
    freshest = min(parts, key=lambda each: (each.state is None, each.state_age_seconds))
    return freshest.model_copy(
        update={
            "reachable": any(each.reachable for each in parts),
            "ejected": all(each.ejected for each in parts),
            "inflight": sum(each.inflight for each in parts),
            "errors_total": sum(each.errors_total for each in parts),
        }
    )


def _requests(reports: Sequence[ProcessReport]) -> tuple[RequestCount, ...]:
    counts: Counter[tuple[str, str, str, str]] = Counter()
    for report in reports:
        for each in report.requests:
            counts[each.path, each.route, each.reason, each.outcome] += each.count
    return tuple(
        RequestCount(path=path, route=route, reason=reason, outcome=outcome, count=count)
        for (path, route, reason, outcome), count in counts.items()
    )


def _summed(parts: Sequence[Part]) -> Part:
    """Counts and histograms added, everything else as in the first."""
    first = parts[0]
    update: dict[str, object] = {}
    for name, value in first:
        values = [getattr(each, name) for each in parts]
        if isinstance(value, Histogram):
            update[name] = added(values)
        elif name.endswith("_total") and isinstance(value, int):
            update[name] = sum(values)
    return first.model_copy(update=update)


def _by(key: str, parts: Iterable[Part]) -> list[list[Part]]:
    """Those that have the same key together, in order of appearance."""
    groups: dict[str, list[Part]] = {}
    for part in parts:
        groups.setdefault(getattr(part, key), []).append(part)
    return list(groups.values())
