"""Events that `kubectl describe` shows; the same one about the same pod only once a minute."""

import asyncio
import contextlib
import time

from duet_dev.kubeapi import UNAVAILABLE, Api, JsonObject, timestamp

REPEAT_AFTER_SECONDS = 60
LONGEST_MESSAGE = 1000


class Events:
    def __init__(self, api: Api) -> None:
        self._api = api
        self._last: dict[tuple[str, str, str], float] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def report(self, pod: JsonObject, kind: str, reason: str, message: str) -> None:
        metadata, now = pod["metadata"], time.monotonic()
        self._last = {key: at for key, at in self._last.items() if now - at < REPEAT_AFTER_SECONDS}
        key = (metadata["uid"], reason, message)
        if key in self._last:
            return
        self._last[key] = now
        moment = timestamp()
        about = {"apiVersion": "v1", "kind": "Pod"} | {k: metadata[k] for k in ("name", "namespace", "uid")}
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"generateName": f"{metadata['name']}.", "namespace": metadata["namespace"]},
            "involvedObject": about,
            "type": kind,
            "reason": reason,
            "message": message[:LONGEST_MESSAGE],
            "source": {"component": "kubelet", "host": pod["spec"].get("nodeName", "")},
            "firstTimestamp": moment,
            "lastTimestamp": moment,
            "count": 1,
        }
        task = asyncio.create_task(self._post(f"/api/v1/namespaces/{metadata['namespace']}/events", event))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _post(self, path: str, event: JsonObject) -> None:
        with contextlib.suppress(*UNAVAILABLE):  # an event lost is an event lost, as with any kubelet
            await self._api.post(path, event)
