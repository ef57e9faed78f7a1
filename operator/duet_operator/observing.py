"""From the cache and the gateways' answers to what the planner reads: one pass's observation.

Invariant: pure. A pod is in exactly one state; one that waits for its own predecessor's GPU is `replacing`, one that
can't start for longer than the deadline is no capacity, and silence of a gateway is never an idle hour.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from duet_engine.protocol import Role
from duet_operator.planner.types import Observation, Performance, PoolState, worker_performance
from duet_operator.pods import read_time
from duet_operator.signals.workers import load

if TYPE_CHECKING:
    from collections.abc import Mapping

    from duet_engine.protocol import WorkerProfile, WorkerState
    from duet_operator.pods import Pod
    from duet_operator.pool_sight import PoolSight
    from duet_operator.room import Room
    from duet_operator.signals.picture import Signals

Manifest = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """Pods of a pool that are no capacity, and why."""

    pods: int = 0
    replacing: int = 0
    """Not among these: pods that wait for a place that a leaving pod will make."""
    unplaced: int = 0
    """Of these, how many no node has taken, or that were refused before they were created."""
    reason: str = ""
    """The commonest reason, one word."""
    example: str = ""
    """One of the pods, or the message of the refusal."""


def trouble(
    sight: PoolSight, *, now_seconds: float, deadline_seconds: float, other: PoolSight | None = None
) -> Trouble:
    """Pods that have not been ready, or were refused, for longer than the deadline."""
    replacing = _replacing(sight, other, now_seconds=now_seconds, deadline_seconds=deadline_seconds)
    stuck = [pod for pod in sight.alive if pod not in replacing and _stuck_seconds(pod, now_seconds) > deadline_seconds]
    unplaced = sum(not pod.node for pod in stuck)
    failure = sight.failed_creation
    if failure is not None:
        since = read_time(failure.get("lastTransitionTime"))
        missing = max(sight.replicas - len(sight.alive), 0)
        if missing and since is not None and now_seconds - since > deadline_seconds:
            reason = failure.get("reason", "FailedCreate")
            return Trouble(
                pods=missing + len(stuck),
                replacing=len(replacing),
                unplaced=missing + unplaced,
                reason=reason,
                example=failure.get("message", ""),
            )
    if not stuck:
        return Trouble(replacing=len(replacing))
    return Trouble(
        pods=len(stuck),
        replacing=len(replacing),
        unplaced=unplaced,
        reason=stuck[0].trouble or "NotReady",
        example=stuck[0].name,
    )


def stuck(
    sight: PoolSight, *, now_seconds: float, deadline_seconds: float, other: PoolSight | None = None
) -> str | None:
    """Why a rollout doesn't get on, in the words of one of its pods; None where it does.

    Pods of the present template that aren't ready for longer than the deadline won't be by themselves.
    """
    exceeded = sight.deadline_exceeded
    if sight.deployment is None or not (sight.rollout_in_progress or exceeded):
        return None
    replacing = _replacing(sight, other, now_seconds=now_seconds, deadline_seconds=deadline_seconds)
    waiting = [pod for pod in sight.updated if _stuck_seconds(pod, now_seconds) > deadline_seconds]
    waiting = [pod for pod in waiting if pod not in replacing]
    failure = sight.failed_creation
    since = read_time(failure.get("lastTransitionTime")) if failure else None
    if waiting:
        pod = waiting[0]
        why = f"{pod.name} isn't ready: {': '.join(filter(None, (pod.trouble, pod.words))) or 'it says nothing'}"
    elif failure and since is not None and now_seconds - since > deadline_seconds:
        why = f"new pods are refused: {failure.get('message', '')}"
    elif exceeded:
        why = exceeded
    else:
        return None
    return f"{len(sight.updated)} of {sight.replicas} pods have the new template, and {why}"


def _stuck_seconds(pod: Pod, now_seconds: float) -> float:
    """How long it has been no capacity, though it should be: a start that hangs shows no other trouble than that."""
    if pod.ready or pod.draining_since_seconds is not None:
        return 0.0
    since = pod.ready_changed_seconds if pod.has_been_ready else None
    return now_seconds - (since or pod.created_seconds)


def _replacing(
    sight: PoolSight, other: PoolSight | None, *, now_seconds: float, deadline_seconds: float
) -> tuple[Pod, ...]:
    """Unscheduled pods for which pods that are still leaving will make room.

    What the other pool's leaving pods give back and its own pods don't wait for counts too. A pod that has been leaving
    for longer than its grace period never does by itself: its node is gone.
    """
    patience_seconds = deadline_seconds + max(sight.grace_seconds, 0 if other is None else other.grace_seconds)
    free = _times(sight.places, sight.leaving)
    if other is not None:
        needed = len(_unscheduled(other, now_seconds=now_seconds, patience_seconds=patience_seconds))
        # Counters keep no negative numbers: of a kind that the other pool itself waits for nothing is left.
        free += _times(other.places, other.leaving) - _times(other.places, needed)
    waiting = _unscheduled(sight, now_seconds=now_seconds, patience_seconds=patience_seconds)
    return waiting[: min((free[kind] // count for kind, count in sight.places.items()), default=sight.leaving)]


def _unscheduled(sight: PoolSight, *, now_seconds: float, patience_seconds: float) -> tuple[Pod, ...]:
    return tuple(
        pod
        for pod in sight.alive
        if not pod.node and not pod.ready and now_seconds - pod.created_seconds <= patience_seconds
    )


def _times(places: Counter[str], pods: int) -> Counter[str]:
    return Counter({kind: count * pods for kind, count in places.items()})


def pool_state(
    sight: PoolSight, states: Mapping[str, WorkerState], *, lost: Trouble, room: int | None = None
) -> PoolState:
    """How many pods are in each state, and the work that they hold."""
    draining = [pod for pod in sight.alive if pod.draining_since_seconds is not None]
    ready = [pod for pod in sight.alive if pod.ready and pod not in draining]
    others = len(sight.alive) - len(draining) - len(ready) - lost.replacing
    held = load(states[pod.uid] for pod in sight.pods if pod.uid in states)
    return PoolState(
        replicas=sight.base_replicas,
        ready=len(ready),
        starting=max(others - lost.pods, 0),
        draining=len(draining),
        replacing=lost.replacing,
        terminating=sum(pod.holds_gpu for pod in sight.pods if pod.terminating),
        pending_too_long=lost.pods,
        surge=sight.surge + sight.successors,
        room=room,
        queued_prefill_tokens=held.queued_prefill_tokens,
        running_requests=held.running_requests,
        kv_used_tokens=held.kv_used_tokens,
        headroom_tokens_per_second=held.headroom_tokens_per_second,
    )


def observe(
    sights: Mapping[Role, PoolSight],
    signals: Signals,
    lost: Mapping[Role, Trouble],
    *,
    rooms: Mapping[Role, Room],
    cold_start_p90_seconds: float | None,
    now_seconds: float,
) -> Observation:
    """Everything in one value."""
    pools = {
        role: pool_state(sight, signals.states, lost=lost[role], room=rooms[role].count if role in rooms else None)
        for role, sight in sights.items()
    }
    decode_pods = {pod.uid for pod in sights[Role.DECODE].alive}
    return Observation(
        now_seconds=now_seconds,
        prefill=pools[Role.PREFILL],
        decode=pools[Role.DECODE],
        demand=signals.demand,
        attainment=signals.attainment,
        complete=signals.complete,
        cold_start_p90_seconds=cold_start_p90_seconds,
        rollout_in_progress=any(sight.rollout_in_progress for sight in sights.values()),
        deflection_active=any(
            state.ready and state.deflection_active for uid, state in signals.states.items() if uid in decode_pods
        ),
    )


def performance(profiles: Mapping[Role, WorkerProfile]) -> Performance:
    """What a replica of each pool can do, as far as some worker told."""
    told = {role: worker_performance(profile) for role, profile in profiles.items()}
    return Performance(prefill=told.get(Role.PREFILL), decode=told.get(Role.DECODE))
