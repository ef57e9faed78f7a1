"""Carries out what `drain.decide` decided: asks engines over HTTP, writes marks and counts through the cluster port.

Invariant: a count is lowered only by the workers that confirmed at that moment, only from the count that the decision
was made for, and never while its Deployment has two templates' pods, for then another pod than the victim would go. One
worker that fails keeps no other from going on.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from duet_operator.cluster import DEPLOYMENT, POD, ClusterError
from duet_operator.deployments import steady
from duet_operator.drain_actions import VICTIM_COST, Cancel, Hold, Remove, Renew, Replace, Start, Unmark, confirmed
from duet_operator.engines import EngineError
from duet_operator.pods import (
    DELETION_COST_ANNOTATION,
    DRAIN_GIVEN_UP_ANNOTATION,
    DRAIN_STARTED_ANNOTATION,
    read_pod,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from duet_engine.protocol import DrainStatus
    from duet_operator.cluster import Cluster
    from duet_operator.drain_actions import Action
    from duet_operator.engines import EngineClient
    from duet_operator.metrics import Metrics
    from duet_operator.pods import Pod
    from duet_operator.world import World

MEANT = frozenset({"ByHand", "NodeLeaving"})
"""Reasons for which this very worker drains, and no other would do."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaled:
    """A count that was changed."""

    before: int
    after: int
    version: str
    """The Deployment's resourceVersion from then on."""
    why: tuple[str, str] | None = None
    """In one word and in one sentence, where it wasn't for what the planner decided."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where to act and how: a pool's Deployment, the lease of its drains, and how long a drained worker is empty."""

    namespace: str
    deployment: str
    lease_seconds: float
    settle_seconds: float


@dataclass(frozen=True, slots=True)
class Executed:
    """What came of a pool's actions."""

    scaled: Scaled | None = None
    started: frozenset[str] = frozenset()
    """Uids of the pods whose engines began to drain."""


