"""Drains where the operator's picture is behind, or its work was cut short: the victim goes, or nobody."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from tests.support.virtual_pool import KEY, NAME, SETTLE_SECONDS, VirtualEngines, VirtualPool

from duet_engine.protocol import DrainStatus
from duet_operator.cluster import DEPLOYMENT, POD, ClusterError, Kind
from duet_operator.drain_actions import VICTIM_COST
from duet_operator.pods import DELETION_COST_ANNOTATION, DRAIN_ANNOTATION, Pod


async def with_drained_victim(replicas: int = 3) -> VirtualPool:
    """A pool in which one worker has drained, and leaves in the next pass."""
    pool = VirtualPool(replicas=replicas)
    await pool.operate(replicas - 1)
    pool.kubelet()
    await pool.operate(replicas - 1)
    pool.pass_time(SETTLE_SECONDS)
    assert pool.replicas == replicas
    return pool


def marked(pool: VirtualPool) -> list[str]:
    costs = {pod["metadata"]["name"]: pod["metadata"].get("annotations", {}) for pod in pool.cluster.pods("decode")}
    return [name for name, found in costs.items() if found.get(DELETION_COST_ANNOTATION) == VICTIM_COST]


async def test_a_drained_victim_leaves() -> None:
    pool = await with_drained_victim()
    (victim,) = pool.draining()
    await pool.operate(2)
    assert (pool.replicas, marked(pool)) == (2, [victim.name])
    pool.control()
    assert [name for name, _, _ in pool.killed] == [victim.name]


@contextmanager
def busy_after_the_look(pool: VirtualPool, monkeypatch: pytest.MonkeyPatch, *, answers: bool) -> Iterator[None]:
    """Engines that drain say that they are empty when the pass looks, get work then, and may fall silent."""
    look = pool.engines.drain_status

    async def then_changes(pod: Pod) -> DrainStatus:
        told = await look(pod)
        pool.engines.by_uid[pod.uid].requests = 1
        if not answers:
            pool.engines.unreachable.add(pod.uid)
        return told

    with monkeypatch.context() as patched:
        patched.setattr(VirtualEngines, "drain_status", lambda _engines, pod: then_changes(pod))
        yield
    pool.engines.unreachable.clear()
    pool.finish_all()


@pytest.mark.parametrize("answers", [True, False])
async def test_a_victim_that_has_work_or_is_silent_at_the_last_moment_stays(
    answers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = await with_drained_victim()
    (victim,) = pool.draining()
    with busy_after_the_look(pool, monkeypatch, answers=answers):
        await pool.operate(2)
    assert (pool.replicas, marked(pool)) == (3, [])
    await pool.operate(2)
    pool.pass_time(SETTLE_SECONDS)
    await pool.operate(2)
    assert (pool.replicas, marked(pool)) == (2, [victim.name])


@pytest.mark.parametrize("answers", [True, False])
async def test_a_worker_drained_by_hand_is_not_deleted_with_work_or_unasked(
    answers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = VirtualPool(replicas=2)
    name = pool.cluster.pods("decode")[0]["metadata"]["name"]
    pool.cluster.edit(POD, KEY.namespace, name, {"metadata": {"annotations": {DRAIN_ANNOTATION: "true"}}})

    def there() -> bool:
        return name in {pod["metadata"]["name"] for pod in pool.cluster.pods("decode")}

    await pool.operate(2)
    pool.kubelet()
    await pool.operate(2)
    pool.pass_time(SETTLE_SECONDS)
    with busy_after_the_look(pool, monkeypatch, answers=answers):
        await pool.operate(2)
    assert there()
    await pool.operate(2)
    pool.pass_time(SETTLE_SECONDS)
    await pool.operate(2)
    assert (there(), pool.replicas) == (False, 2)


async def test_a_worker_that_the_cache_has_not_seen_yet_is_not_counted_out() -> None:
    pool = VirtualPool(replicas=3)
    pool.arrive(3)
    pool.world.remove(pool.cluster.pods("decode")[0])
    await pool.operate(2)
    assert pool.replicas == 3
    assert pool.draining() == []


async def test_a_worker_that_came_since_the_cache_was_filled_is_not_counted_out() -> None:
    pool = VirtualPool(replicas=2)
    pool.cluster.edit(DEPLOYMENT, KEY.namespace, NAME, {"spec": {"replicas": 3}})
    told = {"observedGeneration": 2, "replicas": 2, "updatedReplicas": 2}
    pool.cluster.set_status(DEPLOYMENT, KEY.namespace, NAME, **told)
    pool.deaf = True
    pool.control()
    await pool.operate(2)
    assert pool.replicas == 3


async def test_nobody_leaves_while_a_new_template_that_the_cache_lacks_is_rolled_out() -> None:
    pool = await with_drained_victim()
    pool.deaf = True
    pool.cluster.edit(DEPLOYMENT, KEY.namespace, NAME, {"spec": {"template": {"metadata": {"labels": {"new": "1"}}}}})
    await pool.operate(2)
    assert (pool.replicas, marked(pool)) == (3, []), "the template's controller hasn't even seen it"
    told = {"observedGeneration": 2, "replicas": 3, "updatedReplicas": 1}
    pool.cluster.set_status(DEPLOYMENT, KEY.namespace, NAME, **told)
    await pool.operate(2)
    assert (pool.replicas, marked(pool)) == (3, []), "two templates' pods are there"


async def test_nobody_leaves_when_a_roll_out_begins_between_the_last_look_and_the_lower_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = await with_drained_victim()
    pool.deaf = True
    look = pool.cluster.get

    async def then_begins(kind: Kind, namespace: str, name: str) -> dict[str, Any] | None:
        seen = await look(kind, namespace, name)
        if kind is DEPLOYMENT:
            new = {"spec": {"template": {"metadata": {"labels": {"new": "1"}}}}}
            pool.cluster.edit(DEPLOYMENT, KEY.namespace, NAME, new)
        return seen

    with monkeypatch.context() as patched:
        patched.setattr(pool.cluster, "get", then_begins)
        await pool.operate(2)
    assert pool.replicas == 3


async def test_a_count_that_was_lowered_is_known_before_the_watch_tells() -> None:
    pool = await with_drained_victim()
    (victim,) = pool.draining()
    pool.deaf = True
    await pool.operate(2)
    assert pool.sight().replicas == 2
    await pool.operate(3)
    assert not pool.engines.by_uid[victim.uid].serving(pool.engines.now), "it's on its way out, and was called back"


async def test_a_new_worker_that_leaves_does_not_get_ready_while_it_is_on_its_way_out() -> None:
    pool = VirtualPool(replicas=2)
    pool.arrive(2)
    await pool.operate(3)
    pool.control()
    await pool.operate(1)
    pool.kubelet()
    assert (pool.replicas, len(pool.draining())) == (2, 1)
    pool.start_all()
    pool.control()
    assert [requests for _, requests, _ in pool.killed] == [0], "the one that drains went in its place"


async def test_a_new_worker_that_served_since_the_cache_was_filled_does_not_leave_at_once() -> None:
    """It's empty just now, but whoever sent it a prompt may be about to hand over more."""
    pool = VirtualPool(replicas=2)
    pool.cluster.edit(DEPLOYMENT, KEY.namespace, NAME, {"spec": {"replicas": 3}})
    pool.control()
    pool.deaf = True
    pool.start_all()
    await pool.operate(2)
    assert (pool.replicas, marked(pool)) == (3, [])
    await pool.hear()
    await pool.operate(2)
    assert (pool.replicas, len(pool.draining())) == (3, 1), "it drains like any other"


