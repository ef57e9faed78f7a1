"""Demand documents as gateways write them, with few numbers."""

from collections.abc import Sequence
from typing import Any

from duet_engine.perf import catalog
from duet_engine.protocol import (
    ClassDemand,
    GatewayDemand,
    Histogram,
    MissCause,
    Role,
    WorkerProfile,
    WorkerReport,
    WorkerState,
)

BOUNDS = (0.1, 0.5, 1.0)
LENGTHS = (100.0, 1000.0)


def histogram(*counts: int, bounds: tuple[float, ...] = BOUNDS, total: float = 0.0) -> Histogram:
    return Histogram(bounds=bounds, counts=counts or (0,) * (len(bounds) + 1), sum=total)


def served(requests: int, *, missed: int = 0, rejected: int = 0, name: str = "default") -> ClassDemand:
    """A class of which `requests` ended, each of 500 prompt and 50 output tokens and 0.3 s TTFT."""
    return ClassDemand(
        name=name,
        arrivals_total=requests + rejected,
        completed_total=requests,
        rejected_total=rejected,
        met_both_total=requests - missed,
        missed_total={MissCause.QUEUE: missed, MissCause.CLIENT: 7},
        input_tokens_total=500 * requests,
        output_tokens_total=50 * requests,
        ttft_seconds=histogram(0, requests, 0, 0),
        itl_seconds=histogram(49 * requests, 0, 0, 0),
        tpot_seconds=histogram(requests, 0, 0, 0),
        input_tokens=histogram(0, requests, 0, bounds=LENGTHS, total=500.0 * requests),
        output_tokens=histogram(requests, 0, 0, bounds=LENGTHS, total=50.0 * requests),
    )


def document(
    *classes: ClassDemand,
    instance: str = "one",
    sequence: int = 1,
    age_seconds: float = 10_000.0,
    workers: Sequence[WorkerReport] = (),
    profiles: Sequence[WorkerProfile] = (),
    waiting: int = 0,
) -> GatewayDemand:
    """A document of a gateway that has run for `age_seconds`."""
    return GatewayDemand(
        gateway=f"pod-{instance}",
        instance_id=instance,
        sequence=sequence,
        started_at_seconds=1_000.0,
        written_at_seconds=1_000.0 + age_seconds,
        waiting_requests=waiting,
        waiting_tokens=500 * waiting,
        classes=classes,
        workers=tuple(workers),
        profiles=tuple(profiles),
    )


def report(
    worker: str,
    *,
    role: Role = Role.DECODE,
    age_seconds: float = 0.1,
    revision: str = "new",
    digest: str | None = None,
    known: bool = True,
    queued_tokens: int = 0,
    headroom: float = 100.0,
    draining: bool = False,
    deflects: bool = True,
) -> WorkerReport:
    """What a gateway knows of a worker."""
    state = WorkerState(
        worker=worker,
        role=role,
        revision=revision,
        ready=not draining,
        draining=draining,
        deflection_active=deflects and role is Role.DECODE,
        queued_prefill_tokens=queued_tokens,
        headroom_tokens_per_second=headroom,
    )
    return WorkerReport(
        worker=worker,
        uid=worker,
        address="10.0.0.1:30000",
        role=role,
        revision=revision,
        profile_digest=digest,
        state=state if known else None,
        state_age_seconds=age_seconds,
    )


def profile(digest: str = "d", *, role: Role = Role.DECODE, **changes: Any) -> WorkerProfile:
    """Qwen3-8B on an A100, with less memory."""
    told = catalog.profile("a100-sxm", "Qwen/Qwen3-8B", role=role)
    small = {"kv_capacity_tokens": 100_000, "max_running_requests": 64, "chunked_prefill_tokens": 2048}
    return told.model_copy(update={"digest": digest, **small, **changes})
