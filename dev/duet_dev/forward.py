"""Carry connections of a listening socket to an address inside the cluster.

A listening socket keeps the network namespace it was made in. So a port of the host's loopback address is opened
outside, handed in, and served here: one hop, and no process stays outside.

Invariant: where a connection goes is looked up when it comes, so that a forward may be older than its target.
"""

import asyncio
import logging
import re
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from duet_dev.errors import DevError
from duet_dev.kubeapi import UNAVAILABLE, Api, JsonObject
from duet_dev.services.directory import Address
from duet_dev.services.relay import Caller

Resolve = Callable[[], Awaitable[list[Address]]]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Target:
    """`service/NAMESPACE/NAME:PORT` or `pod/NAMESPACE/NAME:PORT`; a service's port may be a name."""

    kind: str
    namespace: str
    name: str
    port: str

    @classmethod
    def parse(cls, text: str) -> "Target":
        found = re.fullmatch(r"(service|pod)/([^/:]+)/([^/:]+):([^/:]+)", text)
        if not found or (found[1] == "pod" and not found[4].isdigit()):
            raise DevError(f"cannot forward {text!r}: write service/NAMESPACE/NAME:PORT or pod/NAMESPACE/NAME:NUMBER")
        return cls(*found.groups())

    async def resolve(self, api: Api) -> list[Address]:
        """Where it is now; empty, with a line in the log, where it isn't anywhere."""
        try:
            document = await api.get(f"/api/v1/namespaces/{self.namespace}/{self.kind}s/{self.name}")
        except UNAVAILABLE as error:
            log.warning("%s: %s", self, error)
            return []
        address, port = self._of_pod(document) if self.kind == "pod" else self._of_service(document)
        if address in (None, "None") or port is None:
            log.warning("%s has no such address", self)
            return []
        return [(address, port)]

    def _of_pod(self, document: JsonObject) -> tuple[Any, int]:
        return document["status"].get("podIP"), int(self.port)

    def _of_service(self, document: JsonObject) -> tuple[Any, int | None]:
        ports = document["spec"].get("ports", [])
        named = (port["port"] for port in ports if self.port in (str(port["port"]), port.get("name")))
        return document["spec"].get("clusterIP"), next(named, None)


async def serve(listener: socket.socket, resolve: Resolve) -> asyncio.Server:
    """Relay each connection of the listener to where `resolve` says at that moment."""
    return await asyncio.get_running_loop().create_server(lambda: Caller(resolve), sock=listener)
