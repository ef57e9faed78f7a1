"""One object under a controller, on the in-memory cluster, with a planner and gateways that do as the test says."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tests.support.duet_objects import minimal, patched
from tests.support.fake_cluster import FakeCluster
from tests.support.manifests import SURROUNDINGS
from tests.support.virtual_pool import VirtualEngines
from tests.support.workers import NOW

from duet_engine.protocol import GatewayDemand, RoutingPlan
from duet_operator.acting import Children
from duet_operator.cluster import DEPLOYMENT, DUET, FIELD_MANAGER, POD, ClusterError
from duet_operator.controller import Controller, Services
from duet_operator.drain_executor import DrainExecutor
from duet_operator.engine_knobs import KnobPusher
from duet_operator.metrics import Metrics
from duet_operator.nodes import Nodes
from duet_operator.planner.types import Decision, Observation, Performance, PlannerMemory, PlanSpec, PoolDecision
from duet_operator.pods import Pod
from duet_operator.reporting import Reporter
from duet_operator.scaling import PoolScaler
from duet_operator.settings import Settings
from duet_operator.signals.gateways import Scrape
from duet_operator.trust import IssuerWatch
from duet_operator.world import Key, World

KEY = Key("default", "served")


@dataclass(slots=True)
class ScriptedGateways:
    """The reader of gateways: says what the test wants."""

    documents: dict[str, GatewayDemand] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    async def read(self, pods: Any) -> Scrape:
        self.asked = [pod.name for pod in pods]
        told = {name: self.documents[name] for name in self.asked if name in self.documents}
        return Scrape(documents=told, failures={name: "no answer" for name in self.asked if name not in told})


class NoTokens:
    """An API server that says nothing of its tokens."""

    async def document(self, path: str) -> dict[str, Any]:
        raise ClusterError(path, status=403, reason="Forbidden", message="not for you")

    async def request_token(self, namespace: str, account: str, *, audience: str, seconds: int) -> dict[str, Any]:
        raise ClusterError(audience, status=403, reason="Forbidden", message="not for you")


@dataclass(slots=True)
class NotedPlans:
    """The pusher of routing plans: notes what each gateway got last."""

    by_pod: dict[str, RoutingPlan] = field(default_factory=dict)

    async def push(self, pods: Any, plan: RoutingPlan, *, now_seconds: float) -> None:
        self.by_pod |= {pod.name: plan for pod in pods}


@dataclass(slots=True)
class ScriptedPlanner:
    """A planner that wants certain counts; None wants the present ones."""

    prefill: int | None = None
    decode: int | None = None
    seen: list[Observation] = field(default_factory=list)
    memory: PlannerMemory = field(default_factory=PlannerMemory)

    def __call__(
        self, observation: Observation, memory: PlannerMemory, spec: PlanSpec, performance: Performance
    ) -> Decision:
        self.seen.append(observation)
        self.memory = memory
        present = observation.present

        def pool(wanted: int | None, has: int) -> PoolDecision:
            count = has if wanted is None else wanted
            return PoolDecision(replicas=count, recommended=count, reason="Sufficient")

        return Decision(
            prefill=pool(self.prefill, present.prefill),
            decode=pool(self.decode, present.decode),
            deflected_share=0.0,
            reason="Sufficient",
            message="as the test wants it",
            memory=memory,
        )


class Bench:
    """Everything around one object."""

    def __init__(self, spec: dict[str, Any] | None = None, *, settings: Settings | None = None) -> None:
        self.engines = VirtualEngines(now=NOW)
        self.cluster = FakeCluster(self.clock)
        self.cluster.subscribers.append(self._deliver)
        self.world = World(field_manager=FIELD_MANAGER)
        self.nodes = Nodes()
        self.gateways = ScriptedGateways()
        self.answers = 0
        """Documents that the gateway has written."""
        self.plans = NotedPlans()
        self.planner = ScriptedPlanner()
        self.metrics = Metrics()
        self.issuers = IssuerWatch(NoTokens(), metrics=self.metrics)
        self.issuers.issuer = SURROUNDINGS.issuer
        self.settings = settings or Settings()
        patch = {f"spec.{path}": value for path, value in (spec or {}).items()}
        self.cluster.put(patched(minimal(name=KEY.name), patch))
        self.controller = self.new_controller()

    def new_controller(self) -> Controller:
        """As another operator starts with it."""
        return Controller(KEY, self.services())

    def services(self) -> Services:
        drains = DrainExecutor(
            cluster=self.cluster,
            world=self.world,
            engines=self.engines,  # type: ignore[arg-type]
            metrics=self.metrics,
            now=self.clock,
        )
        return Services(
            world=self.world,
            nodes=self.nodes,
            settings=self.settings,
            reader=self.gateways,  # type: ignore[arg-type]
            plans=self.plans,  # type: ignore[arg-type]
            knobs=KnobPusher(self.engines),  # type: ignore[arg-type]
            children=Children(cluster=self.cluster, world=self.world),
            scaler=PoolScaler(drains=drains),
            reporter=Reporter(
                cluster=self.cluster,
                world=self.world,
                metrics=self.metrics,
                instance="bench",
                refresh_seconds=self.settings.status_refresh_seconds,
                writes_per_second=self.settings.status_writes_per_second,
                now=self.clock,
            ),
            metrics=self.metrics,
            issuers=self.issuers,
            planner=self.planner,
            now=self.clock,
        )

    def clock(self) -> datetime:
        return datetime.fromtimestamp(self.engines.now, UTC)

    async def run_pass(self, times: int = 1) -> list[tuple[str, str, str]]:
        """That many passes; the writes that they sent."""
        self.cluster.writes.clear()
        for _ in range(times):
            await self.controller.run_pass()
        return list(self.cluster.writes)

    # --- what others do ---

    def make_ready(self, *roles: str) -> None:
        """Controllers and kubelets have done their work."""
        self.cluster.control()
        for role in roles or ("gateway", "prefill", "decode"):
            for pod in self.cluster.pods(role):
                self.make_ready_pod(pod)

    def make_ready_pod(self, pod: dict[str, Any]) -> None:
        """Its kubelet has done its work."""
        conditions = [{"type": "Ready", "status": "True", "lastTransitionTime": self.clock().isoformat()}]
        started, name = pod["metadata"]["creationTimestamp"], pod["metadata"]["name"]
        told = {"phase": "Running", "podIP": "10.0.0.1", "startTime": started, "conditions": conditions}
        self.cluster.set_status(POD, KEY.namespace, name, **told)

    def change_spec(self, **spec: Any) -> None:
        """As the user edits it."""
        self.cluster.edit(DUET, KEY.namespace, KEY.name, {"spec": spec}, manager="kubectl")

    # --- what is there ---

    @property
    def duet(self) -> dict[str, Any]:
        return self.cluster.objects[DUET.name, KEY.namespace, KEY.name]

    def condition(self, kind: str) -> tuple[str, str, str]:
        """Status, reason and message."""
        found = next(each for each in self.duet["status"]["conditions"] if each["type"] == kind)
        return found["status"], found["reason"], found["message"]

    def condition_known(self, kind: str) -> bool:
        """Whether the status tells of it."""
        return kind in {each["type"] for each in self.duet.get("status", {}).get("conditions", ())}

    def replicas(self, role: str) -> int:
        return self.cluster.replicas(f"{KEY.name}-{role}")

    def deployment(self, role: str) -> dict[str, Any]:
        return self.cluster.objects[DEPLOYMENT.name, KEY.namespace, f"{KEY.name}-{role}"]

    def events(self) -> list[tuple[str, str]]:
        """Reason and note of each Event."""
        return [(each["reason"], each["note"]) for each in self.cluster.objects.values() if each["kind"] == "Event"]

    def pods(self, role: str) -> list[Pod]:
        return [pod for pod in self.world.pods(KEY) if pod.role == role]

    def _deliver(self, change: str, manifest: dict[str, Any]) -> None:
        if manifest["kind"] == "Event":
            return
        if change == "DELETED":
            self.world.remove(manifest)
        else:
            self.world.put(manifest)
