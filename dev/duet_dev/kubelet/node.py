"""A node that this kubelet plays: its object, its capacity, and the heartbeat that keeps it Ready."""

import asyncio
import logging
import platform

from duet_dev.kubeapi import (
    STRATEGIC_MERGE,
    UNAVAILABLE,
    ApiError,
    JsonObject,
    precise_timestamp,
    timestamp,
)
from duet_dev.kubelet.config import Node
from duet_dev.kubelet.context import HOST_ADDRESS, Context

LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
LEASE_SECONDS = 40
ALREADY_EXISTS = 409
# The API server passes WebSockets on to nodes that declare this, instead of translating them to SPDY.
DECLARED_FEATURES = ["ExtendWebSocketsToKubelet"]

HEALTHY = {
    "Ready": ("True", "KubeletReady", "kubelet is posting ready status"),
    "MemoryPressure": ("False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
    "DiskPressure": ("False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
    "PIDPressure": ("False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
}
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
NODE_INFO = {
    "kubeletVersion": "v1.36.3-process",
    "containerRuntimeVersion": "process://1",
    "osImage": "local processes",
    "operatingSystem": "linux",
    "architecture": ARCHITECTURE,
    **dict.fromkeys(("bootID", "machineID", "systemUUID", "kernelVersion", "kubeProxyVersion"), ""),
}

log = logging.getLogger(__name__)


def healthy_conditions() -> list[JsonObject]:
    now = timestamp()
    return [
        {
            "type": kind,
            "status": status,
            "reason": reason,
            "message": message,
            "lastHeartbeatTime": now,
            "lastTransitionTime": now,
        }
        for kind, (status, reason, message) in HEALTHY.items()
    ]


def is_ready(node: JsonObject) -> bool:
    found = node["status"].get("conditions", [])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in found)


class NodeAgent:
    def __init__(self, node: Node, *, context: Context, port: int) -> None:
        self._node, self._context, self._api, self._port = node, context, context.api, port
        self._path = f"/api/v1/nodes/{node.name}"

    async def register(self) -> None:
        labels = {
            "kubernetes.io/hostname": self._node.name,
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": ARCHITECTURE,
            **self._node.labels,
        }
        metadata = {"name": self._node.name, "labels": labels}
        lease = {"holderIdentity": self._node.name, "leaseDurationSeconds": LEASE_SECONDS}
        if not await self._create("/api/v1/nodes", {"metadata": metadata, "spec": {"taints": self._node.taints}}):
            await self._api.patch(self._path, {"metadata": {"labels": labels}})
        await self._create(LEASES, {"metadata": {"name": self._node.name}, "spec": lease})
        await self._api.patch(f"{self._path}/status", {"status": self._status()}, kind=STRATEGIC_MERGE)

    async def _create(self, path: str, item: JsonObject) -> bool:
        try:
            await self._api.post(path, item)
        except ApiError as error:
            if error.status != ALREADY_EXISTS:
                raise
            return False
        return True

    def _status(self) -> JsonObject:
        return {
            "capacity": self._node.resources,
            "allocatable": self._node.resources,
            # No Hostname: the API server would prefer it, and nobody resolves it.
            "addresses": [{"type": "InternalIP", "address": HOST_ADDRESS}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self._port}},
            "nodeInfo": NODE_INFO,
            "declaredFeatures": DECLARED_FEATURES,
            "conditions": healthy_conditions(),
        }

    async def beat(self) -> None:
        """Renew the lease for ever, and the node's conditions whenever the controller had given it up."""
        while True:
            await self._context.partition.over(self._node.name)
            try:
                renewal = {"spec": {"renewTime": precise_timestamp()}}
                await self._api.patch(f"{LEASES}/{self._node.name}", renewal)
                if not is_ready(await self._api.get(self._path)):
                    status = {"status": {"conditions": healthy_conditions()}}
                    await self._api.patch(f"{self._path}/status", status, kind=STRATEGIC_MERGE)
            except UNAVAILABLE as error:
                log.warning("heartbeat of %s: %s", self._node.name, error)
            await asyncio.sleep(self._context.config.heartbeat_seconds)
