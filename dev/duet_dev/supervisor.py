"""The process inside a cluster's namespaces that starts everything, keeps it running and ends it.

Its standard input is a lifeline: when the other end closes, however the process there died, the cluster ends. The
line `detach` lets go of it. Its standard output says one line, when everything is ready.

Invariant: whatever ends this process, no child of it lives on.
"""

import argparse
import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from duet_dev import credentials, forward
from duet_dev.components import HOST, Files
from duet_dev.config import ClusterConfig, kubelet_document
from duet_dev.control import Answer, ControlServer
from duet_dev.controlplane import ControlPlane
from duet_dev.errors import DevError
from duet_dev.isolation import BY_NAME, Isolation
from duet_dev.kubeapi import Api
from duet_dev.services.directory import Address

API_SERVER_TARGET = "apiserver"


class Supervisor:
    """One cluster, from start to end."""

    def __init__(self, root: Path, isolation: Isolation) -> None:
        self.files = Files(root)
        self.config = ClusterConfig.read(root)
        self.isolation = isolation
        self.control_plane = ControlPlane(self.config, self.files, isolation.service_network)
        self.stop_requested = asyncio.Event()
        self._forwards: dict[str, asyncio.Server] = {}
        self._started = time.monotonic()
        self._closing = contextlib.AsyncExitStack()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop_requested.set)
        loop.add_reader(sys.stdin, self._read_lifeline)
        async with self._closing:
            control = ControlServer(self.files.control_socket, self._answer)
            self._closing.callback(control.close)
            self._closing.push_async_callback(self.control_plane.stop)
            starting = asyncio.create_task(self._start())
            stopping = asyncio.create_task(self.stop_requested.wait())
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                starting.cancel()
                await asyncio.wait({starting})
            elif error := starting.exception():
                stopping.cancel()
                raise error
            await stopping

    async def _start(self) -> None:
        document = kubelet_document(
            self.config,
            pod_network=self.isolation.pod_network,
            service_network=self.isolation.service_network,
            mounts=self.isolation.mounts,
        )
        self.files.nodes.write_text(yaml.safe_dump(document, sort_keys=False))
        await self.control_plane.start()
        self._api = await self._closing.enter_async_context(Api(self.files.kubeconfig(credentials.ADMIN)))
        sys.stdout.write(json.dumps({"ready_seconds": self.control_plane.ready_seconds}) + "\n")
        sys.stdout.flush()

    def _read_lifeline(self) -> None:
        word = os.read(sys.stdin.fileno(), 100)
        if not word:
            self.stop_requested.set()
        if not word or word.startswith(b"detach"):
            asyncio.get_running_loop().remove_reader(sys.stdin)

    async def _answer(self, request: dict[str, Any], sockets: list[socket.socket]) -> Answer:
        match request["do"]:
            case "stop":
                self.stop_requested.set()
                return {}
            case "status":
                return self._status()
            case "forward":
                await self._forward(request["target"], sockets[0])
                return {}
            case "signal":
                self._signal(request["component"], request["signal"])
                return {}
            case unknown:
                raise DevError(f"unknown request {unknown!r}")

    def _status(self) -> Answer:
        components = {
            name: {"running": child.running, "pid": child.pid, "restarts": child.restarts}
            for name, child in self.control_plane.children.items()
        }
        return {
            "name": self.config.name,
            "isolation": self.isolation.name,
            "seconds": round(time.monotonic() - self._started),
            "components": components,
            "forwards": list(self._forwards),
        }

    async def _forward(self, text: str, listener: socket.socket) -> None:
        if text == API_SERVER_TARGET:

            async def resolve() -> list[Address]:
                return [(HOST, self.control_plane.ports.api_server)]
        else:
            target = forward.Target.parse(text)

            async def resolve() -> list[Address]:
                return await target.resolve(self._api)

        host, port = listener.getsockname()
        kept = listener.dup()
        kept.setblocking(False)
        self._forwards[f"{text} at {host}:{port}"] = await forward.serve(kept, resolve)

    def _signal(self, component: str, number: int) -> None:
        if component not in self.control_plane.children:
            raise DevError(f"no component {component!r}; there are {', '.join(self.control_plane.children)}")
        self.control_plane.children[component].signal(number)


def main() -> None:
    parser = argparse.ArgumentParser(description="runs one local cluster; started by `python -m duet_dev up`")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--isolation", choices=BY_NAME, required=True)
    arguments = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(message)s")
    try:
        asyncio.run(Supervisor(arguments.root, BY_NAME[arguments.isolation]).run())
    except DevError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