async def test_a_mark_of_an_operator_that_ended_before_it_lowered_the_count_goes() -> None:
    pool = await with_drained_victim()
    broken = ClusterError("scale", status=0, reason="Unreachable", message="")

    def refuse(verb: str, _kind: Kind) -> Exception | None:
        return broken if verb == "scale" else None

    pool.cluster.refuse = refuse
    with pytest.raises(ClusterError):
        await pool.operate(2)
    assert len(marked(pool)) == 1
    pool.cluster.refuse = lambda _verb, _kind: None
    await pool.operate(3)
    assert (marked(pool), pool.draining()) == ([], [])
    assert all(engine.serving(pool.engines.now) for engine in pool.engines.by_uid.values())


@pytest.mark.parametrize("by_hand", [True, False])
async def test_only_a_worker_that_any_other_can_stand_in_for_is_given_up_when_it_cannot_be_asked(by_hand: bool) -> None:
    pool = VirtualPool(replicas=2)
    pool.engines.unreachable = set(pool.engines.by_uid)
    if by_hand:
        wish = {"metadata": {"annotations": {DRAIN_ANNOTATION: "true"}}}
        pool.cluster.edit(POD, KEY.namespace, pool.cluster.pods("decode")[0]["metadata"]["name"], wish)
    pool.cluster.writes.clear()
    await pool.operate(2 if by_hand else 1)
    assert bool(pool.cluster.writes) is not by_hand, "who is asked again in each pass must not cost a write in each"
    pool.engines.unreachable = set()
    await pool.operate(2 if by_hand else 1)
    assert len(pool.draining()) == 1


async def test_a_stale_mark_of_whomever_is_cleared_in_the_next_pass() -> None:
    pool = VirtualPool(replicas=2)
    name = pool.cluster.pods("decode")[0]["metadata"]["name"]
    cost = {"metadata": {"annotations": {DELETION_COST_ANNOTATION: VICTIM_COST}}}
    pool.cluster.edit(POD, KEY.namespace, name, cost)
    await pool.operate(2)
    assert marked(pool) == []
