"""Who leaves a pool, and when: victim choice and the drain's state machine.

Invariant: pure, values in and actions out. A worker that may hold requests is counted out of `replicas` only after its
engine said, in this very pass, that it's drained and empty; and no more workers leave than the target allows, so load
that returns keeps every worker that hasn't left. While a pool should have workers, the last that serves isn't drained.
What a drain needs to be taken up again by another operator lies in the pods' annotations and in the engines.

    serving --Start--> draining --(empty for the settle window)--> drained --Remove--> released --(deleted)
       ^------Cancel------'--------------Cancel-----------------------'

Where the operator dies, the engine's lease runs out and the worker serves again.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from duet_engine.protocol import DrainPhase
from duet_operator.drain_actions import Action, Cancel, Hold, Remove, Renew, Replace, Start, Unmark, confirmed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from duet_operator.drain_actions import Pool, Rules, Worker
    from duet_operator.pods import Pod


def decide(pool: Pool, rules: Rules) -> tuple[Action, ...]:
    """What to do in this pass."""
    alive = [worker for worker in pool.workers if worker.pod.alive]
    released = _released(alive, pool)
    others = [worker for worker in alive if worker not in released]
    by_hand = [worker for worker in others if worker.pod.drain_requested]
    moving = [worker for worker in others if worker.pod.uid in pool.replaced and worker not in by_hand]
    rest = [worker for worker in others if worker not in by_hand and worker not in moving]
    leaving = 0 if pool.rollout_in_progress else max(min(len(alive), pool.replicas) - pool.target, 0)

    actions: list[Action] = [Renew(worker.pod) for worker in released]
    held = _held(by_hand, rest, pool, rules)
    actions += [Hold(worker.pod) for worker in held]
    asked = [worker for worker in by_hand if worker not in held]
    done, ended, replaced = _by_hand(asked, leaving, rules, actions)
    leaving = max(leaving - len(asked), 0)
    moved, gone = _moving(moving, leaving, pool, rules, actions)
    leaving = max(leaving - len(moving), 0)
    at_once = sorted((worker for worker in rest if _holds_nothing(worker)), key=_youngest_first)[:leaving]
    leaving -= len(at_once)
    drained, overdue = _ordinary([worker for worker in rest if worker not in at_once], leaving, pool, rules, actions)

    drained, at_once = [*done, *moved, *drained], [*ended, *gone, *at_once]
    going = [*drained, *at_once, *overdue]
    cancelled = {action.pod.uid for action in actions if isinstance(action, Cancel)}
    stale = [worker for worker in others if worker.marked and worker not in going and worker.pod.uid not in cancelled]
    actions += [Replace(worker.pod) for worker in replaced]
    actions += [Unmark(worker.pod) for worker in stale]
    removal = Remove(
        drained=_pods(drained),
        at_once=_pods(at_once),
        overdue=_pods(overdue),
        replicas=pool.replicas,
        target=pool.target,
        pods=len(alive) if pool.counted else max(len(alive), pool.replicas),
    )
    if not pool.rollout_in_progress and removal.count_without(len(going)) < pool.replicas:
        actions.append(removal)
    return tuple(actions)


def _pods(workers: Sequence[Worker]) -> tuple[Pod, ...]:
    return tuple(worker.pod for worker in workers)


def _released(alive: Sequence[Worker], pool: Pool) -> list[Worker]:
    """Workers that are counted out already and that the Deployment is about to delete: no way back for them.

    In a roll-out the surplus is its successors, and nothing tells who leaves.
    """
    surplus = 0 if pool.rollout_in_progress else max(len(alive) - pool.replicas, 0)
    return sorted((worker for worker in alive if worker.marked), key=lambda worker: worker.pod.name)[:surplus]


def _holds_nothing(worker: Worker) -> bool:
    """It has never been ready, or its engine has ended: no request is on it, and no engine could confirm that."""
    return worker.pod.engine_stopped or (not worker.pod.has_been_ready and not worker.draining)


def _youngest_first(worker: Worker) -> tuple[bool, float, str]:
    return (worker.pod.trouble is None, -worker.pod.created_seconds, worker.pod.name)


def _held(by_hand: Sequence[Worker], rest: Sequence[Worker], pool: Pool, rules: Rules) -> list[Worker]:
    """The worker that must not begin its drain by hand yet, as nobody else would serve."""
    waiting = [worker for worker in by_hand if _serves(worker)]
    if pool.target == 0 or any(_serves(worker) for worker in rest):
        return []
    return choose(waiting, count=len(waiting), pool=pool, spread=rules.spread)[-1:]


def _serves(worker: Worker) -> bool:
    return worker.pod.ready and not worker.draining


def _by_hand(
    workers: Sequence[Worker], leaving: int, rules: Rules, actions: list[Action]
) -> tuple[list[Worker], list[Worker], list[Worker]]:
    """Drains that someone asked for, without a timeout. Returns who leaves drained, who leaves at once, and who is
    replaced as the count needs one in its place."""
    drained: list[Worker] = []
    at_once: list[Worker] = []
    replaced: list[Worker] = []
    for worker in workers:
        empty = worker.draining and confirmed(worker.status, rules.settle_seconds)
        if not empty and not _holds_nothing(worker):
            actions.append(Renew(worker.pod) if worker.draining else Start(pod=worker.pod, reason="ByHand"))
        elif len(drained) + len(at_once) >= leaving:
            replaced.append(worker)
        elif not empty:
            at_once.append(worker)
        elif worker.pod.ready:
            actions.append(Renew(worker.pod))
        else:
            drained.append(worker)
    return drained, at_once, replaced


def _moving(
    workers: Sequence[Worker], leaving: int, pool: Pool, rules: Rules, actions: list[Action]
) -> tuple[list[Worker], list[Worker]]:
    """Drains off nodes that are about to go, without a timeout, for the node's end is one. Returns who leaves drained,
    and who leaves at once; those that the count needs in another place are replaced.

    Nobody leaves while a pod is Pending: that one would be deleted in the drained worker's place, again and again.
    """
    pending = any(worker.pod.alive and worker.pod.phase == "Pending" for worker in pool.workers)
    drained: list[Worker] = []
    at_once: list[Worker] = []
    for worker in workers:
        empty = worker.draining and confirmed(worker.status, rules.settle_seconds) and not worker.pod.ready
        if empty or _holds_nothing(worker):
            if len(drained) + len(at_once) >= leaving:
                actions.append(Replace(worker.pod))
            elif not pending:
                (drained if empty else at_once).append(worker)
            elif empty:
                actions.append(Renew(worker.pod))
        elif worker.draining and not _serves_again(worker):
            actions.append(Renew(worker.pod))
        elif pool.start_allowed:
            actions.append(Start(pod=worker.pod, reason="NodeLeaving"))
    return drained, at_once


def _ordinary(
    workers: Sequence[Worker], leaving: int, pool: Pool, rules: Rules, actions: list[Action]
) -> tuple[list[Worker], list[Worker]]:
    """Drains of the planner's wish. Returns who leaves drained, and who leaves because its time is over."""
    drained: list[Worker] = []
    overdue: list[Worker] = []
    waiting = 0
    for worker in sorted((worker for worker in workers if worker.draining), key=_nearest_to_gone):
        if len(drained) + len(overdue) + waiting >= leaving:
            actions.append(Cancel(worker.pod, "Rollout" if pool.rollout_in_progress else "LoadReturned"))
        elif confirmed(worker.status, rules.settle_seconds) and not worker.pod.ready:
            drained.append(worker)
        elif _serves_again(worker):
            actions.append(Start(pod=worker.pod, reason="LeaseRanOut"))
            waiting += 1
        elif not _timed_out(worker, rules):
            actions.append(Renew(worker.pod))
            waiting += 1
        elif rules.terminate_on_timeout:
            overdue.append(worker)
        else:
            actions.append(Cancel(worker.pod, "TimedOut"))
    if pool.start_allowed:
        candidates = [worker for worker in workers if not worker.draining and not _given_up_lately(worker, rules)]
        missing = leaving - len(drained) - len(overdue) - waiting
        victims = choose(candidates, count=missing, pool=pool, spread=rules.spread)
        actions += [Start(pod=worker.pod, reason="ScaleDown") for worker in victims]
    return drained, overdue


