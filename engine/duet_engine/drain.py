"""The drain of one worker: leased, reversible, final once the process was told to end.

Invariant: without a renewed lease a drain ends by itself and the worker serves again; `terminating` never ends.
Pure: time and the amount of work come in with each call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from duet_engine.protocol import DrainPhase, DrainStatus, Work


class Stamp(TypedDict):
    """The fields of `protocol.Document` that tell its writer."""

    instance_id: str
    sequence: int
    written_at_seconds: float


@dataclass(slots=True)
class Drain:
    """Phase, lease, and how long the worker has been empty."""

    worker: str
    terminating: bool = False
    requested_by: str = ""
    reason: str = ""
    _lease_ends_at: float | None = None
    _empty_since: float | None = None

    def request(self, *, lease_seconds: float, requested_by: str, reason: str, now: float) -> None:
        """Start or renew; the newest lease counts, be it shorter."""
        self._lease_ends_at = now + lease_seconds
        self.requested_by, self.reason = requested_by, reason

    def cancel(self) -> None:
        """Serve again, unless the process is ending."""
        self._lease_ends_at = None

    def terminate(self) -> None:
        """Drain for good."""
        self.terminating = True

    def active(self, now: float) -> bool:
        """Whether new work is refused."""
        return self.terminating or (self._lease_ends_at is not None and now < self._lease_ends_at)

    def observe(self, work: Work, now: float) -> None:
        """Note since when there has been no work at all."""
        if work.total:
            self._empty_since = None
        elif self._empty_since is None:
            self._empty_since = now

    def idle_seconds(self, now: float) -> float:
        return 0.0 if self._empty_since is None else now - self._empty_since

    def phase(self, work: Work, now: float) -> DrainPhase:
        if self.terminating:
            return DrainPhase.TERMINATING
        if not self.active(now):
            return DrainPhase.SERVING
        return DrainPhase.DRAINING if work.total else DrainPhase.DRAINED

    def lease_remaining_seconds(self, now: float) -> float:
        return 0.0 if self._lease_ends_at is None else max(0.0, self._lease_ends_at - now)

    def status(self, work: Work, now: float, stamp: Stamp) -> DrainStatus:
        """The answer of `/duet/drain`."""
        self.observe(work, now)
        return DrainStatus(
            **stamp,
            worker=self.worker,
            phase=self.phase(work, now),
            lease_remaining_seconds=self.lease_remaining_seconds(now),
            idle_seconds=self.idle_seconds(now),
            remaining=work,
        )
