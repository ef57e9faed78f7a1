"""What several gateways report of the same workers, made into one picture.

Invariant: pure. Each worker counts once, by the youngest report that has a state; a report of a pod that the cluster
doesn't have any more, or of a worker that fell silent, counts for nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from duet_engine.protocol import Role

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from duet_engine.protocol import GatewayDemand, WorkerProfile, WorkerReport, WorkerState
    from duet_operator.pods import Pod


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Work that the workers of one pool hold together."""

    queued_prefill_tokens: int = 0
    running_requests: int = 0
    kv_used_tokens: int = 0
    headroom_tokens_per_second: float | None = None
    """None where no worker told."""


def freshest(documents: Iterable[GatewayDemand]) -> dict[str, WorkerReport]:
    """Pod uid, or name where no uid is told -> its youngest report with a state, else any report of it."""
    best: dict[str, WorkerReport] = {}
    for document in documents:
        for report in document.workers:
            known = best.get(report.uid or report.worker)
            if known is None or _age(report) < _age(known):
                best[report.uid or report.worker] = report
    return best


def _age(report: WorkerReport) -> float:
    return report.state_age_seconds if report.state is not None else float("inf")


def states(
    reports: Mapping[str, WorkerReport], pods: Iterable[Pod], *, stale_after_seconds: float
) -> dict[str, WorkerState]:
    """Pod uid -> state, of the pods that there are; what a worker that fell silent told last is true no more."""
    told = {pod.uid: reports.get(pod.uid) or reports.get(pod.name) for pod in pods}
    return {
        uid: report.state
        for uid, report in told.items()
        if report is not None and report.state is not None and report.state_age_seconds <= stale_after_seconds
    }


def load(states: Iterable[WorkerState]) -> Load:
    """What the workers of a pool hold together. Draining ones take nothing new, so they have no headroom."""
    states = tuple(states)
    serving = [state for state in states if state.ready and not state.draining]
    return Load(
        queued_prefill_tokens=sum(state.queued_prefill_tokens + state.queued_deflected_tokens for state in states),
        running_requests=sum(state.work.total for state in states),
        kv_used_tokens=sum(state.kv_used_tokens for state in states),
        headroom_tokens_per_second=sum(state.headroom_tokens_per_second for state in serving) if serving else None,
    )


def profiles(documents: Iterable[GatewayDemand], *, revision: str | None = None) -> dict[Role, WorkerProfile]:
    """Role -> what a replica of it can do: as workers of `revision` report it if any does, else as any does."""
    known: dict[Role, WorkerProfile] = {}
    current: dict[Role, WorkerProfile] = {}
    for document in documents:
        by_digest = {profile.digest: profile for profile in document.profiles}
        known |= {profile.role: profile for profile in document.profiles}
        for report in document.workers:
            profile = by_digest.get(report.profile_digest or "")
            if profile is not None and revision is not None and report.revision == revision:
                current[profile.role] = profile
    return known | current