class DrainExecutor:
    """Acts on the workers of any pool."""

    def __init__(
        self, *, cluster: Cluster, world: World, engines: EngineClient, metrics: Metrics, now: Callable[[], datetime]
    ) -> None:
        self._cluster = cluster
        self._world = world
        self._engines = engines
        self._metrics = metrics
        self._now = now

    async def statuses(self, pods: Sequence[Pod]) -> dict[str, DrainStatus]:
        """Pod uid -> how its drain stands, of those that answer."""
        answers = await asyncio.gather(*(self._status(pod) for pod in pods))
        return {pod.uid: answer for pod, answer in zip(pods, answers, strict=True) if answer is not None}

    async def _status(self, pod: Pod) -> DrainStatus | None:
        if not pod.address:
            return None
        try:
            return await self._engines.drain_status(pod)
        except EngineError as error:
            logger.warning("the drain's state is unknown: %s", error)
            return None

    async def execute(self, actions: Sequence[Action], place: Place) -> Executed:
        """Do it all; what came of it comes back."""
        steps = [action for action in actions if not isinstance(action, Remove | Hold)]
        done = await asyncio.gather(*(self._step(action, place) for action in steps))
        scaled: Scaled | None = None
        for action in actions:
            if isinstance(action, Remove):
                scaled = await self._remove(action, place)
        started = (step.pod.uid for step, ok in zip(steps, done, strict=True) if ok and isinstance(step, Start))
        return Executed(scaled, frozenset(started))

    async def _step(self, action: Action, place: Place) -> bool:
        """Whether it was done; why it wasn't stands in the log."""
        try:
            match action:
                case Start(pod=pod, reason=reason):
                    return await self._start(pod, reason, place)
                case Renew(pod):
                    await self._engines.drain(pod, lease_seconds=place.lease_seconds, reason="renewed")
                case Cancel(pod, reason):
                    await self._cancel(pod, reason)
                case Replace(pod):
                    await self._replace(pod, place)
                case Unmark(pod):
                    await self._annotate(pod, {DELETION_COST_ANNOTATION: None})
        except (EngineError, ClusterError) as error:
            logger.warning("%s: %s", type(action).__name__, error)
            return False
        return True

    async def _start(self, pod: Pod, reason: str, place: Place) -> bool:
        try:
            await self._engines.drain(pod, lease_seconds=place.lease_seconds, reason=reason)
        except EngineError as error:
            if reason in MEANT:
                logger.warning("it's asked to drain again in the next pass: %s", error)
                return False
            logger.warning("another worker is tried, as this one can't be drained: %s", error)
            await self._annotate(pod, {DRAIN_GIVEN_UP_ANNOTATION: self._timestamp()})
            return False
        logger.info("%s/%s drains (%s)", pod.namespace, pod.name, reason)
        await self._annotate(pod, {DRAIN_STARTED_ANNOTATION: self._timestamp(), DRAIN_GIVEN_UP_ANNOTATION: None})
        return True

    async def _cancel(self, pod: Pod, reason: str) -> None:
        try:
            await self._engines.serve_again(pod)
        except EngineError as error:
            logger.warning("its lease must run out before it serves again: %s", error)
        timed_out = reason == "TimedOut"
        logger.info("%s/%s serves again (%s)", pod.namespace, pod.name, reason)
        changes = {DRAIN_STARTED_ANNOTATION: None, DELETION_COST_ANNOTATION: None}
        await self._annotate(pod, {**changes, DRAIN_GIVEN_UP_ANNOTATION: self._timestamp() if timed_out else None})
        self._metrics.drain_ended("timed_out" if timed_out else "cancelled")

    async def _replace(self, pod: Pod, place: Place) -> None:
        if pod.may_hold_requests and not await self._confirmed(pod, place):
            return
        await self._cluster.delete(POD, pod.namespace, pod.name, uid=pod.uid)
        self._metrics.drain_ended("replaced")

    async def _remove(self, removal: Remove, place: Place) -> Scaled | None:
        """Mark who leaves, then lower the count by as many."""
        candidates = (*removal.drained, *removal.at_once)
        sure = await asyncio.gather(
            *(self._confirmed(pod, place) for pod in removal.drained),
            *(self._holds_nothing(pod, place) for pod in removal.at_once),
        )
        leaving = [*(pod for pod, yes in zip(candidates, sure, strict=True) if yes), *removal.overdue]
        replicas = removal.count_without(len(leaving))
        if replicas >= removal.replicas:
            return None
        deployment = await self._cluster.get(DEPLOYMENT, place.namespace, place.deployment)
        if deployment is None or not steady(deployment, replicas=removal.replicas, pods=removal.pods):
            logger.info("%s/%s is changing: nobody leaves in this pass", place.namespace, place.deployment)
            return None
        unmarked = [pod for pod in leaving if pod.annotations.get(DELETION_COST_ANNOTATION) != VICTIM_COST]
        await asyncio.gather(*(self._annotate(pod, {DELETION_COST_ANNOTATION: VICTIM_COST}) for pod in unmarked))
        version = deployment["metadata"]["resourceVersion"]
        scaled = await self.scale(place, before=removal.replicas, after=replicas, version=version)
        for pod in leaving:
            logger.info("%s/%s leaves", pod.namespace, pod.name)
            self._metrics.drain_ended("removed" if pod not in removal.overdue else "terminated")
        return scaled

    async def scale(self, place: Place, *, before: int, after: int, version: str | None = None) -> Scaled:
        """Set a count, from what the pass saw or from the very object of that version; the cache knows at once."""
        scaled = await self._cluster.patch_scale(
            DEPLOYMENT, place.namespace, place.deployment, expected=before, replicas=after, version=version
        )
        try:
            changed = await self._cluster.get(DEPLOYMENT, place.namespace, place.deployment)
        except ClusterError as error:
            logger.warning("the watch will tell what became of %s/%s: %s", place.namespace, place.deployment, error)
        else:
            if changed is not None:
                self._world.put(changed)
        return Scaled(before=before, after=after, version=scaled)

    async def _confirmed(self, pod: Pod, place: Place) -> bool:
        """Renews the drain too, so that nothing comes in between this answer and the end of the pod."""
        try:
            status = await self._engines.drain(pod, lease_seconds=place.lease_seconds, reason="leaving")
        except EngineError as error:
            logger.warning("it stays, as it didn't confirm its drain: %s", error)
            return False
        return confirmed(status, place.settle_seconds)

    async def _holds_nothing(self, pod: Pod, place: Place) -> bool:
        """Asks the API server itself, for the cache may be a moment behind, and keeps the engine from getting ready.

        One that got ready right now would stay, and a worker that drains would go in its place.
        """
        body = await self._cluster.get(POD, pod.namespace, pod.name)
        present = None if body is None else read_pod(body)
        if present is None or present.uid != pod.uid or present.may_hold_requests:
            return False
        try:
            status = await self._engines.drain(present, lease_seconds=place.lease_seconds, reason="leaving")
        except EngineError:
            return True  # It isn't up.
        return status.remaining.total == 0

    async def _annotate(self, pod: Pod, annotations: dict[str, str | None]) -> None:
        changes = {"metadata": {"uid": pod.uid, "annotations": annotations}}
        self._world.put(await self._cluster.patch(POD, pod.namespace, pod.name, changes))

    def _timestamp(self) -> str:
        return self._now().isoformat(timespec="seconds").replace("+00:00", "Z")
