"""One pod's life on this node: surroundings, init containers, containers, status, end.

Invariant: the pod's object is deleted only after the last of its processes is gone.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from duet_dev.kubeapi import STRATEGIC_MERGE, UNAVAILABLE, ApiError, JsonObject, timestamp
from duet_dev.kubelet import devices
from duet_dev.kubelet.container import Container
from duet_dev.kubelet.context import HOST_ADDRESS, Context
from duet_dev.kubelet.problems import CannotStart
from duet_dev.kubelet.run import Surroundings
from duet_dev.kubelet.sandbox import Sandbox
from duet_dev.kubelet.sources import PodSources
from duet_dev.kubelet.status import conditions, phase
from duet_dev.kubelet.transitions import Transitions

RETRY_SECONDS = 1
GONE, CONFLICT = 404, 409

log = logging.getLogger(__name__)


async def first_of(*waits: Awaitable[object]) -> None:
    """Until one of them is done; the others are given up."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


class Pod:
    def __init__(self, item: JsonObject, *, context: Context, address: str) -> None:
        metadata, spec = item["metadata"], item["spec"]
        self.item, self.address = item, address
        self.uid, self.namespace, self.name = metadata["uid"], metadata["namespace"], metadata["name"]
        self.path = f"/api/v1/namespaces/{self.namespace}/pods/{self.name}"
        self.node: str = spec["nodeName"]
        self.over = item["status"]["phase"] in ("Succeeded", "Failed")
        self._context, self._api = context, context.api
        self._spec_grace: float = spec.get("terminationGracePeriodSeconds", 30)
        self._deadline = float("inf")
        self.prepared = False
        self._ended, self._gone, self._changed = asyncio.Event(), False, asyncio.Event()
        self._rejection: str | None = None
        self._started = item["status"].get("startTime") or timestamp()
        self._transitions = Transitions(item["status"].get("conditions", []))
        self._published: JsonObject | None = None
        sources = PodSources(
            api=context.api,
            pod=item,
            address=address,
            host_address=HOST_ADDRESS,
            node=context.nodes[self.node].resources,
        )
        self.sandbox = Sandbox(
            api=context.api,
            config=context.config,
            sources=sources,
            root=context.root,
            address=address,
            run=context.marker,
        )
        self._surroundings = Surroundings(
            sandbox=self.sandbox,
            log_file=lambda container, run: context.log_file(item, container, run),
            grace_seconds=self._spec_grace,
            backoff=context.config.backoff,
            changed=self._changed.set,
            report=self.report,
        )
        self.init = [self._container(c, init=True) for c in spec.get("initContainers", [])]
        self.main = [self._container(c, init=False) for c in spec["containers"]]
        previous = item["status"].get("initContainerStatuses", []) + item["status"].get("containerStatuses", [])
        by_name = {container["name"]: container for container in previous}
        for container in self.containers:
            if container.name in by_name:
                container.take_over(by_name[container.name])

    def _container(self, spec: JsonObject, *, init: bool) -> Container:
        policy = self.item["spec"].get("restartPolicy", "Always")
        sidecar = init and spec.get("restartPolicy") == "Always"
        if init:
            policy = "Always" if sidecar else "Never" if policy == "Never" else "OnFailure"
        return Container(spec, self._surroundings, restart_policy=policy, sidecar=sidecar)

    @property
    def containers(self) -> list[Container]:
        return [*self.init, *self.main]

    def report(self, kind: str, reason: str, message: str) -> None:
        self._context.events.report(self.item, kind, reason, message)

    # -- what the watch brings

    def update(self, item: JsonObject) -> None:
        self.item = item
        if item["metadata"].get("deletionTimestamp"):
            self.end(item["metadata"].get("deletionGracePeriodSeconds", self._spec_grace))
        self._changed.set()

    def vanish(self) -> None:
        """The object is gone without us (a forced deletion): nothing to wait for, nothing to write."""
        self._gone = True
        self.end(0)

    def end(self, grace_seconds: float) -> None:
        self._deadline = min(self._deadline, asyncio.get_running_loop().time() + grace_seconds)
        self._ended.set()
        for container in self.containers:
            if not container.sidecar or grace_seconds == 0:
                container.end(grace_seconds)

    # -- its life

    async def run(self) -> None:
        if not self.over:
            publisher = asyncio.create_task(self._publish_changes())
            try:
                await self._live()
            finally:
                publisher.cancel()
                self._context.devices[self.node].release(self.uid)
                self.over = True
            if not self._gone:
                await self._insist(self._publish)
        await self._ended.wait()
        self.sandbox.remove()
        if not self._gone:
            await self._insist(self._delete)

    async def _live(self) -> None:
        if not await self._prepare():
            return
        keeper = asyncio.create_task(self._renew_tokens())
        sidecars: list[asyncio.Task[None]] = []
        try:
            if await self._initialize(sidecars):
                await asyncio.gather(*(container.run() for container in self.main))
            left = max(0.0, min(self._deadline - asyncio.get_running_loop().time(), self._spec_grace))
            for container in self.init:
                container.end(left)
            await asyncio.gather(*sidecars)
        finally:
            for task in (keeper, *sidecars):
                task.cancel()

    async def _prepare(self) -> bool:
        """Devices and volumes; False when the pod can't be or need not be started any more."""
        try:
            for container in self.containers:
                wanted = devices.requested(container.spec)
                container.devices = self._context.devices[self.node].allocate(self.uid, wanted)
        except devices.NotEnoughDevices as problem:
            self._rejection = str(problem)
            self.report("Warning", "UnexpectedAdmissionError", str(problem))
            return False
        for container in self.main:
            if self.init:
                container.wait_for("PodInitializing")
        while not self._ended.is_set():
            try:
                await self.sandbox.prepare()
                self.prepared = True
                return True
            except CannotStart as problem:
                self.report("Warning", "FailedMount", problem.message)
                self.containers[0].wait_for(problem.reason, problem.message)
            except UNAVAILABLE as error:
                log.warning("%s: %s", self.path, error)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), RETRY_SECONDS)
        return False

    async def _initialize(self, sidecars: list[asyncio.Task[None]]) -> bool:
        """Run the init containers in order; a sidecar counts as done once it has started."""
        for container in self.init:
            if container.sidecar:
                sidecars.append(asyncio.create_task(container.run()))
                await first_of(container.has_started.wait(), self._ended.wait())
            else:
                await container.run()
                if container.view().exit_code != 0:
                    return False
            if self._ended.is_set():
                return False
        return True

    async def _renew_tokens(self) -> None:
        while (due := self.sandbox.volumes.refresh_at) is not None:
            await asyncio.sleep(max(1.0, (due - datetime.now(UTC)).total_seconds()))
            await self.refresh_volumes()

    async def refresh_volumes(self) -> None:
        try:
            await self.sandbox.volumes.refresh()
        except (CannotStart, *UNAVAILABLE) as error:
            self.report("Warning", "FailedMount", str(error))

    # -- its status

    async def _publish_changes(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            await self._insist(self._publish)

    async def _publish(self) -> None:
        status = self.status()
        if status != self._published:
            body = {"metadata": {"uid": self.uid}, "status": status}
            await self._api.patch(f"{self.path}/status", body, kind=STRATEGIC_MERGE)
            self._published = status

    async def _delete(self) -> None:
        await self._api.delete(self.path, {"gracePeriodSeconds": 0, "preconditions": {"uid": self.uid}})

    async def _insist(self, call: Callable[[], Awaitable[None]]) -> None:
        """Repeat through the API server's absences; a pod that is gone or another needs nothing more."""
        while True:
            await self._context.partition.over(self.node)
            try:
                return await call()
            except UNAVAILABLE as error:
                if isinstance(error, ApiError) and error.status in (GONE, CONFLICT):
                    return None
                log.warning("%s: %r", self.path, error)
            await asyncio.sleep(RETRY_SECONDS)

    def status(self) -> JsonObject:
        init, main = [c.view() for c in self.init], [c.view() for c in self.main]
        if self._rejection:
            return {"phase": "Failed", "reason": "UnexpectedAdmissionError", "message": self._rejection}
        pod_phase = phase(self.item["spec"].get("restartPolicy", "Always"), init, main)
        given = {c["type"]: c["status"] for c in self.item["status"].get("conditions", [])}
        gates = [gate["conditionType"] for gate in self.item["spec"].get("readinessGates", [])]
        wanted = conditions(pod_phase, init, main, gates={g: given.get(g) == "True" for g in gates})
        return {
            "observedGeneration": self.item["metadata"].get("generation"),
            "phase": pod_phase,
            "hostIP": HOST_ADDRESS,
            "hostIPs": [{"ip": HOST_ADDRESS}],
            "podIP": self.address,
            "podIPs": [{"ip": self.address}],
            "startTime": self._started,
            "conditions": [self._transitions.dated(condition) for condition in wanted],
            "initContainerStatuses": [container.status() for container in self.init],
            "containerStatuses": [container.status() for container in self.main],
        }
