"""What the demo saw of the cluster, as plain values with a time.

Invariant: every value is immutable and says nothing that the API or a gateway didn't say at that time. Times are
seconds since the Unix epoch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import pairwise
from typing import Any

ROLE_LABEL = "duetserve.io/role"
NAME_LABEL = "duetserve.io/name"
WORKER_ROLES = ("prefill", "decode")


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolCounts:
    """One pool as the object's status shows it."""

    ready: int = 0
    starting: int = 0
    draining: int = 0
    desired: int = 0

    @property
    def held(self) -> int:
        """Workers that exist, whatever they do."""
        return self.ready + self.starting + self.draining

    @classmethod
    def of(cls, status: Mapping[str, Any]) -> PoolCounts:
        return cls(**{name: int(status.get(name) or 0) for name in ("ready", "starting", "draining", "desired")})


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The object and its gateways at one moment."""

    time_seconds: float
    prefill: PoolCounts = PoolCounts()
    decode: PoolCounts = PoolCounts()
    billed_gpus: int = 0
    gateways: int = 0
    gateway_lag_p99_seconds: float = 0.0
    waiting_requests: int = 0
    decision: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleAction:
    """A change of a pool's number by the operator, with its reason in words."""

    time_seconds: float
    pool: str
    from_replicas: int
    to_replicas: int
    message: str

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> ScaleAction:
        """An entry of the object's `status.history`."""
        return cls(
            time_seconds=seconds_of(entry["time"]),
            pool=entry["pool"],
            from_replicas=entry["fromReplicas"],
            to_replicas=entry["toReplicas"],
            message=entry.get("message", ""),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The time for which one pod's GPUs are billed: from scheduled to gone."""

    pod: str
    role: str
    gpus: int
    start_seconds: float
    end_seconds: float | None = None

    def seconds_within(self, start_seconds: float, end_seconds: float) -> float:
        """How long it lasted inside a window; one that hasn't ended lasts to the window's end."""
        until = end_seconds if self.end_seconds is None else min(self.end_seconds, end_seconds)
        return max(0.0, until - max(self.start_seconds, start_seconds))


class Leases:
    """The bill, from the pods' own events."""

    def __init__(self) -> None:
        self._by_uid: dict[str, Lease] = {}

    def see(self, pod: Mapping[str, Any], *, gone_at_seconds: float | None = None) -> None:
        """A pod as an event showed it; `gone_at_seconds` when the event is its deletion."""
        uid = pod["metadata"]["uid"]
        role = pod["metadata"].get("labels", {}).get(ROLE_LABEL, "")
        if uid not in self._by_uid and role in WORKER_ROLES and (scheduled_at := _scheduled_at(pod)) is not None:
            self._by_uid[uid] = Lease(
                pod=pod["metadata"]["name"], role=role, gpus=_gpus(pod), start_seconds=scheduled_at
            )
        if gone_at_seconds is not None and uid in self._by_uid:
            self._by_uid[uid] = replace(self._by_uid[uid], end_seconds=gone_at_seconds)

    @property
    def all(self) -> tuple[Lease, ...]:
        return tuple(self._by_uid.values())


def gpu_seconds(leases: Iterable[Lease], start_seconds: float, end_seconds: float) -> float:
    """What a window costs."""
    return sum(lease.gpus * lease.seconds_within(start_seconds, end_seconds) for lease in leases)


def gpus_over_time(leases: Iterable[Lease], start_seconds: float, end_seconds: float) -> list[tuple[float, int]]:
    """The number of billed GPUs as steps: (from when, how many), the first at the window's start."""
    changes: dict[float, int] = {start_seconds: 0}
    for lease in leases:
        if not lease.seconds_within(start_seconds, end_seconds):
            continue
        first = max(lease.start_seconds, start_seconds)
        changes[first] = changes.get(first, 0) + lease.gpus
        if lease.end_seconds is not None and lease.end_seconds < end_seconds:
            changes[lease.end_seconds] = changes.get(lease.end_seconds, 0) - lease.gpus
    steps, held = [], 0
    for moment in sorted(changes):
        held += changes[moment]
        steps.append((moment, held))
    return steps


def rose_and_fell(values: Iterable[float]) -> bool:
    """Whether a series went above where it began and came down again."""
    series = list(values)
    highest = max(series, default=0.0)
    return bool(series) and highest > series[0] and any(value < highest for value in series[series.index(highest) :])


def fell(values: Iterable[float]) -> bool:
    """Whether a series ever went down."""
    return any(after < before for before, after in pairwise(values))


def seconds_of(timestamp: str) -> float:
    """A time of the API as seconds since the epoch."""
    return datetime.fromisoformat(timestamp).timestamp()


def _scheduled_at(pod: Mapping[str, Any]) -> float | None:
    for condition in pod.get("status", {}).get("conditions", ()):
        if condition["type"] == "PodScheduled" and condition["status"] == "True":
            return seconds_of(condition["lastTransitionTime"])
    return None


def _gpus(pod: Mapping[str, Any]) -> int:
    """All extended resources of the pod: a slice counts as one."""
    return sum(
        int(amount)
        for container in pod["spec"]["containers"]
        for resource, amount in container.get("resources", {}).get("limits", {}).items()
        if "/" in resource
    )
