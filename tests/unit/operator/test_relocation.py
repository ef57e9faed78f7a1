"""Workers on nodes that are about to go: the successor first, then the drain, and the count as before."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from tests.support.documents import document, served
from tests.support.operator_bench import KEY, Bench
from tests.support.virtual_pool import VirtualEngine

from duet_engine.drain import Drain
from duet_operator.cluster import DEPLOYMENT, POD, ClusterError
from duet_operator.deployments import base_replicas
from duet_operator.pods import Pod
from duet_operator.resources.pools import RELOCATION_ANNOTATION

OLD_NODE, NEW_NODE = "old", "new"


@dataclass
class Cluster:
    """A bench whose pods run on nodes and whose engines drain."""

    bench: Bench
    least_serving: int = 99
    told: int = 0
    silent: bool = False
    names: set[str] = field(default_factory=set)
    """Of all pods of the decode pool that there ever were."""

    @classmethod
    async def serving(cls, count: int, spec: dict[str, Any] | None = None) -> "Cluster":
        """So many decode workers on the old node."""
        bench = Bench({"pools.prefill.minReplicas": 0, "pools.prefill.maxReplicas": 1, **(spec or {})})
        bench.planner.prefill, bench.planner.decode = 0, count
        cluster = cls(bench)
        for _ in range(4):
            await cluster.run_pass()
            cluster.kubelet(node=OLD_NODE)
        bench.planner.prefill = bench.planner.decode = None
        cluster.names = {pod.name for pod in bench.pods("decode")}
        return cluster

    async def run_pass(self) -> None:
        """A pass to which the gateways tell something new, unless they are silent."""
        self.told += 1
        told = document(served(0), sequence=self.told)
        names = [] if self.silent else [pod.name for pod in self.bench.pods("gateway")]
        self.bench.gateways.documents = dict.fromkeys(names, told)
        await self.bench.run_pass()
        self.bench.engines.now += 5

    def cordon(self, name: str = OLD_NODE, *, undo: bool = False) -> None:
        self.bench.nodes.put({"metadata": {"name": name}, "spec": {"unschedulable": not undo}})

    def kubelet(self, *, node: str | None = NEW_NODE) -> None:
        """Controllers have done their work; new pods run on this node, or on none."""
        bench = self.bench
        bench.cluster.control()
        bench.make_ready("gateway")
        for manifest in bench.cluster.pods("decode"):
            metadata = manifest["metadata"]
            engine = bench.engines.by_uid.setdefault(
                metadata["uid"], VirtualEngine(Drain(worker=metadata["name"]), started=True)
            )
            if "nodeName" not in manifest["spec"] and node is not None:
                bench.cluster.edit(POD, KEY.namespace, metadata["name"], {"spec": {"nodeName": node}})
            placed = node is not None or "nodeName" in manifest["spec"]
            ready = "True" if placed and engine.serving(bench.engines.now) else "False"
            known = {each["type"]: each["status"] for each in manifest.get("status", {}).get("conditions", ())}
            if placed and known.get("Ready") != ready:
                conditions = [{"type": "Ready", "status": ready, "lastTransitionTime": bench.clock().isoformat()}]
                told = {"phase": "Running", "podIP": "10.0.0.1", "conditions": conditions}
                bench.cluster.set_status(
                    POD, KEY.namespace, metadata["name"], startTime=metadata["creationTimestamp"], **told
                )

    async def steps(self, count: int, *, node: str | None = NEW_NODE) -> None:
        """Passes and what the cluster makes of them; the fewest workers that served is kept."""
        for _ in range(count):
            await self.run_pass()
            self.kubelet(node=node)
            self.least_serving = min(self.least_serving, len(self.serving_on()))

    def serving_on(self, node: str | None = None) -> list[Pod]:
        """Workers that take requests, on this node or on any."""
        now, engines = self.bench.engines.now, self.bench.engines.by_uid
        pods = [pod for pod in self.bench.pods("decode") if pod.ready and engines[pod.uid].serving(now)]
        return [pod for pod in pods if node in (None, pod.node)]

    @property
    def note(self) -> str | None:
        metadata = self.bench.deployment("decode")["metadata"]
        return metadata.get("annotations", {}).get(RELOCATION_ANNOTATION)


@pytest.mark.parametrize("mode", ["Auto", "Manual"])
async def test_workers_move_one_after_the_other_and_as_many_serve_all_the_time(mode: str) -> None:
    cluster = await Cluster.serving(3)
    cluster.bench.change_spec(scaling={"mode": mode})
    cluster.cordon()
    await cluster.steps(12)
    assert len(cluster.serving_on(NEW_NODE)) == 3
    assert cluster.bench.pods("decode") == cluster.serving_on(NEW_NODE)
    assert cluster.least_serving == 3
    assert (cluster.bench.replicas("decode"), cluster.note) == (3, None)
    actions = [action for action in cluster.bench.duet["status"]["history"] if action["reason"] == "NodeLeaving"]
    assert (actions[0]["fromReplicas"], actions[0]["toReplicas"]) == (3, 6)


async def test_no_successor_is_asked_for_while_the_note_of_it_is_refused() -> None:
    """Without the note each pass would take the successors for workers that are wanted, and ask for more."""
    cluster = await Cluster.serving(3)
    cluster.bench.change_spec(scaling={"mode": "Manual"})
    await cluster.steps(1)
    refusal = ClusterError("apply", status=422, reason="Invalid", message="no such field")
    cluster.bench.cluster.refuse = lambda verb, kind: refusal if (verb, kind) == ("apply", DEPLOYMENT) else None
    cluster.cordon()
    await cluster.steps(5)
    assert (cluster.bench.replicas("decode"), cluster.note) == (3, None)
    cluster.bench.cluster.refuse = lambda _verb, _kind: None
    await cluster.steps(12)
    assert len(cluster.serving_on(NEW_NODE)) == 3
    assert (cluster.bench.replicas("decode"), cluster.note) == (3, None)


async def test_a_worker_stays_until_its_successor_serves() -> None:
    cluster = await Cluster.serving(2)
    cluster.cordon()
    await cluster.steps(4, node=None)
    assert (cluster.bench.replicas("decode"), cluster.note) == (4, "2/4")
    assert cluster.bench.condition("Progressing")[1:] == (
        "Scaling",
        "decode stays 2, 2 starting, 2 more until those whose successors they are have left",
    )
    assert len(cluster.serving_on(OLD_NODE)) == 2
    assert not [pod for pod in cluster.bench.pods("decode") if pod.draining_since_seconds is not None]


async def test_no_pending_successor_goes_in_the_place_of_a_drained_worker() -> None:
    cluster = await Cluster.serving(2)
    cluster.cordon()
    await cluster.run_pass()
    cluster.bench.cluster.control()
    first, second = [pod for pod in cluster.bench.pods("decode") if pod.name not in cluster.names]
    cluster.bench.cluster.edit(POD, KEY.namespace, first.name, {"spec": {"nodeName": NEW_NODE}})
    conditions = [{"type": "Ready", "status": "True", "lastTransitionTime": cluster.bench.clock().isoformat()}]
    cluster.bench.cluster.set_status(
        POD, KEY.namespace, first.name, phase="Running", podIP="10.0.0.1", conditions=conditions
    )
    await cluster.steps(5, node=None)
    assert second.name in {pod.name for pod in cluster.bench.pods("decode")}
    assert cluster.bench.replicas("decode") == 4
    await cluster.steps(8)
    assert [pod.name for pod in cluster.serving_on()] == [first.name, second.name]
    assert cluster.bench.replicas("decode") == 2


async def test_another_operator_takes_successors_for_no_more_than_that() -> None:
    cluster = await Cluster.serving(2)
    cluster.cordon()
    await cluster.steps(1, node=None)
    for _ in range(3):
        cluster.bench.controller = cluster.bench.new_controller()
        await cluster.steps(1, node=None)
        assert cluster.bench.replicas("decode") == 4
        assert cluster.bench.planner.seen[-1].decode.replicas == 2


async def test_a_pool_that_shrinks_while_it_moves_ends_with_successors_only() -> None:
    cluster = await Cluster.serving(3)
    cluster.bench.planner.decode = 1
    cluster.cordon()
    await cluster.steps(12)
    assert cluster.bench.pods("decode") == cluster.serving_on(NEW_NODE)
    assert (cluster.bench.replicas("decode"), cluster.note) == (1, None)
    assert cluster.least_serving == 1


async def test_a_node_that_takes_pods_again_leaves_the_count_as_it_was() -> None:
    cluster = await Cluster.serving(2)
    cluster.cordon()
    await cluster.steps(1, node=None)
    cluster.cordon(undo=True)
    await cluster.steps(4, node=None)
    assert {pod.name for pod in cluster.serving_on()} == cluster.names
    assert (cluster.bench.replicas("decode"), cluster.note) == (2, None)


async def test_evicted_workers_are_not_replaced_twice() -> None:
    cluster = await Cluster.serving(2)
    cluster.cordon()
    await cluster.steps(1)
    for name in cluster.names:
        cluster.bench.cluster.remove(POD, KEY.namespace, name)
    await cluster.steps(6)
    assert len(cluster.serving_on(NEW_NODE)) == 2
    assert (cluster.bench.replicas("decode"), cluster.note) == (2, None)


async def test_successors_stay_within_the_budget_and_go_one_by_one_then() -> None:
    cluster = await Cluster.serving(3, {"scaling.maxGPUs": 4})
    cluster.cordon()
    most = 0
    for _ in range(25):
        await cluster.steps(1)
        most = max(most, cluster.bench.replicas("decode"))
    assert most == 4
    assert len(cluster.serving_on(NEW_NODE)) == 3
    assert cluster.least_serving == 3


async def test_while_a_gateway_is_silent_nobody_moves_and_successors_stay() -> None:
    cluster = await Cluster.serving(2)
    cluster.silent = True
    await cluster.steps(4)
    cluster.cordon()
    await cluster.steps(3)
    assert (cluster.bench.replicas("decode"), len(cluster.serving_on(OLD_NODE))) == (2, 2)
    cluster.silent = False
    await cluster.steps(3, node=None)
    assert cluster.bench.replicas("decode") == 4
    cluster.silent = True
    await cluster.steps(6, node=None)
    assert (cluster.bench.replicas("decode"), cluster.note) == (4, "2/4")


async def test_without_room_in_the_budget_nobody_moves() -> None:
    cluster = await Cluster.serving(3, {"scaling.maxGPUs": 3})
    cluster.cordon()
    await cluster.steps(4)
    assert (cluster.bench.replicas("decode"), len(cluster.serving_on(OLD_NODE))) == (3, 3)


async def test_recommend_moves_nobody() -> None:
    cluster = await Cluster.serving(2)
    cluster.bench.change_spec(scaling={"mode": "Recommend"})
    cluster.cordon()
    await cluster.steps(3)
    assert (cluster.bench.replicas("decode"), len(cluster.serving_on(OLD_NODE))) == (2, 2)


async def test_a_move_that_recommend_interrupts_stands_still_says_so_and_is_ended_later() -> None:
    cluster = await Cluster.serving(2)
    cluster.cordon()
    await cluster.steps(1)
    cluster.bench.change_spec(scaling={"mode": "Recommend"})
    await cluster.steps(4)
    assert (cluster.bench.replicas("decode"), cluster.note) == (4, "2/4")
    assert len(cluster.serving_on()) == 4
    assert "workers too many (decode 2)" in cluster.bench.condition("ScalingActive")[2]
    assert "ForeignScale" not in {reason for reason, _ in cluster.bench.events()}
    cluster.bench.change_spec(scaling={"mode": "Auto"})
    await cluster.steps(8)
    assert (cluster.bench.replicas("decode"), cluster.note) == (2, None)
    assert len(cluster.serving_on(NEW_NODE)) == 2
    assert "too many" not in cluster.bench.condition("ScalingActive")[2]


async def test_in_recommend_an_autoscaler_that_changes_the_count_during_a_move_is_left_alone() -> None:
    cluster = await Cluster.serving(2)
    cluster.cordon()
    await cluster.steps(1)
    cluster.bench.change_spec(scaling={"mode": "Recommend"})
    for count in (3, 6, 1):
        cluster.bench.cluster.edit(DEPLOYMENT, KEY.namespace, "served-decode", {"spec": {"replicas": count}})
        await cluster.steps(2)
        assert cluster.bench.replicas("decode") == count
    assert "ForeignScale" not in {reason for reason, _ in cluster.bench.events()}
    assert cluster.note is None


@pytest.mark.parametrize("budget", [4, 5])
async def test_a_rollout_that_begins_during_a_move_surges_only_by_what_the_successors_left(budget: int) -> None:
    cluster = await Cluster.serving(3, {"scaling.maxGPUs": budget, "rollout.maxSurge": 1})
    cluster.cordon()
    await cluster.steps(1, node=None)
    successors = cluster.bench.replicas("decode") - 3
    assert successors == budget - 3
    cluster.bench.change_spec(engine={"args": ["--new"]}, scaling={"maxGPUs": 5})
    await cluster.steps(1, node=None)
    surge = cluster.bench.deployment("decode")["spec"]["strategy"]["rollingUpdate"]["maxSurge"]
    assert cluster.bench.replicas("decode") + surge == 5


async def test_growth_leaves_successors_their_gpus_before_their_pods_are_there() -> None:
    cluster = await Cluster.serving(2)
    cluster.cordon()
    await cluster.run_pass()
    await cluster.run_pass()
    seen = cluster.bench.planner.seen[-1].decode
    assert (seen.replicas, seen.surge) == (2, 2)


@pytest.mark.parametrize(
    ("note", "replicas", "expected"),
    [("3/4", 4, 3), ("3/4", 3, 3), ("3/4", 6, 6), ("3/4", 2, 2), ("3/5", 4, 3), ("nonsense", 4, 4), ("", 4, 4)],
)
def test_a_count_outside_of_the_note_is_somebody_else_s(note: str, replicas: int, expected: int) -> None:
    metadata = {"annotations": {RELOCATION_ANNOTATION: note}}
    assert base_replicas({"kind": DEPLOYMENT.name, "metadata": metadata, "spec": {"replicas": replicas}}) == expected
