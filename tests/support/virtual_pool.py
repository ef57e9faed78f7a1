"""One pool in virtual time: a Deployment with its controller, a kubelet, engines that drain, and the operator's scaler.

Invariant: nothing here waits; time moves only through `pass_time`, and each part (controller, kubelet, operator) acts
only when it is told to, so that a test can put them in any order.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tests.support.fake_cluster import FakeCluster
from tests.support.listing import relist
from tests.support.workers import NOW

from duet_engine.drain import Drain
from duet_engine.protocol import DrainStatus, Knobs, Role, Work
from duet_operator.cluster import DEPLOYMENT, FIELD_MANAGER, POD
from duet_operator.drain_actions import Rules
from duet_operator.drain_executor import DrainExecutor
from duet_operator.engines import EngineError
from duet_operator.metrics import Metrics
from duet_operator.pods import Pod
from duet_operator.pool_sight import PoolSight
from duet_operator.scaling import Order, Outcome, PoolScaler
from duet_operator.world import Key, World

KEY = Key("default", "served")
NAME = "served-decode"
LEASE_SECONDS = 30.0
SETTLE_SECONDS = 2.0
LABELS = {
    "app.kubernetes.io/managed-by": "duet-operator",
    "duetserve.io/name": KEY.name,
    "duetserve.io/role": "decode",
    "duetserve.io/revision": "r1",
}


@dataclass(slots=True)
class VirtualEngine:
    """What runs in one pod."""

    drain: Drain
    started: bool = False
    requests: int = 0

    def serving(self, now: float) -> bool:
        return self.started and not self.drain.active(now)


@dataclass(slots=True)
class VirtualEngines:
    """The engine client over them."""

    now: float = NOW
    by_uid: dict[str, VirtualEngine] = field(default_factory=dict)
    unreachable: set[str] = field(default_factory=set)
    knobs: list[tuple[str, Knobs]] = field(default_factory=list)
    """Pod and knobs of each push."""

    async def drain(self, pod: Pod, *, lease_seconds: float, reason: str) -> DrainStatus:
        engine = self._find(pod)
        engine.drain.request(lease_seconds=lease_seconds, requested_by="operator", reason=reason, now=self.now)
        return self._status(engine)

    async def drain_status(self, pod: Pod) -> DrainStatus:
        return self._status(self._find(pod))

    async def serve_again(self, pod: Pod) -> DrainStatus:
        engine = self._find(pod)
        engine.drain.cancel()
        return self._status(engine)

    async def set_knobs(self, pod: Pod, knobs: Knobs) -> None:
        if pod.uid in self.unreachable:
            raise EngineError(f"{pod.name}: unreachable")
        self.knobs.append((pod.name, knobs))

    def _find(self, pod: Pod) -> VirtualEngine:
        if pod.uid in self.unreachable or pod.uid not in self.by_uid:
            raise EngineError(f"{pod.name}: unreachable")
        return self.by_uid[pod.uid]

    def _status(self, engine: VirtualEngine) -> DrainStatus:
        work, drain = Work(running=engine.requests), engine.drain
        drain.observe(work, self.now)
        return DrainStatus(
            worker=drain.worker,
            phase=drain.phase(work, self.now),
            lease_remaining_seconds=drain.lease_remaining_seconds(self.now),
            idle_seconds=drain.idle_seconds(self.now),
            remaining=work,
        )


class VirtualPool:
    """The pool and everything that acts on it."""

    def __init__(self, *, replicas: int) -> None:
        self.engines = VirtualEngines()
        self.cluster = FakeCluster(self.clock)
        self.cluster.subscribers.append(self._deliver)
        self.deaf = False
        """Whether the operator's watches are behind."""
        self.world = World(field_manager=FIELD_MANAGER)
        drains = DrainExecutor(
            cluster=self.cluster,
            world=self.world,
            engines=self.engines,  # type: ignore[arg-type]
            metrics=Metrics(),
            now=self.clock,
        )
        self._scaler = PoolScaler(drains=drains)
        self.killed: list[tuple[str, int, bool]] = []
        """Of each pod that was deleted: name, requests that it held, whether it took new ones."""
        self.cluster.put(_deployment(replicas))
        self.control()
        self.start_all()

    def clock(self) -> datetime:
        return datetime.fromtimestamp(self.engines.now, UTC)

    # --- what happens around the operator ---

    def pass_time(self, seconds: float) -> None:
        self.engines.now += seconds

    def control(self) -> None:
        """The Deployment's controller, and its pods' engines."""
        before = {pod["metadata"]["uid"]: pod["metadata"]["name"] for pod in self.cluster.pods("decode")}
        self.cluster.control()
        after = {pod["metadata"]["uid"]: pod["metadata"]["name"] for pod in self.cluster.pods("decode")}
        for uid in before.keys() - after.keys():
            engine = self.engines.by_uid.pop(uid)
            self.killed.append((before[uid], engine.requests, engine.serving(self.engines.now)))
        for uid in after.keys() - before.keys():
            self.engines.by_uid[uid] = VirtualEngine(Drain(worker=after[uid]))
        self.kubelet()

    def start_all(self) -> None:
        """All engines that were on their way are ready."""
        self.pass_time(5.0)
        for engine in self.engines.by_uid.values():
            engine.started = True
        self.kubelet()

    def kubelet(self) -> None:
        """Pods say what their engines are."""
        for pod in self.cluster.pods("decode"):
            engine, metadata = self.engines.by_uid[pod["metadata"]["uid"]], pod["metadata"]
            ready = "True" if engine.serving(self.engines.now) else "False"
            known = {each["type"]: each for each in (pod.get("status") or {}).get("conditions", ())}
            if known.get("Ready", {}).get("status") == ready:
                continue
            conditions = [{"type": "Ready", "status": ready, "lastTransitionTime": self.clock().isoformat()}]
            self.cluster.set_status(
                POD,
                KEY.namespace,
                metadata["name"],
                phase="Running",
                podIP="10.0.0.1",
                startTime=metadata["creationTimestamp"],
                conditions=conditions,
            )

    def arrive(self, count: int) -> int:
        """Requests for the workers that take some, in turn; how many found one."""
        serving = [engine for engine in self.engines.by_uid.values() if engine.serving(self.engines.now)]
        for index in range(count if serving else 0):
            serving[index % len(serving)].requests += 1
        return count if serving else 0

    def finish_all(self) -> None:
        for engine in self.engines.by_uid.values():
            engine.requests = 0

    # --- the operator ---

    async def hear(self) -> None:
        """The operator's watches begin anew, and a list makes up for what they missed."""
        self.deaf = False
        for kind in (DEPLOYMENT, POD):
            listing = await self.cluster.list(kind)
            relist(self.world, kind.name, listing.items, resource_version=listing.resource_version)

    async def operate(self, target: int, *, rollout: bool = False) -> Outcome:
        """One pass of the scaler."""
        order = Order(
            namespace=KEY.namespace,
            deployment=NAME,
            sight=self.sight(),
            target=target,
            rollout_in_progress=rollout,
            states={},
            rules=Rules(now_seconds=self.engines.now, settle_seconds=SETTLE_SECONDS, timeout_seconds=120.0),
            lease_seconds=LEASE_SECONDS,
        )
        return await self._scaler.carry_out(order, start_allowed=True)

    def sight(self) -> PoolSight:
        return PoolSight(deployment=self.world.child(KEY, DEPLOYMENT.name, NAME), pods=self.world.pods(KEY))

    @property
    def replicas(self) -> int:
        return self.cluster.replicas(NAME)

    def draining(self) -> list[Pod]:
        return [pod for pod in self.sight().alive if pod.draining_since_seconds is not None]

    def _deliver(self, change: str, manifest: dict[str, Any]) -> None:
        if self.deaf:
            return
        if change == "DELETED":
            self.world.remove(manifest)
        else:
            self.world.put(manifest)


def _deployment(replicas: int) -> dict[str, Any]:
    template = {"metadata": {"labels": LABELS}, "spec": {"nodeName": "node", "containers": []}}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": NAME,
            "namespace": KEY.namespace,
            "labels": LABELS | {"duetserve.io/role": Role.DECODE.value},
        },
        "spec": {"replicas": replicas, "template": template},
    }
