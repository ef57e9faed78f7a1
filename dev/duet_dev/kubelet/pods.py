"""The pods of this kubelet: who they are, which address each has, which one is meant.

Invariant: two pods never share an address, and an address that a status already shows stays with its pod.
"""

import asyncio
import itertools
import logging

from duet_dev.kubeapi import JsonObject, WatchEvent
from duet_dev.kubelet.context import Context
from duet_dev.kubelet.pod import Pod
from duet_dev.kubelet.sources import CONFIG_MAPS, SECRETS

log = logging.getLogger(__name__)


class Pods:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._pods: dict[str, Pod] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._addresses = itertools.cycle(map(str, context.config.pod_cidr.hosts()))
        self._known_addresses: set[str] = set()

    def find(self, namespace: str, name: str) -> Pod | None:
        return next((p for p in self._pods.values() if (p.namespace, p.name) == (namespace, name)), None)

    async def reserve_known_addresses(self) -> None:
        """Pods that outlived an earlier kubelet keep their addresses; nobody else may get them."""
        listing = await self._context.api.get("/api/v1/pods")
        self._known_addresses = {ip for item in listing["items"] if (ip := item["status"].get("podIP"))}

    async def follow(self, node: str) -> None:
        """Run what the API server assigns to the node, for ever."""
        async for event in self._context.api.watch("/api/v1/pods", fieldSelector=f"spec.nodeName={node}"):
            await self._context.partition.over(node)
            try:
                self._handle(event)
            except Exception:
                log.exception("pod %s", event.object["metadata"]["name"])

    def _handle(self, event: WatchEvent) -> None:
        uid = event.object["metadata"]["uid"]
        if event.kind == "DELETED":
            if pod := self._pods.get(uid):
                pod.vanish()
            return
        if uid not in self._pods:
            self._adopt(uid, event.object)
        self._pods[uid].update(event.object)

    def _adopt(self, uid: str, item: JsonObject) -> None:
        address = item["status"].get("podIP") or self._free_address()
        pod = self._pods[uid] = Pod(item, context=self._context, address=address)
        task = self._tasks[uid] = asyncio.create_task(pod.run())
        task.add_done_callback(lambda done: self._forget(uid, done))

    def _forget(self, uid: str, task: asyncio.Task[None]) -> None:
        del self._tasks[uid]
        pod = self._pods.pop(uid)
        if not task.cancelled() and (error := task.exception()):
            log.error("%s ended with an error", pod.path, exc_info=error)

    def _free_address(self) -> str:
        taken = self._known_addresses | {pod.address for pod in self._pods.values()}
        for address in itertools.islice(self._addresses, self._context.config.pod_cidr.num_addresses):
            if address not in taken:
                return address
        raise RuntimeError(f"podCIDR {self._context.config.pod_cidr} has no free address left")

    async def keep_fresh(self, resource: str) -> None:
        """Show changed ConfigMaps or Secrets in the volumes of running pods, for ever."""
        async for event in self._context.api.watch(f"/api/v1/{resource}", metadata_only=True):
            metadata = event.object["metadata"]
            for pod in list(self._pods.values()):
                wanted = (resource, metadata["name"]) in pod.sandbox.volumes.references
                if pod.prepared and pod.namespace == metadata["namespace"] and wanted:
                    await pod.refresh_volumes()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for node in self._context.nodes:
                group.create_task(self.follow(node))
            for resource in (CONFIG_MAPS, SECRETS):
                group.create_task(self.keep_fresh(resource))

    async def end_all(self) -> None:
        """Abandon every pod: their processes end, their objects stay, as when a node's power goes."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
