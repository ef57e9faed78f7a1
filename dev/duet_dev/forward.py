"""Carry connections of a listening socket to an address inside the cluster.

A listening socket keeps the network namespace it was made in. So a port of the host's loopback address is opened
outside, handed in, and served here: one hop, and no process stays outside.

Invariant: a side that reads slowly slows the other side down; one direction may end while the other goes on.
"""

import asyncio
import re
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from duet_dev.errors import DevError
from duet_dev.kubeapi import UNAVAILABLE, Api

CHUNK_BYTES = 64 * 1024
CONNECT_TIMEOUT_SECONDS = 10.0

Address = tuple[str, int]
Resolve = Callable[[], Awaitable[Address]]


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

    async def resolve(self, api: Api) -> Address:
        """Where it is now; a ConnectionError where it isn't anywhere."""
        try:
            document = await api.get(f"/api/v1/namespaces/{self.namespace}/{self.kind}s/{self.name}")
        except UNAVAILABLE as error:
            raise ConnectionError(f"{self.kind} {self.namespace}/{self.name}: {error}") from error
        if self.kind == "pod":
            address = document["status"].get("podIP")
            port = int(self.port)
        else:
            address = document["spec"].get("clusterIP")
            port = self._service_port(document["spec"].get("ports", []))
        if not address or address == "None":
            raise ConnectionError(f"{self.kind} {self.namespace}/{self.name} has no address")
        return address, port

    def _service_port(self, ports: list[dict[str, object]]) -> int:
        for port in ports:
            if self.port in (str(port["port"]), port.get("name")):
                return int(str(port["port"]))
        raise ConnectionError(f"service {self.namespace}/{self.name} has no port {self.port}")


async def serve(listener: socket.socket, resolve: Resolve) -> asyncio.Server:
    """Relay each connection of the listener to where `resolve` says at that moment."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await _relay(reader, writer, await resolve())
        except* OSError:
            _reset(writer)
        finally:
            writer.close()

    return await asyncio.start_server(connected, sock=listener)


async def _relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, address: Address) -> None:
    async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
        far_reader, far_writer = await asyncio.open_connection(*address)
    try:
        async with asyncio.TaskGroup() as directions:
            directions.create_task(_pump(reader, far_writer))
            directions.create_task(_pump(far_reader, writer))
    except* OSError:
        _reset(far_writer)
        raise
    finally:
        far_writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(CHUNK_BYTES):
        writer.write(chunk)
        await writer.drain()
    writer.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    """End with a reset, not with an end of stream: nobody may take a cut answer for a whole one."""
    linger_for_no_time = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_for_no_time)
    writer.transport.abort()
