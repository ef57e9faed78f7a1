"""`kubectl logs`: a container's output from its file, its tail, its previous run, or as it comes."""

import asyncio
import os
from pathlib import Path
from typing import BinaryIO

from aiohttp import web

from duet_dev.kubelet.context import Context, log_folder
from duet_dev.kubelet.pods import Pods

POLL_SECONDS = 0.1
BLOCK_BYTES = 2**16


def seek_tail(file: BinaryIO, lines: int) -> None:
    """Move to where the last so many lines begin."""
    position = file.seek(0, os.SEEK_END)
    tail = b""
    while position > 0 and tail.count(b"\n") <= lines:
        step = min(BLOCK_BYTES, position)
        position -= step
        file.seek(position)
        tail = file.read(step) + tail
    start = len(tail) - tail.endswith(b"\n")
    for _ in range(lines):
        start = tail.rfind(b"\n", 0, start)
        if start < 0:
            break
    file.seek(min(0, start + 1 - len(tail)), os.SEEK_END)


class Logs:
    def __init__(self, *, pods: Pods, context: Context) -> None:
        self._pods, self._context = pods, context

    async def handle(self, request: web.Request) -> web.StreamResponse:
        path = self._file(request)
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        if request.query.get("follow") == "true":
            response.enable_chunked_encoding()
        await response.prepare(request)
        with path.open("rb") as file:
            if "tailLines" in request.query:
                seek_tail(file, int(request.query["tailLines"]))
            left = int(request.query.get("limitBytes", 2**62))
            while True:
                live = self._live(request, path)
                while left and (block := file.read(min(BLOCK_BYTES, left))):
                    left -= len(block)
                    await response.write(block)
                if not left or not live or request.query.get("follow") != "true":
                    return response
                await asyncio.sleep(POLL_SECONDS)

    def _file(self, request: web.Request) -> Path:
        info = request.match_info
        pod = self._pods.find(info["namespace"], info["pod"])
        containers = pod.containers if pod else []
        container = next((c for c in containers if c.name == info["container"]), None)
        if pod is None or container is None:
            raise web.HTTPNotFound(text=f"container {info['container']} of pod {info['pod']} is not known here")
        run = container.restarts
        if request.query.get("previous") == "true":
            run -= 1
        path = log_folder(self._context.root, pod.item) / container.name / f"{run}.log"
        if not path.exists():
            which = "previous terminated container" if run < container.restarts else "container"
            raise web.HTTPBadRequest(text=f'{which} "{container.name}" in pod "{pod.name}" not found')
        return path

    def _live(self, request: web.Request, path: Path) -> bool:
        """Whether the run that writes this file is still on."""
        info = request.match_info
        pod = self._pods.find(info["namespace"], info["pod"])
        return pod is not None and any(
            c.current is not None and c.name == info["container"] and path.stem == str(c.restarts)
            for c in pod.containers
        )
