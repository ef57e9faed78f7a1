"""Who leaves, and when: tables for victim choice and for each step of a drain."""

from dataclasses import replace

import pytest
from tests.support.workers import NOW, drained, draining, pool, ready, rules, starting

from duet_engine.protocol import DrainPhase, Work
from duet_operator.drain import choose, decide
from duet_operator.drain_actions import (
    VICTIM_COST,
    Action,
    Cancel,
    Remove,
    Renew,
    Replace,
    Start,
    Unmark,
    Worker,
    confirmed,
)


def of(actions: tuple[Action, ...], kind: type[Action]) -> list[str]:
    """Names of the pods of all actions of a kind."""
    return [action.pod.name for action in actions if isinstance(action, kind) and not isinstance(action, Remove)]


def removal(actions: tuple[Action, ...]) -> Remove | None:
    found = [action for action in actions if isinstance(action, Remove)]
    assert len(found) <= 1
    return found[0] if found else None


def told(worker: Worker, **fields: object) -> Worker:
    """The worker, whose engine says something else."""
    assert worker.status is not None
    return replace(worker, status=worker.status.model_copy(update=fields))


# --- starting ---


def test_nothing_to_do_does_nothing() -> None:
    assert decide(pool(ready("a"), ready("b"), target=2), rules()) == ()


def test_a_lower_target_starts_as_many_drains_as_it_needs() -> None:
    actions = decide(pool(ready("a"), ready("b"), ready("c"), target=1), rules())
    assert len(of(actions, Start)) == 2
    assert removal(actions) is None


def test_a_drain_that_is_under_way_counts() -> None:
    actions = decide(pool(ready("a"), draining("b", left=3), ready("c"), target=1), rules())
    assert of(actions, Renew) == ["b"]
    assert len(of(actions, Start)) == 1


def test_no_new_drain_while_it_is_forbidden_but_old_ones_go_on() -> None:
    actions = decide(pool(ready("a"), draining("b", left=3), ready("c"), target=1, start_allowed=False), rules())
    assert of(actions, Renew) == ["b"]
    assert of(actions, Start) == []


def test_workers_that_never_were_ready_leave_at_once_and_first() -> None:
    actions = decide(pool(ready("a"), ready("b"), starting("c"), starting("d"), target=1), rules())
    found = removal(actions)
    assert found is not None
    assert {pod.name for pod in found.at_once} == {"c", "d"}
    assert found.count_without(2) == 2
    assert len(of(actions, Start)) == 1


def test_pods_that_may_only_be_unseen_are_not_counted_out() -> None:
    behind = replace(pool(ready("a"), ready("b"), replicas=3, target=2), counted=False)
    assert decide(behind, rules()) == ()


def test_pods_that_were_never_created_are_counted_out_alone() -> None:
    found = removal(decide(pool(ready("a"), ready("b"), replicas=5, target=3), rules()))
    assert found is not None
    assert (found.drained, found.at_once, found.count_without(0)) == ((), (), 3)


# --- ending ---


def test_a_drained_worker_is_counted_out() -> None:
    found = removal(decide(pool(ready("a"), drained("b"), target=1), rules()))
    assert found is not None
    assert [pod.name for pod in found.drained] == ["b"]
    assert found.count_without(1) == 1


@pytest.mark.parametrize(
    "worker",
    [
        pytest.param(drained("b", idle_seconds=1.0), id="not empty for long enough"),
        pytest.param(draining("b", left=1), id="holds a request"),
        pytest.param(draining("b", left=0, answered=False), id="its engine doesn't answer"),
        pytest.param(told(drained("b"), remaining=Work(decode_transfer=1)), id="says drained and receives a KV cache"),
        pytest.param(told(drained("b"), remaining=Work(prefill_inflight=1)), id="says drained and sends a KV cache"),
        pytest.param(told(drained("b"), phase=DrainPhase.DRAINING), id="says empty but not drained"),
        pytest.param(replace(drained("b"), pod=replace(drained("b").pod, ready=True)), id="still in rotation"),
    ],
)
def test_what_may_still_hold_requests_stays(worker: Worker) -> None:
    actions = decide(pool(ready("a"), worker, target=1), rules())
    assert removal(actions) is None
    assert of(actions, Renew) == ["b"]


