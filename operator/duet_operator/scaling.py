"""Brings a pool's count about: up through `scale`, down through drains.

Invariant: a count changes only from the one that the pass saw: what somebody else changed meanwhile is looked at again
first. Growth ends drains before it asks for new pods.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from duet_operator.cluster import ConflictError
from duet_operator.drain import decide
from duet_operator.drain_actions import Hold, Pool, Rules, Worker
from duet_operator.drain_executor import DrainExecutor, Place, Scaled

if TYPE_CHECKING:
    from collections.abc import Mapping

    from duet_engine.protocol import DrainStatus, WorkerState
    from duet_operator.api.v1alpha1 import DuetSpec
    from duet_operator.pool_sight import PoolSight

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What one pool should become, and how."""

    namespace: str
    deployment: str
    sight: PoolSight
    target: int
    rollout_in_progress: bool
    states: Mapping[str, WorkerState]
    """Pod uid -> state."""
    rules: Rules
    lease_seconds: float
    workers_on_node: Mapping[str, int] = field(default_factory=dict)
    """Node -> workers of both pools on it."""
    nodes_leaving: frozenset[str] = frozenset()
    replaced: frozenset[str] = frozenset()
    """Uids of workers on these nodes whose successors serve."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an order."""

    scaled: Scaled | None = None
    handing_over: bool = False
    """Some worker is draining and still has work that others wait for."""
    held: tuple[str, ...] = ()
    """Names of the pods whose drain by hand waits until another worker serves."""


def rules(spec: DuetSpec, *, now_seconds: float, settle_seconds: float) -> Rules:
    """How drains of an object go."""
    return Rules(
        now_seconds=now_seconds,
        settle_seconds=settle_seconds,
        timeout_seconds=float(spec.drain.timeout_seconds),
        terminate_on_timeout=spec.drain.on_timeout == "Terminate",
        spread=spec.scaling.scale_down.victims == "Spread",
    )


def _hands_over(worker: Worker, rules: Rules) -> bool:
    """Whether others wait for what it holds. An engine that doesn't answer is waited for until its drain's timeout."""
    if not worker.pod.alive or worker.remaining == 0:
        return False
    since = worker.pod.draining_since_seconds
    return worker.status is not None or since is None or rules.now_seconds - since < rules.timeout_seconds


class PoolScaler:
    """Scales any pool."""

    def __init__(self, *, drains: DrainExecutor) -> None:
        self._drains = drains

    async def carry_out(self, order: Order, *, start_allowed: bool) -> Outcome:
        """One step towards the target."""
        workers = await self._workers(order)
        sight = order.sight
        pool = Pool(
            replicas=sight.replicas,
            target=order.target,
            workers=workers,
            revision=sight.revision,
            rollout_in_progress=order.rollout_in_progress,
            start_allowed=start_allowed,
            counted=sight.counted,
            workers_on_node=order.workers_on_node,
            nodes_leaving=order.nodes_leaving,
            replaced=order.replaced,
        )
        actions = decide(pool, order.rules)
        place = Place(
            namespace=order.namespace,
            deployment=order.deployment,
            lease_seconds=order.lease_seconds,
            settle_seconds=order.rules.settle_seconds,
        )
        scaled, started = None, frozenset[str]()
        try:
            executed = await self._drains.execute(actions, place)
            scaled, started = executed.scaled, executed.started
            if order.target > sight.replicas:
                scaled = await self._drains.scale(place, before=sight.replicas, after=order.target)
        except ConflictError as error:
            logger.info("%s/%s changes in the next pass: %s", order.namespace, order.deployment, error)
        leaving = [worker for worker in workers if worker.draining or worker.pod.uid in started]
        handing_over = any(_hands_over(worker, order.rules) for worker in leaving)
        return Outcome(scaled, handing_over, tuple(each.pod.name for each in actions if isinstance(each, Hold)))

    async def _workers(self, order: Order) -> tuple[Worker, ...]:
        """The pool's pods with how their drains stand."""
        pods = order.sight.alive
        asked = [pod for pod in pods if pod.draining_since_seconds is not None or pod.drain_requested]
        statuses: Mapping[str, DrainStatus] = await self._drains.statuses(asked)
        return tuple(
            Worker(
                pod=pod,
                status=statuses.get(pod.uid),
                work_left=order.states[pod.uid].work.total if pod.uid in order.states else None,
            )
            for pod in pods
        )
