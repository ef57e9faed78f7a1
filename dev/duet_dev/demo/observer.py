"""Looks at one DuetDeployment, its pods and its gateways through the API server, once a second, until cancelled.

Invariant: pods are watched, never polled, so that no pod is missed between two looks and each ends when it is gone. A
look that fails is counted and tried again; it is never taken for an idle cluster.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from duet_dev.demo.observations import NAME_LABEL, ROLE_LABEL, Leases, PoolCounts, Sample, ScaleAction
from duet_dev.errors import DevError
from duet_dev.kubeapi import UNAVAILABLE, Api, JsonObject
from duet_engine.protocol import DEMAND_PATH, GATEWAY_ADMIN_PORT, GatewayDemand, Histogram, Role, WorkerProfile
from duet_operator.signals.totals import quantile

GROUP_PATH = "/apis/duetserve.io/v1alpha1"
LOOK_SECONDS = 1.0
PROFILE_TIMEOUT_SECONDS = 30.0
GATEWAY_ROLE = "gateway"


@dataclass(slots=True)
class Observer:
    """Everything that was seen so far."""

    api: Api
    namespace: str
    name: str
    samples: list[Sample] = field(default_factory=list)
    actions: dict[tuple[float, str], ScaleAction] = field(default_factory=dict)
    leases: Leases = field(default_factory=Leases)
    object: JsonObject = field(default_factory=dict)
    profiles: tuple[WorkerProfile, ...] = ()
    lags: dict[str, Histogram] = field(default_factory=dict)
    """How late each gateway's event loop ran since its start, by instance."""
    failed_looks: int = 0
    last_failure: str = ""
    _gateway_pods: dict[str, JsonObject] = field(default_factory=dict)
    _described: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Look until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch_pods())
            tasks.create_task(self._look_repeatedly())

    @property
    def status(self) -> JsonObject:
        status: JsonObject = self.object.get("status", {})
        return status

    @property
    def gateway_lag_p99_seconds(self) -> float:
        """Of the gateway that ran latest."""
        return max((quantile(lag, 0.99) or 0.0 for lag in self.lags.values()), default=0.0)

    async def prefill_profile(self) -> WorkerProfile:
        """What prefills here, as a gateway describes it: a prefill worker, or a decode worker where there is none."""
        try:
            await asyncio.wait_for(self._described.wait(), PROFILE_TIMEOUT_SECONDS)
        except TimeoutError:
            reason = self.last_failure or f"{len(self._gateway_pods)} gateways are ready"
            raise DevError(f"no gateway has described a worker in {PROFILE_TIMEOUT_SECONDS:.0f} s: {reason}") from None
        return min(self.profiles, key=lambda profile: profile.role is not Role.PREFILL)

    async def _watch_pods(self) -> None:
        path = f"/api/v1/namespaces/{self.namespace}/pods"
        async for event in self.api.watch(path, labelSelector=f"{NAME_LABEL}={self.name}"):
            gone = event.kind == "DELETED"
            self.leases.see(event.object, gone_at_seconds=time.time() if gone else None)
            metadata = event.object["metadata"]
            if metadata["labels"].get(ROLE_LABEL) != GATEWAY_ROLE:
                continue
            if gone or not _ready(event.object):
                self._gateway_pods.pop(metadata["name"], None)
            else:
                self._gateway_pods[metadata["name"]] = event.object

    async def _look_repeatedly(self) -> None:
        while True:
            started = time.monotonic()
            try:
                await self._look()
            except UNAVAILABLE as error:
                self.failed_looks += 1
                self.last_failure = f"{type(error).__name__}: {error}"
            await asyncio.sleep(max(0.0, started + LOOK_SECONDS - time.monotonic()))

    async def _look(self) -> None:
        path = f"{GROUP_PATH}/namespaces/{self.namespace}/duetdeployments/{self.name}"
        names = sorted(self._gateway_pods)
        demands = await asyncio.gather(*(self._demand(name) for name in names))
        self.object = await self.api.get(path)
        self.profiles = next((demand.profiles for demand in demands if demand.profiles), self.profiles)
        if self.profiles:
            self._described.set()
        lags = {demand.instance_id: demand.loop_lag_seconds for demand in demands}
        self.lags |= {instance: lag for instance, lag in lags.items() if lag is not None}
        status = self.status
        for entry in status.get("history") or ():
            action = ScaleAction.of(entry)
            self.actions[action.time_seconds, action.pool] = action
        self.samples.append(
            Sample(
                time_seconds=time.time(),
                prefill=PoolCounts.of(status.get("prefill") or {}),
                decode=PoolCounts.of(status.get("decode") or {}),
                billed_gpus=sum(lease.gpus for lease in self.leases.all if lease.end_seconds is None),
                gateways=len(demands),
                gateway_lag_p99_seconds=max((demand.loop_lag_p99_seconds for demand in demands), default=0.0),
                waiting_requests=sum(demand.waiting_requests for demand in demands),
                decision=(status.get("decision") or {}).get("message", ""),
            )
        )

    async def _demand(self, pod: str) -> GatewayDemand:
        """One gateway's demand document, as the operator reads it."""
        path = f"/api/v1/namespaces/{self.namespace}/pods/{pod}:{GATEWAY_ADMIN_PORT}/proxy{DEMAND_PATH}"
        return GatewayDemand.model_validate(await self.api.get(path))


def _ready(pod: JsonObject) -> bool:
    conditions = pod.get("status", {}).get("conditions", ())
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)
