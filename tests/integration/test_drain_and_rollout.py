"""Drains while a Deployment rolls, on Kubernetes' own controllers: a Ready pod never goes in the place of the victim.

Nothing runs the pods here: they are assigned to a node that nobody looks after, and their status is what the test says.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
from tests.support.listing import relist
from tests.support.virtual_pool import LABELS, LEASE_SECONDS, NAME, SETTLE_SECONDS, VirtualEngine, VirtualEngines
from tests.support.waiting import until

from duet_dev.cluster import Cluster
from duet_engine.drain import Drain
from duet_operator.cluster import DEPLOYMENT, FIELD_MANAGER, POD
from duet_operator.drain_actions import VICTIM_COST, Rules
from duet_operator.drain_executor import DrainExecutor
from duet_operator.kubernetes_cluster import KubernetesCluster, connect
from duet_operator.metrics import Metrics
from duet_operator.pods import DELETION_COST_ANNOTATION, DRAIN_STARTED_ANNOTATION, Pod
from duet_operator.pool_sight import PoolSight
from duet_operator.resources.labels import REVISION
from duet_operator.scaling import Order, PoolScaler
from duet_operator.world import Key, World

pytestmark = pytest.mark.apiserver

REPLICAS, AT_ONCE = 6, 2
OLD, NEW = "r1", "r2"
CHANGE_SECONDS = 30.0


def deployment(namespace: str) -> dict[str, Any]:
    """Six workers that end at once when they are deleted."""
    engine = {"name": "engine", "image": "engine"}
    spec = {"nodeName": "nowhere", "terminationGracePeriodSeconds": 0, "containers": [engine]}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": NAME, "namespace": namespace, "labels": LABELS},
        "spec": {
            "replicas": REPLICAS,
            "selector": {"matchLabels": {"duetserve.io/role": "decode"}},
            "strategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": AT_ONCE}},
            "template": {"metadata": {"labels": {**LABELS, REVISION: OLD}}, "spec": spec},
        },
    }


class RealPool:
    """A pool on the API server, its engines in memory, and the operator's scaler."""

    def __init__(self, cluster: KubernetesCluster, namespace: str) -> None:
        self._cluster = cluster
        self._key = Key(namespace, LABELS["duetserve.io/name"])
        self.world = World(field_manager=FIELD_MANAGER)
        self.engines = VirtualEngines()
        drains = DrainExecutor(
            cluster=cluster,
            world=self.world,
            engines=self.engines,  # type: ignore[arg-type]
            metrics=Metrics(),
            now=lambda: datetime.fromtimestamp(self.engines.now, UTC),
        )
        self._scaler = PoolScaler(drains=drains)

    async def look(self) -> PoolSight:
        """Everything as it is now."""
        for kind in (DEPLOYMENT, POD):
            found = await self._cluster.list(kind, namespace=self._key.namespace)
            relist(self.world, kind.name, found.items, resource_version=found.resource_version)
        return PoolSight(deployment=self.world.child(self._key, DEPLOYMENT.name, NAME), pods=self.world.pods(self._key))

    async def behind(self, before: PoolSight) -> PoolSight:
        """The pods as they are, under the Deployment as it was."""
        present = await self.look()
        return PoolSight(deployment=before.deployment, pods=present.pods)

    async def pods(self, revision: str) -> list[Pod]:
        return [pod for pod in (await self.look()).alive if pod.revision == revision]

    async def expect(self, old: int, new: int) -> None:
        """Until so many pods of each revision are there, and the Deployment's controller has told of them."""

        async def there() -> bool:
            seen = await self.look()
            revisions = [pod.revision for pod in seen.alive]
            return (revisions.count(OLD), revisions.count(NEW)) == (old, new) and seen.counted

        await until(f"there are {old} old and {new} new pods", there, seconds=CHANGE_SECONDS)

    async def start(self, pods: list[Pod]) -> None:
        """Their engines run and are ready."""
        for pod in pods:
            self.engines.by_uid[pod.uid] = VirtualEngine(Drain(worker=pod.name), started=True)
            await self.tell(pod, ready=True)

    async def tell(self, pod: Pod, *, ready: bool) -> None:
        """As its kubelet does."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        condition = {"type": "Ready", "status": str(ready), "lastTransitionTime": now}
        told = {"phase": "Running", "podIP": "10.0.0.1", "startTime": now, "conditions": [condition]}
        await self._cluster.patch_status(POD, pod.namespace, pod.name, told)

    async def change(self, spec: dict[str, Any]) -> None:
        await self._cluster.patch(DEPLOYMENT, self._key.namespace, NAME, {"spec": spec})

    async def replicas(self) -> int:
        found = await self._cluster.get(DEPLOYMENT, self._key.namespace, NAME)
        assert found is not None
        return int(found["spec"]["replicas"])

    async def drain(self, pod: Pod) -> None:
        """It has drained as the operator wished: empty for the settle window, and unready."""
        started = {DRAIN_STARTED_ANNOTATION: datetime.fromtimestamp(self.engines.now, UTC).isoformat()}
        await self.annotate(pod, started)
        await self.engines.drain(pod, lease_seconds=LEASE_SECONDS, reason="ScaleDown")
        await self.engines.drain_status(pod)
        await self.tell(pod, ready=False)
        self.engines.now += SETTLE_SECONDS

    async def annotate(self, pod: Pod, annotations: dict[str, str]) -> None:
        await self._cluster.patch(POD, pod.namespace, pod.name, {"metadata": {"annotations": annotations}})

    async def operate(self, target: int, *, sight: PoolSight, rollout: bool) -> None:
        """One pass of the scaler, by what it sees."""
        order = Order(
            namespace=self._key.namespace,
            deployment=NAME,
            sight=sight,
            target=target,
            rollout_in_progress=rollout,
            states={},
            rules=Rules(now_seconds=self.engines.now, settle_seconds=SETTLE_SECONDS, timeout_seconds=120.0),
            lease_seconds=LEASE_SECONDS,
        )
        await self._scaler.carry_out(order, start_allowed=True)


@pytest.fixture
async def pool(control_plane: Cluster, namespace: str) -> AsyncIterator[RealPool]:
    """Six ready workers."""
    async with await connect(kubeconfig=str(control_plane.kubeconfig)) as cluster:
        await cluster.create(deployment(namespace))
        made = RealPool(cluster, namespace)
        await made.expect(old=REPLICAS, new=0)
        await made.start(await made.pods(OLD))
        yield made


async def roll_halfway(pool: RealPool) -> Pod:
    """Two workers are new and ready, and the roll-out stands there; one of the new ones comes back."""
    await pool.change({"template": {"metadata": {"labels": {REVISION: NEW}}}})
    await pool.expect(old=REPLICAS - AT_ONCE, new=AT_ONCE)
    await pool.change({"paused": True})
    new = await pool.pods(NEW)
    await pool.start(new)
    return new[0]


async def test_no_ready_worker_goes_in_the_place_of_a_drained_one_while_two_revisions_are_there(pool: RealPool) -> None:
    before = await pool.look()
    victim = await roll_halfway(pool)
    names = {pod.name for pod in (await pool.look()).alive}

    await pool.drain(victim)
    await pool.operate(REPLICAS - 1, sight=await pool.behind(before), rollout=False)
    assert await pool.replicas() == REPLICAS, "the cache was behind, and nobody looked at the Deployment itself"
    await pool.operate(REPLICAS - 1, sight=await pool.look(), rollout=True)
    assert await pool.replicas() == REPLICAS
    assert pool.engines.by_uid[victim.uid].serving(pool.engines.now), "its drain is called off"
    assert {pod.name for pod in (await pool.look()).alive} == names

    # What it's for: Kubernetes lowers both revisions' counts in proportion, and a cost ranks only within one of them.
    await pool.drain(victim)
    await pool.annotate(victim, {DELETION_COST_ANNOTATION: VICTIM_COST})
    await pool.change({"replicas": REPLICAS - 1})
    await pool.expect(old=REPLICAS - AT_ONCE - 1, new=AT_ONCE)
    assert victim.name in {pod.name for pod in await pool.pods(NEW)}


async def test_once_all_workers_are_of_one_revision_the_drained_one_goes_and_no_other(pool: RealPool) -> None:
    workers = await pool.pods(OLD)
    victim = workers[3]
    await pool.drain(victim)
    await pool.operate(REPLICAS - 1, sight=await pool.look(), rollout=False)
    await pool.expect(old=REPLICAS - 1, new=0)
    assert {pod.name for pod in await pool.pods(OLD)} == {pod.name for pod in workers} - {victim.name}