def _nearest_to_gone(worker: Worker) -> tuple[int, float, str]:
    return (worker.remaining, worker.pod.draining_since_seconds or 0.0, worker.pod.name)


def _serves_again(worker: Worker) -> bool:
    """Its lease ran out while no operator was there: what it does now began later than its annotation says."""
    return worker.status is not None and worker.status.phase is DrainPhase.SERVING


def _timed_out(worker: Worker, rules: Rules) -> bool:
    since = worker.pod.draining_since_seconds
    return since is not None and rules.now_seconds - since > rules.timeout_seconds


def _given_up_lately(worker: Worker, rules: Rules) -> bool:
    since = worker.pod.given_up_seconds
    # A time to come was written by a clock that is ahead of ours, and counts like one as long ago.
    return since is not None and abs(rules.now_seconds - since) < rules.timeout_seconds


def choose(workers: Sequence[Worker], *, count: int, pool: Pool, spread: bool) -> list[Worker]:
    """The `count` workers that leave most cheaply.

    Those on nodes that are about to go first, then those that serve nothing now, then old revisions, then by node (the
    emptiest, or the fullest with `spread`), then by the work they hold, those that nobody has heard of last.
    """

    def cost(worker: Worker) -> tuple[bool, bool, bool, int, float, str]:
        together = pool.workers_on_node.get(worker.pod.node, 1)
        return (
            worker.pod.node not in pool.nodes_leaving,
            worker.pod.ready,
            worker.pod.revision == pool.revision,
            -together if spread else together,
            inf if worker.work_left is None else worker.work_left,
            worker.pod.name,
        )

    return sorted(workers, key=cost)[: max(count, 0)]
