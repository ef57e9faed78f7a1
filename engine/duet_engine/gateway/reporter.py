"""Puts one process's counters into its report.

Invariant: reading changes nothing but the document's sequence number.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic

from duet_engine.distribution import Distribution
from duet_engine.gateway.demand import Demand
from duet_engine.gateway.inference import Inference
from duet_engine.gateway.live_settings import LiveSettings
from duet_engine.gateway.loop_lag import LoopLag
from duet_engine.gateway.report import ProcessReport, WorkerCounts
from duet_engine.gateway.routing import Dispatcher
from duet_engine.gateway.tokens import TokenEstimator
from duet_engine.gateway.workers import Worker, Workers
from duet_engine.protocol import GatewayDemand, WorkerReport


@dataclass(slots=True, kw_only=True)
class Reporter:
    """Knows where everything is counted."""

    name: str
    instance_id: str
    demand: Demand
    dispatcher: Dispatcher
    workers: Workers
    lag: LoopLag
    tokens: TokenEstimator
    inference: Inference
    accept_waits: Distribution
    live: Callable[[], LiveSettings]
    started_at_seconds: float = field(default_factory=time.time)
    _sequence: int = 0

    def report(self) -> ProcessReport:
        """What users asked for and got from this process so far."""
        return ProcessReport(
            demand=self._document(),
            requests=self.demand.request_counts(),
            retries=dict(self.demand.retries),
            classes=tuple(counters.series() for counters in self.demand.classes()),
            workers=tuple(
                WorkerCounts(
                    uid=worker.key,
                    refusals_total=worker.refusals_total,
                    ejections_total=worker.breaker.ejections_total,
                )
                for worker in self.workers
            ),
            accept_wait_seconds=self.accept_waits.document(),
            bytes_per_token=self.tokens.bytes_per_token,
            counting=self.tokens.active,
        )

    def _document(self) -> GatewayDemand:
        now = monotonic()
        self._sequence += 1
        workers = tuple(self.workers)
        profiles = {worker.profile.digest: worker.profile for worker in workers if worker.profile is not None}
        return GatewayDemand(
            instance_id=self.instance_id,
            sequence=self._sequence,
            written_at_seconds=time.time(),
            gateway=self.name,
            started_at_seconds=self.started_at_seconds,
            generation=self.live().generation,
            waiting_requests=self.dispatcher.waiting_requests,
            waiting_tokens=self.dispatcher.waiting_tokens,
            inflight_requests=self.inference.inflight,
            loop_lag_p99_seconds=self.lag.p99_seconds(),
            loop_lag_seconds=self.lag.total.document(),
            saturated=self.lag.saturated,
            classes=self.demand.documents(self.dispatcher.waiting_by_class()),
            workers=tuple(_worker_report(worker, now) for worker in workers),
            profiles=tuple(profiles.values()),
        )


def _worker_report(worker: Worker, now: float) -> WorkerReport:
    """The worker's part of the demand document."""
    return WorkerReport(
        worker=worker.name,
        uid=worker.key,
        address=worker.member.url,
        role=worker.member.role,
        revision=worker.revision,
        profile_digest=worker.profile.digest if worker.profile else None,
        reachable=worker.connected,
        ejected=worker.breaker.ejected,
        state=worker.state,
        state_age_seconds=now - worker.state_received_at if worker.state else 0.0,
        inflight=worker.inflight,
        errors_total=worker.errors_total,
    )