def test_a_worker_that_was_counted_out_has_no_way_back() -> None:
    gone = drained("b", cost=VICTIM_COST)
    actions = decide(pool(ready("a"), gone, replicas=1, target=2), rules())
    assert actions == (Renew(gone.pod),)


def test_a_mark_without_a_lower_count_is_taken_off() -> None:
    marked = replace(
        ready("b"), pod=replace(ready("b").pod, annotations=drained("b", cost=VICTIM_COST).pod.annotations)
    )
    undrained = replace(
        marked, pod=replace(marked.pod, annotations={"controller.kubernetes.io/pod-deletion-cost": VICTIM_COST})
    )
    assert decide(pool(ready("a"), undrained, target=2), rules()) == (Unmark(undrained.pod),)


# --- calling off ---


def test_returning_load_calls_off_the_drain_that_is_furthest_from_its_end() -> None:
    actions = decide(pool(ready("a"), draining("b", left=9), draining("c", left=2), target=2), rules())
    assert of(actions, Cancel) == ["b"]
    assert of(actions, Renew) == ["c"]


def test_load_that_returns_at_the_last_moment_keeps_a_drained_worker() -> None:
    actions = decide(pool(ready("a"), drained("b"), target=2), rules())
    assert actions == (Cancel(drained("b").pod, "LoadReturned"),)


def test_a_rollout_ends_drains_and_starts_none() -> None:
    actions = decide(pool(ready("a"), draining("b", left=1), ready("c"), target=1, rollout=True), rules())
    assert actions == (Cancel(draining("b", left=1).pod, "Rollout"),)


def test_a_drain_past_its_time_is_given_up_and_another_victim_found() -> None:
    slow = draining("b", left=1, since=NOW - 601)
    actions = decide(pool(ready("a"), slow, ready("c"), target=2), rules())
    assert actions[0] == Cancel(slow.pod, "TimedOut")
    assert len(of(actions, Start)) == 1
    assert "b" not in of(actions, Start)


def test_a_worker_that_was_given_up_lately_is_not_tried_again() -> None:
    actions = decide(pool(ready("a", given_up=NOW - 10), ready("b"), target=1), rules())
    assert of(actions, Start) == ["b"]
    later = decide(pool(ready("a", given_up=NOW - 601), ready("b", work=5), target=1), rules())
    assert of(later, Start) == ["a"]


def test_a_time_of_an_operator_whose_clock_was_hours_ahead_keeps_no_worker_for_ever() -> None:
    assert of(decide(pool(ready("a", given_up=NOW + 9999), target=0), rules()), Start) == ["a"]


def test_terminate_on_timeout_lets_it_go_with_what_it_holds() -> None:
    slow = draining("b", left=1, since=NOW - 601)
    found = removal(decide(pool(ready("a"), slow, target=1), replace(rules(), terminate_on_timeout=True)))
    assert found is not None
    assert (found.drained, [pod.name for pod in found.overdue]) == ((), ["b"])


# --- by hand ---


def test_a_drain_by_hand_needs_no_lower_target_and_ends_in_a_new_pod() -> None:
    asked = ready("b", by_hand=True)
    assert decide(pool(ready("a"), asked, target=2), rules()) == (Start(pod=asked.pod, reason="ByHand"),)
    under_way = draining("b", left=1, by_hand=True, since=NOW - 9_999)
    assert decide(pool(ready("a"), under_way, target=2), rules()) == (Renew(under_way.pod),)
    done = drained("b", by_hand=True)
    assert decide(pool(ready("a"), done, target=2), rules()) == (Replace(done.pod),)


def test_a_drain_by_hand_is_the_first_victim_of_a_lower_target() -> None:
    actions = decide(pool(ready("a"), drained("b", by_hand=True), target=1), rules())
    found = removal(actions)
    assert found is not None and [pod.name for pod in found.drained] == ["b"]
    assert of(actions, Start) == of(actions, Replace) == []


