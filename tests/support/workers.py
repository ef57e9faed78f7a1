"""Workers of a pool in every state of a drain."""

from collections import Counter
from datetime import UTC, datetime

from duet_engine.protocol import DrainPhase, DrainStatus, Work
from duet_operator.drain_actions import Pool, Rules, Worker
from duet_operator.pods import (
    DELETION_COST_ANNOTATION,
    DRAIN_ANNOTATION,
    DRAIN_GIVEN_UP_ANNOTATION,
    DRAIN_STARTED_ANNOTATION,
    Pod,
)

NOW = 1_800_000_000.0


def time_text(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def rules() -> Rules:
    return Rules(now_seconds=NOW, settle_seconds=2.0, timeout_seconds=600.0)


def ready(
    name: str,
    *,
    work: int | None = 0,
    node: str = "node",
    revision: str = "new",
    serving: bool = True,
    by_hand: bool = False,
    given_up: float | None = None,
) -> Worker:
    """A worker that takes requests, or did a moment ago."""
    annotations = {}
    if by_hand:
        annotations[DRAIN_ANNOTATION] = "true"
    if given_up is not None:
        annotations[DRAIN_GIVEN_UP_ANNOTATION] = time_text(given_up)
    pod = Pod(
        namespace="default",
        name=name,
        uid=name,
        node=node,
        revision=revision,
        address="10.0.0.1",
        ready=serving,
        has_been_ready=True,
        phase="Running",
        annotations=annotations,
    )
    return Worker(pod=pod, work_left=work)


def starting(name: str) -> Worker:
    """A worker that never took a request."""
    return Worker(pod=Pod(namespace="default", name=name, uid=name, phase="Running"))


def draining(
    name: str, *, left: int, since: float = NOW - 5, by_hand: bool = False, answered: bool = True, cost: str = ""
) -> Worker:
    """A worker that finishes its requests."""
    return _draining(name, left=left, since=since, by_hand=by_hand, answered=answered, cost=cost, idle_seconds=0.0)


def drained(
    name: str, *, idle_seconds: float = 3.0, since: float = NOW - 9, by_hand: bool = False, cost: str = ""
) -> Worker:
    """A worker that holds nothing any more."""
    return _draining(name, left=0, since=since, by_hand=by_hand, answered=True, cost=cost, idle_seconds=idle_seconds)


def _draining(
    name: str, *, left: int, since: float, by_hand: bool, answered: bool, cost: str, idle_seconds: float
) -> Worker:
    annotations = {DRAIN_STARTED_ANNOTATION: time_text(since)}
    if by_hand:
        annotations[DRAIN_ANNOTATION] = "true"
    if cost:
        annotations[DELETION_COST_ANNOTATION] = cost
    status = DrainStatus(
        worker=name,
        phase=DrainPhase.DRAINING if left else DrainPhase.DRAINED,
        lease_remaining_seconds=20.0,
        idle_seconds=idle_seconds,
        remaining=Work(running=left),
    )
    pod = Pod(
        namespace="default",
        name=name,
        uid=name,
        node="node",
        revision="new",
        address="10.0.0.1",
        has_been_ready=True,
        phase="Running",
        annotations=annotations,
    )
    return Worker(pod=pod, status=status if answered else None, work_left=left)


def pool(
    *workers: Worker, target: int, replicas: int | None = None, rollout: bool = False, start_allowed: bool = True
) -> Pool:
    """A pool whose Deployment asks for as many workers as there are."""
    return Pool(
        replicas=len(workers) if replicas is None else replicas,
        target=target,
        workers=workers,
        revision="new",
        rollout_in_progress=rollout,
        start_allowed=start_allowed,
        workers_on_node=Counter(worker.pod.node for worker in workers),
    )
