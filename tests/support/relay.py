"""Stands between a client and the API server: notes every request that goes through, and can be cut.

It carries bytes and knows no more of HTTP than where a request begins; the client speaks plain HTTP to it on loopback.
A cut relay is like a broken network: connections stay open and nothing comes through, either way.
"""

import asyncio
import contextlib
import re
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import yaml

REQUEST = re.compile(rb"\A(GET|POST|PUT|PATCH|DELETE) (\S+) HTTP/1\.1\r\n")
CHUNK_BYTES = 65536


@dataclass(frozen=True, slots=True)
class Request:
    """One request that went through."""

    method: str
    path: str
    """With its query."""

    @property
    def is_write(self) -> bool:
        return self.method != "GET"


class Relay:
    """A running relay."""

    def __init__(self, url: str, ca: bytes) -> None:
        self._host, self._port = urlsplit(url).hostname, urlsplit(url).port
        self._tls = ssl.create_default_context(cadata=ca.decode())
        self._loop = asyncio.new_event_loop()
        self._open = asyncio.Event()
        self._open.set()
        self._connections: set[asyncio.Task[None]] = set()
        self.port = 0
        self.requests: list[Request] = []

    def cut(self) -> None:
        """Nothing comes through from now on."""
        self._loop.call_soon_threadsafe(self._open.clear)

    def mend(self) -> None:
        """What waited comes through, and all that follows."""
        self._loop.call_soon_threadsafe(self._open.set)

    def writes(self) -> list[Request]:
        """Those that change something, the operator's Lease apart."""
        return [each for each in self.requests if each.is_write and "/leases" not in each.path]

    def run(self, started: threading.Event) -> None:
        """In a thread of its own, until `end`."""
        try:
            self._loop.run_until_complete(self._serve(started))
        finally:
            self._loop.close()

    def end(self) -> None:
        """Cut all connections and return from `run`."""
        self._loop.call_soon_threadsafe(self._stop.set)

    async def _serve(self, started: threading.Event) -> None:
        self._stop = asyncio.Event()
        server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        started.set()
        await self._stop.wait()
        server.close()
        connections = tuple(self._connections)
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        writers = [writer]
        try:
            await self._open.wait()
            from_server, to_server = await asyncio.open_connection(self._host, self._port, ssl=self._tls)
            writers.append(to_server)
            ways = [
                asyncio.create_task(self._pump(reader, to_server, note=True)),
                asyncio.create_task(self._pump(from_server, writer, note=False)),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            pass  # Cancelled only at the end, and a stream's callback must not end so.
        finally:
            self._connections.discard(task)
            for each in writers:
                each.close()
                with contextlib.suppress(OSError, ssl.SSLError):
                    await each.wait_closed()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, note: bool) -> None:
        while chunk := await reader.read(CHUNK_BYTES):
            await self._open.wait()
            if note and (begun := REQUEST.match(chunk)):
                self.requests.append(Request(begun[1].decode(), begun[2].decode()))
            writer.write(chunk)
            await writer.drain()


@contextmanager
def relayed(kubeconfig: Path, folder: Path, *, ca: Path) -> Iterator[tuple[Relay, Path]]:
    """A relay for one client, and the kubeconfig that leads through it."""
    document = yaml.safe_load(kubeconfig.read_text())
    (cluster,) = document["clusters"]
    relay = Relay(cluster["cluster"]["server"], ca.read_bytes())
    started = threading.Event()
    thread = threading.Thread(target=relay.run, args=(started,), daemon=True)
    thread.start()
    assert started.wait(10)
    cluster["cluster"] = {"server": f"http://127.0.0.1:{relay.port}"}
    path = folder / f"kubeconfig-{relay.port}"
    path.write_text(yaml.safe_dump(document))
    try:
        yield relay, path
    finally:
        relay.end()
        thread.join(10)
