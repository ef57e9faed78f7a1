"""Conditions of a DuetDeployment: what each says, from a closed list of reasons, and when it last changed.

Invariant: `lastTransitionTime` changes exactly when `status` does. `Ready` says whether requests are served, whatever
else goes on; that a new spec is still being rolled out is `Reconciling`, that it can't be is `Stalled`: the words of
kstatus, by which `helm --wait` and Argo CD go. A mere change of counts is neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from duet_operator.api.v1alpha1 import Condition

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from duet_operator.api.v1alpha1 import ConditionStatus, ConditionType


class ConditionReason(StrEnum):
    """Every reason that a condition may name, apart from those of the planner."""

    VALID = "Valid"
    INVALID_SPEC = "InvalidSpec"

    SERVING = "Serving"
    NO_GATEWAY = "NoGateway"
    NO_DECODE_WORKER = "NoDecodeWorker"
    NO_PREFILL_WORKER = "NoPrefillWorker"
    IDLE = "Idle"

    SETTLED = "Settled"
    ROLLING_OUT = "RollingOut"
    SCALING = "Scaling"
    ROLLOUT_STUCK = "RolloutStuck"
    ROLLOUT_HELD = "RolloutHeld"
    CHILD_REFUSED = "ChildRefused"

    NO_ROLLOUT = "NoRollout"
    NOT_STUCK = "NotStuck"

    AUTO_MODE = "AutoMode"
    RECOMMEND_MODE = "RecommendMode"
    MANUAL_MODE = "ManualMode"

    WITHIN_BOUNDS = "WithinBounds"

    OBJECTIVES_MET = "ObjectivesMet"
    OBJECTIVES_MISSED = "ObjectivesMissed"
    NO_TRAFFIC = "NoTraffic"

    ALL_ANSWERED = "AllAnswered"
    GATEWAY_SILENT = "GatewaySilent"
    GATEWAY_DISABLED = "GatewayDisabled"

    NO_POD_PENDING = "NoPodPending"
    PODS_PENDING = "PodsPending"

    LOOP_LATE = "LoopLate"
    KEEPS_UP = "KeepsUp"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one condition should say now."""

    type: ConditionType
    status: ConditionStatus
    reason: str
    message: str


def conditions(
    findings: Iterable[Finding], *, before: Iterable[Condition], generation: int, now: datetime
) -> tuple[Condition, ...]:
    """The findings as conditions; one whose status is as before keeps its time. Others' conditions stay."""
    known = {condition.type: condition for condition in before}
    for finding in findings:
        old = known.get(finding.type)
        if old is not None and _says(old, finding, generation):
            continue
        known[finding.type] = Condition(
            type=finding.type,
            status=finding.status,
            reason=finding.reason,
            message=finding.message,
            last_transition_time=old.last_transition_time if old and old.status == finding.status else now,
            observed_generation=generation,
        )
    return tuple(sorted(known.values(), key=lambda condition: condition.type))


def _says(condition: Condition, finding: Finding, generation: int) -> bool:
    told = condition.status, condition.reason, condition.message, condition.observed_generation
    return told == (finding.status, finding.reason, finding.message, generation)


def transitions(before: Iterable[Condition], after: Iterable[Condition]) -> tuple[Condition, ...]:
    """Conditions whose status or reason changed: each is worth an Event."""
    known = {condition.type: (condition.status, condition.reason) for condition in before}
    return tuple(condition for condition in after if known.get(condition.type) != (condition.status, condition.reason))
