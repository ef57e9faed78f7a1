"""A pod's object in the API as its kubelet writes it: status, and the deletion at the end.

Invariant: the kubelet has the last word on its conditions. The controller manager writes Ready=False while it takes a
node for lost, also after an absence of the API server, and nobody else would ever take that back.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from duet_dev.kubeapi import STRATEGIC_MERGE, UNAVAILABLE, ApiError, JsonObject, timestamp
from duet_dev.kubelet.container import Container
from duet_dev.kubelet.context import HOST_ADDRESS, Context
from duet_dev.kubelet.status import conditions, phase
from duet_dev.kubelet.transitions import Transitions

RETRY_SECONDS = 1
GONE, CONFLICT = 404, 409

log = logging.getLogger(__name__)


class Record:
    def __init__(self, item: JsonObject, *, context: Context, address: str) -> None:
        metadata = item["metadata"]
        self.item = item  # as the watch brought it last
        self.path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"
        self._context, self._address, self._uid = context, address, metadata["uid"]
        self._started = item["status"].get("startTime") or timestamp()
        self._transitions = Transitions(item["status"].get("conditions", []))
        self._published: JsonObject | None = None

    async def publish(self, status: Callable[[], JsonObject]) -> None:
        """Write the status as it is once the API server can be reached, unless it is there already."""

        async def write() -> None:
            present = status()
            if present != self._published or not self._shows(present):
                body = {"metadata": {"uid": self._uid}, "status": present}
                await self._context.api.patch(f"{self.path}/status", body, kind=STRATEGIC_MERGE)
                self._published = present

        await self._insist(write)

    def _shows(self, status: JsonObject) -> bool:
        """Whether the API has these conditions."""
        shown = {condition["type"]: condition["status"] for condition in self.item["status"].get("conditions", [])}
        return all(shown.get(each["type"]) == each["status"] for each in status.get("conditions", []))

    async def delete(self) -> None:
        async def delete() -> None:
            options = {"gracePeriodSeconds": 0, "preconditions": {"uid": self._uid}}
            await self._context.api.delete(self.path, options)

        await self._insist(delete)

    async def _insist(self, call: Callable[[], Awaitable[None]]) -> None:
        """Repeat through the API server's absences; a pod that is gone or another needs nothing more."""
        while True:
            await self._context.partition.over(self.item["spec"]["nodeName"])
            try:
                return await call()
            except UNAVAILABLE as error:
                if isinstance(error, ApiError) and error.status in (GONE, CONFLICT):
                    return None
                log.warning("%s: %r", self.path, error)
            await asyncio.sleep(RETRY_SECONDS)

    def status(self, init: Sequence[Container], main: Sequence[Container]) -> JsonObject:
        views = [container.view() for container in init], [container.view() for container in main]
        pod_phase = phase(self.item["spec"].get("restartPolicy", "Always"), *views)
        given = {c["type"]: c["status"] for c in self.item["status"].get("conditions", [])}
        gates = [gate["conditionType"] for gate in self.item["spec"].get("readinessGates", [])]
        wanted = conditions(pod_phase, *views, gates={gate: given.get(gate) == "True" for gate in gates})
        return {
            "observedGeneration": self.item["metadata"].get("generation"),
            "phase": pod_phase,
            "hostIP": HOST_ADDRESS,
            "hostIPs": [{"ip": HOST_ADDRESS}],
            "podIP": self._address,
            "podIPs": [{"ip": self._address}],
            "startTime": self._started,
            "conditions": [self._transitions.dated(condition) for condition in wanted],
            "initContainerStatuses": [container.status() for container in init],
            "containerStatuses": [container.status() for container in main],
        }
