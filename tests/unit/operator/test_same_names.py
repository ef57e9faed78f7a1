"""Objects that were deleted and made again under their name while the cache was behind are others, and left alone."""

import copy
from typing import Any

import pytest
from tests.support.listing import relist
from tests.support.operator_bench import KEY, Bench
from tests.support.virtual_pool import SETTLE_SECONDS, VirtualPool

from duet_operator.cluster import DEPLOYMENT, POD, SERVICE, Kind
from duet_operator.drain_actions import VICTIM_COST
from duet_operator.pods import DELETION_COST_ANNOTATION, DRAIN_ANNOTATION


def made_again(pool: VirtualPool, name: str, **annotations: str) -> None:
    """A pod goes and another one gets its name; the operator hasn't heard of either."""
    pool.deaf = True
    manifest = copy.deepcopy(pool.cluster.objects[POD.name, KEY.namespace, name])
    pool.cluster.remove(POD, KEY.namespace, name)
    manifest["metadata"]["annotations"] = annotations
    del manifest["status"]
    pool.cluster.put(manifest)


def annotate(pool: VirtualPool, name: str, **annotations: str) -> None:
    pool.cluster.edit(POD, KEY.namespace, name, {"metadata": {"annotations": annotations}})


def there(pool: VirtualPool, name: str) -> dict[str, Any]:
    found: dict[str, Any] = pool.cluster.objects[POD.name, KEY.namespace, name]
    return found


async def test_the_successor_of_a_drained_pod_is_not_deleted_in_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = VirtualPool(replicas=2)
    name = pool.cluster.pods("decode")[0]["metadata"]["name"]
    annotate(pool, name, **{DRAIN_ANNOTATION: "true"})
    await pool.operate(2)
    pool.kubelet()
    await pool.operate(2)
    pool.pass_time(SETTLE_SECONDS)
    delete = pool.cluster.delete

    async def too_late(kind: Kind, namespace: str, name: str, *, uid: str | None = None) -> None:
        """Somebody was quicker, between the engine's last word and this request."""
        made_again(pool, name)
        await delete(kind, namespace, name, uid=uid)

    monkeypatch.setattr(pool.cluster, "delete", too_late)
    await pool.operate(2)
    assert DRAIN_ANNOTATION not in there(pool, name)["metadata"].get("annotations", {})


async def test_a_mark_is_not_taken_off_another_pod() -> None:
    pool = VirtualPool(replicas=2)
    name = pool.cluster.pods("decode")[0]["metadata"]["name"]
    annotate(pool, name, **{DELETION_COST_ANNOTATION: VICTIM_COST})
    made_again(pool, name, **{DELETION_COST_ANNOTATION: VICTIM_COST})
    await pool.operate(2)
    assert there(pool, name)["metadata"]["annotations"] == {DELETION_COST_ANNOTATION: VICTIM_COST}


async def test_a_pod_that_never_served_is_not_counted_out_when_another_has_its_name() -> None:
    pool = VirtualPool(replicas=1)
    await pool.operate(2)
    pool.control()
    name = pool.cluster.pods("decode")[1]["metadata"]["name"]
    made_again(pool, name)
    pool.cluster.writes.clear()
    await pool.operate(1)
    assert pool.replicas == 2
    assert pool.cluster.writes == []


async def settled() -> Bench:
    bench = Bench({"gateway.replicas": 1})
    await bench.run_pass()
    bench.make_ready()
    await bench.run_pass(2)
    return bench


def replaced(bench: Bench, kind: Kind, name: str, *, ours: bool) -> None:
    """A child goes and another object gets its name; the operator hasn't heard of either."""
    bench.cluster.subscribers.clear()
    manifest = copy.deepcopy(bench.cluster.objects[kind.name, KEY.namespace, name])
    bench.cluster.remove(kind, KEY.namespace, name)
    if not ours:
        manifest["metadata"] = {"namespace": KEY.namespace, "name": name}
    bench.cluster.put(manifest)


async def test_no_object_of_somebody_else_is_deleted_as_a_child_that_is_not_wanted_any_more() -> None:
    bench = await settled()
    bench.change_spec(gateway={"enabled": False}, pools={"prefill": {"minReplicas": 1}})
    replaced(bench, SERVICE, "served", ours=False)
    await bench.run_pass()
    assert (SERVICE.name, KEY.namespace, "served") in bench.cluster.objects


async def test_no_object_of_somebody_else_is_changed_as_a_child_that_it_replaced() -> None:
    bench = await settled()
    bench.change_spec(gateway={"service": {"annotations": {"new": "yes"}}})
    replaced(bench, SERVICE, "served", ours=False)
    await bench.run_pass()
    assert "new" not in bench.cluster.objects[SERVICE.name, KEY.namespace, "served"]["metadata"].get("annotations", {})
    assert "doesn't belong to this object" in bench.condition("Progressing")[2]


async def test_a_child_of_ours_that_was_made_again_is_looked_at_before_it_is_changed() -> None:
    bench = await settled()
    bench.change_spec(gateway={"service": {"annotations": {"new": "yes"}}})
    replaced(bench, SERVICE, "served", ours=True)
    await bench.run_pass(2)
    assert bench.cluster.objects[SERVICE.name, KEY.namespace, "served"]["metadata"]["annotations"]["new"] == "yes"


async def test_a_pool_that_is_gone_is_made_with_its_count_where_a_change_of_it_was_due() -> None:
    """Server-side apply would make it anew, with one worker."""
    bench = await settled()
    bench.planner.decode = 3
    await bench.run_pass()
    bench.cluster.subscribers.clear()
    bench.cluster.remove(DEPLOYMENT, KEY.namespace, "served-decode")
    duet = bench.duet
    duet["spec"]["engine"] = {**duet["spec"].get("engine", {}), "args": ["--new"]}
    duet["metadata"] |= {"generation": 2, "resourceVersion": "999999"}
    bench.world.put(copy.deepcopy(duet))
    await bench.run_pass()
    assert bench.replicas("decode") == 3


async def test_that_a_pod_was_ready_says_nothing_of_another_one_of_its_name() -> None:
    pool = VirtualPool(replicas=1)
    name = pool.cluster.pods("decode")[0]["metadata"]["name"]
    made_again(pool, name)
    listing = await pool.cluster.list(POD)
    relist(pool.world, POD.name, listing.items, resource_version=listing.resource_version)
    (pod,) = pool.world.pods(KEY)
    assert (pod.name, pod.has_been_ready) == (name, False)
