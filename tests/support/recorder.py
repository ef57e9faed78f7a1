"""What happened to an object's pools meanwhile, from watches: counts asked for, and the life of each worker.

Invariant: nothing between two looks is missed, so "never shrank" and "no worker was lost" can be told from "not seen".
"""

import asyncio
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from tests.support.duet_objects import Document
from tests.support.serving import Serving

from duet_dev.kubeapi import ApiError
from duet_operator.cluster import DEPLOYMENT, POD
from duet_operator.pods import DRAIN_STARTED_ANNOTATION
from duet_operator.resources.labels import OWNER, REVISION, ROLE

WORKER_ROLES = ("prefill", "decode")


@dataclass(slots=True)
class WorkerLife:
    """One engine pod, as far as it was seen."""

    name: str
    role: str
    revision: str
    has_been_ready: bool = False
    drains: int = 0
    work_at_drain: int = 0
    """Requests that it still held soon after a drain began."""
    restarts: int = 0
    leaving: bool = False
    gone: bool = False
    _drain_started: str | None = None


@dataclass(slots=True)
class Recorder:
    """Use as a block; what was there when it began is in it too."""

    serving: Serving
    counts: dict[str, list[int]] = field(default_factory=lambda: {role: [] for role in WORKER_ROLES})
    """Role -> each count that its Deployment asked for, in order."""
    seen_at: dict[str, list[float]] = field(default_factory=lambda: {role: [] for role in WORKER_ROLES})
    """Role -> when each of them was seen, by the monotonic clock."""
    workers: dict[str, WorkerLife] = field(default_factory=dict)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _known: asyncio.Event = field(default_factory=asyncio.Event)

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._watch_counts()), asyncio.create_task(self._watch_pods())]
        async with asyncio.timeout(10):
            await self._known.wait()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        for ended in await asyncio.gather(*self._tasks, return_exceptions=True):
            assert isinstance(ended, asyncio.CancelledError), ended

    def of(self, role: str) -> list[WorkerLife]:
        return [worker for worker in self.workers.values() if worker.role == role]

    @property
    def drained(self) -> list[WorkerLife]:
        """Workers whose drain was begun at least once."""
        return [worker for worker in self.workers.values() if worker.drains]

    @property
    def lost(self) -> list[WorkerLife]:
        """Workers that left or are leaving."""
        return [worker for worker in self.workers.values() if worker.leaving or worker.gone]

    async def _watch_counts(self) -> None:
        serving = self.serving
        selector = f"{OWNER}={serving.name}"
        async for event in serving.api.watch(DEPLOYMENT.path(serving.namespace), labelSelector=selector):
            role, replicas = event.object["metadata"]["labels"].get(ROLE, ""), event.object["spec"]["replicas"]
            if role in self.counts and self.counts[role][-1:] != [replicas]:
                self.counts[role].append(replicas)
                self.seen_at[role].append(time.monotonic())
            if all(self.counts.values()):
                self._known.set()

    async def _watch_pods(self) -> None:
        serving = self.serving
        selector = f"{OWNER}={serving.name},{ROLE} in (prefill,decode)"
        async for event in serving.api.watch(POD.path(serving.namespace), labelSelector=selector):
            await self._see(event.object, gone=event.kind == "DELETED")

    async def _see(self, pod: Document, *, gone: bool) -> None:
        metadata, labels = pod["metadata"], pod["metadata"]["labels"]
        worker = self.workers.setdefault(
            metadata["uid"], WorkerLife(metadata["name"], labels[ROLE], labels.get(REVISION, ""))
        )
        conditions = {each["type"]: each["status"] for each in pod["status"].get("conditions", ())}
        worker.has_been_ready |= conditions.get("Ready") == "True"
        worker.leaving |= "deletionTimestamp" in metadata
        worker.gone |= gone
        worker.restarts = sum(each["restartCount"] for each in pod["status"].get("containerStatuses", ()))
        started = (metadata.get("annotations") or {}).get(DRAIN_STARTED_ANNOTATION)
        if started and started != worker._drain_started:
            worker.drains += 1
            worker.work_at_drain = max(worker.work_at_drain, await self._work(pod))
        worker._drain_started = started

    async def _work(self, pod: Document) -> int:
        try:
            return await self.serving.requests_held(pod)
        except ApiError:
            return 0
