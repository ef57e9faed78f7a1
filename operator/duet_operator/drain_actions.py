"""What a decision about drains is made from, and what it may say is to be done.

Invariant: values only; how they follow from each other stands in `drain`, how they are carried out in `drain_executor`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from duet_engine.protocol import DrainPhase
from duet_operator.pods import DELETION_COST_ANNOTATION

if TYPE_CHECKING:
    from collections.abc import Mapping

    from duet_engine.protocol import DrainStatus
    from duet_operator.pods import Pod

VICTIM_COST = "-1000"
"""Deletion cost of a pod that is to go with the next lower count. Nobody else's pods should have a lower one."""

CancelReason = Literal["LoadReturned", "Rollout", "TimedOut"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """One pod of a pool."""

    pod: Pod
    status: DrainStatus | None = None
    """What its engine says about its drain; None: not asked, or no answer."""
    work_left: int | None = 0
    """Requests that it holds, as the gateways see it; None: no gateway has heard of it lately."""

    @property
    def draining(self) -> bool:
        """The operator has asked it to drain."""
        return self.pod.draining_since_seconds is not None

    @property
    def marked(self) -> bool:
        """It has been counted out, or was about to be."""
        return self.pod.annotations.get(DELETION_COST_ANNOTATION) == VICTIM_COST

    @property
    def remaining(self) -> int:
        """Requests that it must still finish; what nobody knows counts as some."""
        if self.status is not None:
            return self.status.remaining.total
        return 1 if self.work_left is None else self.work_left


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """One pool in one pass."""

    replicas: int
    """What its Deployment asks for."""
    target: int
    """What it should be."""
    workers: tuple[Worker, ...]
    revision: str = ""
    """Of the present pod template."""
    rollout_in_progress: bool = False
    start_allowed: bool = True
    """False: no new drain for now, such as for decode while prefill workers hand over to it."""
    counted: bool = True
    """Its Deployment tells of as many pods as are seen here. Else some may run unseen."""
    workers_on_node: Mapping[str, int] = field(default_factory=dict)
    """Node -> workers of both pools on it."""
    nodes_leaving: frozenset[str] = frozenset()
    """Nodes that are about to go."""
    replaced: frozenset[str] = frozenset()
    """Uids of the workers on them that leave now, as their successors serve."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How drains go."""

    now_seconds: float
    settle_seconds: float
    timeout_seconds: float
    terminate_on_timeout: bool = False
    spread: bool = False
    """Victims from the fullest node; else from the emptiest, so that nodes become free."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Ask the engine to drain, and note it on the pod."""

    pod: Pod
    reason: str


@dataclass(frozen=True, slots=True)
class Renew:
    """Ask the engine to stay drained for another lease."""

    pod: Pod


@dataclass(frozen=True, slots=True)
class Cancel:
    """Let the engine serve again, and take the notes off the pod."""

    pod: Pod
    reason: CancelReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Remove:
    """Lower the count, after each drained worker has confirmed once more."""

    drained: tuple[Pod, ...] = ()
    at_once: tuple[Pod, ...] = ()
    """Hold nothing, as they never were ready or don't run any more."""
    overdue: tuple[Pod, ...] = ()
    """Still hold requests, which fail: `drain.onTimeout` says Terminate."""
    replicas: int
    target: int
    pods: int
    """How many there are at most. Where fewer than `replicas`, the others never came to be."""

    def count_without(self, leaving: int) -> int:
        """The new count when `leaving` pods go. Pods that never came to be are counted out with them."""
        return max(self.target, min(self.pods, self.replicas) - leaving)


@dataclass(frozen=True, slots=True)
class Replace:
    """Delete a drained pod that the count still asks for, as somebody asked by hand or its node is about to go; its
    Deployment makes a new one."""

    pod: Pod


@dataclass(frozen=True, slots=True)
class Hold:
    """Leave it as it is for now, although somebody asked by hand for its drain: no other worker serves."""

    pod: Pod


@dataclass(frozen=True, slots=True)
class Unmark:
    """Take off a deletion cost that means nothing any more."""

    pod: Pod


Action = Start | Renew | Cancel | Remove | Replace | Hold | Unmark


def confirmed(status: DrainStatus | None, settle_seconds: float) -> bool:
    """The engine takes nothing new and has been empty for the settle window."""
    return (
        status is not None
        and status.phase in (DrainPhase.DRAINED, DrainPhase.TERMINATING)
        and status.remaining.total == 0
        and status.idle_seconds >= settle_seconds
    )
