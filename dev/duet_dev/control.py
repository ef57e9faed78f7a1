"""How the outside asks a running cluster for something: one packet there, one packet back, on a unix socket.

Unix sockets with a path are shared between network namespaces, may carry open sockets along, and tell the id of
the process at the other end as this side sees it.

Invariant: a request that fails is answered with its reason; it never ends the supervisor. Sockets that came along are
closed after the answer: a handler that keeps one keeps a duplicate.
"""

import asyncio
import contextlib
import json
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from duet_dev.errors import DevError

Answer = dict[str, Any]
Handler = Callable[[dict[str, Any], list[socket.socket]], Awaitable[Answer]]

LONGEST_PACKET_BYTES = 64 * 1024
REPLY_TIMEOUT_SECONDS = 30.0


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """The same file under a name that always fits into the 107 bytes of a socket address."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


class ControlServer:
    """Answers requests until closed."""

    def __init__(self, path: Path, handler: Handler) -> None:
        self._handler = handler
        self._tasks: set[asyncio.Task[None]] = set()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setblocking(False)
        path.unlink(missing_ok=True)
        with _short(path) as name:
            self._socket.bind(name)
        self._socket.listen()
        asyncio.get_running_loop().add_reader(self._socket, self._accept)

    def _accept(self) -> None:
        connection, _ = self._socket.accept()
        connection.setblocking(False)
        loop = asyncio.get_running_loop()

        def readable() -> None:
            loop.remove_reader(connection)
            task = loop.create_task(self._answer(connection))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        loop.add_reader(connection, readable)

    async def _answer(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            packet, descriptors, _, _ = socket.recv_fds(connection, LONGEST_PACKET_BYTES, 4)
            sockets = [socket.socket(fileno=descriptor) for descriptor in descriptors]
            try:
                answer = await self._handler(json.loads(packet), sockets)
            except (DevError, KeyError, ValueError, OSError) as error:
                answer = {"error": f"{error}"}
            finally:
                for given in sockets:
                    given.close()
            connection.send(json.dumps(answer).encode())

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
        for task in self._tasks:
            task.cancel()


def request(path: Path, document: dict[str, Any], sockets: tuple[socket.socket, ...] = ()) -> Answer:
    """Ask and wait for the answer; a DevError when it is a refusal or nobody is there."""
    with _connected(path) as connection:
        connection.settimeout(REPLY_TIMEOUT_SECONDS)
        try:
            packet = json.dumps(document).encode()
            socket.send_fds(connection, [packet], [given.fileno() for given in sockets])
            reply = connection.recv(LONGEST_PACKET_BYTES)
        except OSError as error:
            raise DevError(f"the cluster's supervisor doesn't answer: {error}") from error
    if not reply:
        raise DevError("the cluster's supervisor ended without an answer")
    answer: Answer = json.loads(reply)
    if "error" in answer:
        raise DevError(answer["error"])
    return answer


def server_pid(path: Path) -> int:
    """The id, as seen from here, of the process that listens."""
    with _connected(path) as connection:
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid: int = struct.unpack("3i", credentials)[0]
    return pid


@contextlib.contextmanager
def _connected(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        try:
            with _short(path) as name:
                connection.connect(name)
        except OSError as error:
            raise DevError(f"no cluster runs in {path.parent}") from error
        yield connection
