"""One pod's life on this node: surroundings, init containers, containers, status, end.

Invariant: the pod's object is deleted only after the last of its processes is gone.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable
from datetime import UTC, datetime

from duet_dev.kubeapi import UNAVAILABLE, JsonObject
from duet_dev.kubelet import devices
from duet_dev.kubelet.container import Container
from duet_dev.kubelet.context import HOST_ADDRESS, Context
from duet_dev.kubelet.problems import CannotStart
from duet_dev.kubelet.record import Record
from duet_dev.kubelet.run import Surroundings
from duet_dev.kubelet.sandbox import Sandbox
from duet_dev.kubelet.sources import PodSources

RETRY_SECONDS = 1
METADATA = ("labels", "annotations")

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
        self.uid, self.namespace, self.name = metadata["uid"], metadata["namespace"], metadata["name"]
        self.node: str = spec["nodeName"]
        self.address = address
        self.prepared = False
        self._over = item["status"]["phase"] in ("Succeeded", "Failed")
        self._grace_seconds: float = spec.get("terminationGracePeriodSeconds", 30)
        self._deadline = float("inf")
        self._context = context
        self._record = Record(item, context=context, address=address)
        self._ended, self._gone, self._changed = asyncio.Event(), False, asyncio.Event()
        self._metadata_changed, self._rejection = asyncio.Event(), ""
        self.sandbox = self._make_sandbox()
        self._surroundings = Surroundings(
            sandbox=self.sandbox,
            log_file=lambda container, run: context.log_file(item, container, run),
            grace_seconds=self._grace_seconds,
            backoff=context.config.backoff,
            changed=self._changed.set,
            report=self.report,
        )
        self.init = [self._container(c, init=True) for c in spec.get("initContainers", [])]
        self.main = [self._container(c, init=False) for c in spec["containers"]]

    def _make_sandbox(self) -> Sandbox:
        sources = PodSources(
            api=self._context.api,
            pod=self.item,
            address=self.address,
            host_address=HOST_ADDRESS,
            node=self._context.nodes[self.node].resources,
        )
        return Sandbox(
            api=self._context.api,
            config=self._context.config,
            sources=sources,
            root=self._context.root,
            address=self.address,
            run=self._context.marker,
        )

    def _container(self, spec: JsonObject, *, init: bool) -> Container:
        policy = self.item["spec"].get("restartPolicy", "Always")
        sidecar = init and spec.get("restartPolicy") == "Always"
        if init:
            policy = "Always" if sidecar else "Never" if policy == "Never" else "OnFailure"
        container = Container(spec, self._surroundings, restart_policy=policy, sidecar=sidecar)
        status = self.item["status"]
        previous = status.get("initContainerStatuses" if init else "containerStatuses", [])
        if mine := next((one for one in previous if one["name"] == container.name), None):
            container.take_over(mine)
        return container

    @property
    def item(self) -> JsonObject:
        return self._record.item

    @property
    def path(self) -> str:
        return self._record.path

    @property
    def containers(self) -> list[Container]:
        return [*self.init, *self.main]

    def report(self, kind: str, reason: str, message: str) -> None:
        self._context.events.report(self.item, kind, reason, message)

    # -- what the watch brings

    def update(self, item: JsonObject) -> None:
        old, new = self.item["metadata"], item["metadata"]
        if self.sandbox.volumes.shows_metadata and any(old.get(key) != new.get(key) for key in METADATA):
            self._metadata_changed.set()
        self._record.item = item
        self.sandbox.sources.pod = item
        if item["metadata"].get("deletionTimestamp"):
            self.end(item["metadata"].get("deletionGracePeriodSeconds", self._grace_seconds))
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
        if not self._over:
            await self._live_in_public()
        await self._ended.wait()
        self.sandbox.remove()
        if not self._gone:
            await self._record.delete()

    async def _live_in_public(self) -> None:
        """Live, and have every change of the status written, the last one last."""
        publisher = asyncio.create_task(self._publish_changes())
        try:
            try:
                await self._live()
            finally:  # before the scheduler can hear that they are free
                self._context.devices[self.node].release(self.uid)
            self._over = True
            self._changed.set()
            await publisher
        finally:
            publisher.cancel()

    async def _live(self) -> None:
        if not await self._prepare():
            return
        keeper = asyncio.create_task(self._keep_volumes_fresh())
        sidecars: list[asyncio.Task[None]] = []
        try:
            if await self._initialize(sidecars):
                await asyncio.gather(*(container.run() for container in self.main))
            left = max(0.0, min(self._deadline - asyncio.get_running_loop().time(), self._grace_seconds))
            for container in self.init:
                container.end(left)
            await asyncio.gather(*sidecars)
        finally:
            for task in (keeper, *sidecars):
                task.cancel()

    async def _prepare(self) -> bool:
        """Devices and volumes; False when the pod can't be or need not be started any more."""
        if not self._allocate_devices():
            return False
        for container in self.main if self.init else []:
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

    def _allocate_devices(self) -> bool:
        try:
            for container in self.containers:
                wanted = devices.requested(container.spec)
                container.devices = self._context.devices[self.node].allocate(self.uid, wanted)
        except devices.NotEnoughDevices as problem:
            self._rejection = str(problem)
            self.report("Warning", "UnexpectedAdmissionError", str(problem))
            return False
        return True

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

    async def _keep_volumes_fresh(self) -> None:
        """Renew tokens before they expire, and files that show labels or annotations when those change."""
        while True:
            due = self.sandbox.volumes.refresh_at
            seconds = max(1.0, (due - datetime.now(UTC)).total_seconds()) if due else None
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._metadata_changed.wait(), seconds)
            self._metadata_changed.clear()
            await self.refresh_volumes()

    async def refresh_volumes(self) -> None:
        try:
            await self.sandbox.volumes.refresh()
        except (CannotStart, *UNAVAILABLE) as error:
            self.report("Warning", "FailedMount", str(error))

    async def _publish_changes(self) -> None:
        last = False
        while not last:
            await self._changed.wait()
            self._changed.clear()
            last = self._over
            await self._record.publish(self.status)

    def status(self) -> JsonObject:
        if self._rejection:
            return {"phase": "Failed", "reason": "UnexpectedAdmissionError", "message": self._rejection}
        return self._record.status(self.init, self.main)
