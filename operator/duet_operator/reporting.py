"""Tells people what a pass found and did: the status, and an Event per change of a count and transition of a condition.

Invariant: a status that says nothing new isn't written, and no Event says more than the status does. An Event that
can't be written is lost, for the status says the same.
"""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from duet_engine.protocol import Role
from duet_operator.api.v1alpha1 import API_VERSION, KIND, DuetStatus, ScaleAction
from duet_operator.cluster import DUET, Cluster, ClusterError
from duet_operator.planner.reasons import ActionReason, Reason
from duet_operator.resources.conditions import ConditionReason, conditions, transitions
from duet_operator.resources.findings import Facts, rejected
from duet_operator.resources.status import resolved, status
from duet_operator.resources.status_writes import WriteBudget, merge_patch, worth_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from duet_operator.api.v1alpha1 import Condition
    from duet_operator.drain_executor import Scaled
    from duet_operator.metrics import Metrics
    from duet_operator.resources.rendering import Rendering
    from duet_operator.world import World

Manifest = dict[str, Any]

logger = logging.getLogger(__name__)

REPORTER = "duetserve.io/duet-operator"
LONGEST_NOTE = 1024
REPEATED_AFTER = timedelta(minutes=5)
GOOD_WHEN_FALSE = frozenset({"CapacityPending", "GatewaySaturated", "Reconciling", "ScalingLimited", "Stalled"})
TOLD_BY_OTHERS = frozenset({"Reconciling", "Stalled"})
"""Conditions for programs; Progressing tells people the same."""


STARTING = frozenset(
    {
        *(ConditionReason.NO_GATEWAY, ConditionReason.NO_DECODE_WORKER, ConditionReason.NO_PREFILL_WORKER),
        *(ConditionReason.GATEWAY_SILENT, Reason.STALE_SIGNALS, Reason.MODEL_UNKNOWN),
    }
)
"""What every object says while it starts: no reason to warn anybody before it was ready once."""


class Reporter:
    """Reports on any object."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        world: World,
        metrics: Metrics,
        instance: str,
        refresh_seconds: float,
        writes_per_second: float,
        now: Callable[[], datetime],
    ) -> None:
        self._cluster = cluster
        self._world = world
        self._metrics = metrics
        self._instance = instance
        self._refresh_seconds = refresh_seconds
        self._budget = WriteBudget(writes_per_second)
        self._now = now
        self._told: dict[tuple[str, str, str], datetime] = {}
        """Uid, condition or other subject, and reason -> when an Event last told of it."""

    async def report(
        self, duet: Manifest, facts: Facts, *, rendering: Rendering, scaled: Mapping[Role, Scaled]
    ) -> None:
        """The status after a pass, if it's worth a write, and the Events."""
        now = self._now()
        actions = tuple(_action(role, change, facts, now) for role, change in scaled.items())
        for action in actions:
            self._metrics.scaled(action.pool, before=action.from_replicas, after=action.to_replicas)
            await self._post(scale_event(duet, action, instance=self._instance, now=now))
        pinned = resolved(rendering, facts.deployment)
        after = status(facts, resolved=pinned, actions=actions, now=now)
        await self._write_if_worth_it(duet, facts.deployment.status, after)

    async def reject(self, duet: Manifest, problem: str) -> None:
        """The status of an object that can't be acted on."""
        now, generation = self._now(), int(duet["metadata"].get("generation", 0))
        before = _readable_status(duet)
        told = conditions(rejected(problem), before=before.conditions, generation=generation, now=now)
        after = before.model_copy(update={"observed_generation": generation, "conditions": told})
        await self._write_if_worth_it(duet, before, after)

    async def _write_if_worth_it(self, duet: Manifest, before: DuetStatus, after: DuetStatus) -> None:
        now = self._now()
        worth = worth_of(before, after, now=now, refresh_seconds=self._refresh_seconds)
        if self._budget.allows(worth, now_seconds=now.timestamp()):
            await self._write(duet, before, after)

    async def warn(self, duet: Manifest, *, reason: str, subject: str, note: str) -> None:
        """A Warning about something that no condition tells; the same about a subject isn't told again at once."""
        now = self._now()
        if self._untold(duet["metadata"]["uid"], subject, reason):
            await self._post(
                event(duet, reason=reason, action="Warn", note=note, warning=True, instance=self._instance, now=now)
            )

    async def _write(self, duet: Manifest, before: DuetStatus, after: DuetStatus) -> None:
        metadata = duet["metadata"]
        changes = merge_patch(before.to_dict(), after.to_dict())
        self._world.put(await self._cluster.patch_status(DUET, metadata["namespace"], metadata["name"], changes))
        known = {condition.type for condition in before.conditions}
        for condition in transitions(before.conditions, after.conditions):
            # That all is well from the start is no news, and neither is what was told a moment ago.
            news = condition.type not in TOLD_BY_OTHERS and (condition.type in known or is_bad(condition))
            if news and self._untold(metadata["uid"], condition.type, condition.reason):
                warning = is_bad(condition) and not (condition.reason in STARTING and never_ready(before))
                told = condition_event(duet, condition, warning=warning, instance=self._instance, now=self._now())
                await self._post(told)

    def _untold(self, uid: str, subject: str, reason: str) -> bool:
        """Whether no Event has told of it lately: a condition on an edge flaps with every pass."""
        now = self._now()
        self._told = {key: then for key, then in self._told.items() if now - then < REPEATED_AFTER}
        return self._told.setdefault((uid, subject, reason), now) == now

    async def _post(self, manifest: Manifest) -> None:
        try:
            await self._cluster.create(manifest)
        except ClusterError as error:
            logger.info("an Event is lost: %s", error)