@pytest.mark.parametrize("ended", [True, False], ids=["its engine ended", "it never served"])
def test_a_drain_by_hand_of_who_can_hold_nothing_waits_for_no_engine(*, ended: bool) -> None:
    asked = ready("b", by_hand=True, serving=False)
    asked = replace(asked, pod=replace(asked.pod, engine_stopped=ended, has_been_ready=ended))
    assert decide(pool(ready("a"), asked, target=2), rules()) == (Replace(asked.pod),)


def test_a_request_by_hand_that_is_withdrawn_serves_again() -> None:
    actions = decide(pool(ready("a"), draining("b", left=1), target=2), rules())
    assert of(actions, Cancel) == ["b"]


@pytest.mark.parametrize("replaced", [frozenset({"b"}), frozenset[str]()], ids=["off its node", "by the planner"])
def test_a_drained_worker_that_is_still_shown_as_ready_is_not_counted_out(replaced: frozenset[str]) -> None:
    """Kubernetes takes unready pods first: until the kubelet has told, another one would go."""
    shown = drained("b")
    shown = replace(shown, pod=replace(shown.pod, ready=True))
    actions = decide(replace(pool(ready("a"), shown, target=1), replaced=replaced), rules())
    assert removal(actions) is None
    assert of(actions, Renew) == ["b"]


# --- choice ---


@pytest.mark.parametrize(
    ("workers", "spread", "first"),
    [
        ([ready("a", work=0), ready("b", work=9, serving=False)], False, "b"),
        ([ready("a", work=0), ready("b", work=9, revision="old")], False, "b"),
        ([ready("a", work=3), ready("b", work=2)], False, "b"),
        ([ready("a", work=0, node="x"), ready("b", work=0, node="x"), ready("c", work=9, node="y")], False, "c"),
        ([ready("a", work=8, node="x"), ready("b", work=9, node="x"), ready("c", work=0, node="y")], True, "a"),
        ([ready("b"), ready("a")], False, "a"),
        ([ready("a", work=None), ready("b", work=9)], False, "b"),
    ],
    ids=["serves nothing", "old revision", "least work", "empties a node", "fullest node", "by name", "known work"],
)
def test_choice(workers: list[Worker], spread: bool, first: str) -> None:
    chosen = choose(workers, count=1, pool=pool(*workers, target=0), spread=spread)
    assert [worker.pod.name for worker in chosen] == [first]


@pytest.mark.parametrize(("spread", "first"), [(False, "alone"), (True, "crowded")])
def test_workers_of_the_other_pool_on_a_node_count(spread: bool, first: str) -> None:
    workers = [ready("alone", node="x"), ready("crowded", node="y")]
    beside = replace(pool(*workers, target=1), workers_on_node={"x": 1, "y": 4})
    assert of(decide(beside, replace(rules(), spread=spread)), Start) == [first]


def test_a_silent_engine_confirms_nothing() -> None:
    assert not confirmed(None, 0.0)


# --- engines that ended, operators that were away ---


def test_a_worker_whose_engine_ended_leaves_before_a_healthy_one() -> None:
    broken = ready("broken", serving=False)
    broken = replace(broken, pod=replace(broken.pod, engine_stopped=True))
    actions = decide(pool(ready("a"), ready("b"), broken, target=2), rules())
    leaving = removal(actions)
    assert leaving is not None
    assert [pod.name for pod in leaving.at_once] == ["broken"]
    assert of(actions, Start) == []


def test_a_worker_whose_engine_ended_while_it_drained_is_not_waited_for() -> None:
    broken = draining("broken", left=0, answered=False)
    broken = replace(broken, pod=replace(broken.pod, engine_stopped=True))
    leaving = removal(decide(pool(ready("a"), broken, target=1), rules()))
    assert leaving is not None
    assert [pod.name for pod in leaving.at_once] == ["broken"]


@pytest.mark.parametrize("terminate", [True, False])
def test_a_worker_that_serves_again_since_its_lease_ran_out_starts_its_drain_anew(terminate: bool) -> None:
    away = draining("away", left=3, since=NOW - 9999)
    assert away.status is not None
    away = replace(away, status=away.status.model_copy(update={"phase": DrainPhase.SERVING}))
    actions = decide(pool(ready("a"), away, target=1), replace(rules(), terminate_on_timeout=terminate))
    assert actions == (Start(pod=away.pod, reason="LeaseRanOut"),)