def _action(role: Role, change: Scaled, facts: Facts, now: datetime) -> ScaleAction:
    prefill = role is Role.PREFILL
    decision = facts.decision
    reason, message = (decision.prefill if prefill else decision.decode).reason, decision.message
    if facts.deployment.spec.scaling.mode == "Manual":
        # The planner decided something else, and its words would contradict what was done.
        reason, message = ActionReason.MANUAL_MODE, f"the spec asks for {facts.targets.of(role)}"
    if change.why is not None:
        reason, message = change.why
    return ScaleAction(
        time=now,
        pool="prefill" if prefill else "decode",
        from_replicas=change.before,
        to_replicas=change.after,
        reason=reason,
        message=message,
    )


def _readable_status(duet: Manifest) -> DuetStatus:
    """The present status, empty where it can't be read."""
    try:
        return DuetStatus.model_validate(duet.get("status") or {})
    except ValidationError:
        return DuetStatus()


def scale_event(duet: Manifest, action: ScaleAction, *, instance: str, now: datetime) -> Manifest:
    """The Event of a changed count."""
    reason = "ScaledUp" if action.to_replicas > action.from_replicas else "ScaledDown"
    note = f"{action.pool} {action.from_replicas}→{action.to_replicas} ({action.reason}): {action.message}"
    return event(duet, reason=reason, action="Scale", note=note, warning=False, instance=instance, now=now)


def is_bad(condition: Condition) -> bool:
    """Whether it says that something isn't as it should be."""
    return condition.status == ("True" if condition.type in GOOD_WHEN_FALSE else "False")


def never_ready(status: DuetStatus) -> bool:
    """Whether it has been starting ever since the first status."""
    ready, accepted = status.condition("Ready"), status.condition("Accepted")
    if ready is None or accepted is None:
        return True
    return ready.status == "False" and ready.last_transition_time <= accepted.last_transition_time


def condition_event(duet: Manifest, condition: Condition, *, warning: bool, instance: str, now: datetime) -> Manifest:
    """The Event of a condition that changed."""
    return event(
        duet,
        reason=condition.reason,
        action=f"{condition.type}{condition.status}",
        note=f"{condition.type} is {condition.status}: {condition.message}",
        warning=warning,
        instance=instance,
        now=now,
    )


def event(
    duet: Manifest, *, reason: str, action: str, note: str, warning: bool, instance: str, now: datetime
) -> Manifest:
    """An Event about a DuetDeployment."""
    metadata = duet["metadata"]
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": f"{metadata['name']}.{time.time_ns():x}", "namespace": metadata["namespace"]},
        "eventTime": now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "reportingController": REPORTER,
        "reportingInstance": instance[:128],
        "action": action,
        "reason": reason,
        "type": "Warning" if warning else "Normal",
        "note": note if len(note) <= LONGEST_NOTE else note[: LONGEST_NOTE - 1] + "…",
        "regarding": {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "namespace": metadata["namespace"],
            "name": metadata["name"],
            "uid": metadata.get("uid", ""),
        },
    }
