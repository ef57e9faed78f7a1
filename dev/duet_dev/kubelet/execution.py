"""`kubectl exec`: a command beside a container's process, its streams multiplexed over one WebSocket.

Each message begins with the number of its channel. The client's protocol is v5.channel.k8s.io (kubectl) or
v4.channel.k8s.io (client libraries); they differ only in how the client ends the standard input.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import pty
import struct
import subprocess
import termios
from dataclasses import dataclass
from typing import Any, BinaryIO

from aiohttp import WSMsgType, web
from multidict import MultiMapping

from duet_dev.kubelet.pods import Pods
from duet_dev.kubelet.processes import Process
from duet_dev.kubelet.run import Run

PROTOCOLS = ("v5.channel.k8s.io", "v4.channel.k8s.io")
STDIN, STDOUT, STDERR, STATUS, RESIZE, CLOSE = 0, 1, 2, 3, 4, 255
TRUE = ("1", "true")
BLOCK_BYTES = 2**15
LINGER_SECONDS = 1  # for output that a background child of the command still holds open


def exit_status(code: int) -> dict[str, Any]:
    """The Status object from which kubectl takes its own exit code."""
    if code == 0:
        return {"metadata": {}, "status": "Success"}
    return {
        "metadata": {},
        "status": "Failure",
        "reason": "NonZeroExitCode",
        "message": f"command terminated with non-zero exit code: {code}",
        "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
    }


@dataclass(frozen=True, slots=True)
class Streams:
    """Our ends of a command's streams, each output with its channel."""

    input: BinaryIO | None
    outputs: list[tuple[int, BinaryIO]]


ChildEnds = tuple[int | None, int, int]


def pipes(*, with_input: bool) -> tuple[Streams, ChildEnds]:
    outputs = {channel: os.pipe() for channel in (STDOUT, STDERR)}
    child_input, our_input = os.pipe() if with_input else (None, None)
    streams = Streams(
        os.fdopen(our_input, "wb", buffering=0) if our_input is not None else None,
        [(channel, os.fdopen(ends[0], "rb", buffering=0)) for channel, ends in outputs.items()],
    )
    return streams, (child_input, outputs[STDOUT][1], outputs[STDERR][1])


def terminal() -> tuple[Streams, ChildEnds]:
    ours, theirs = pty.openpty()
    streams = Streams(os.fdopen(os.dup(ours), "wb", buffering=0), [(STDOUT, os.fdopen(ours, "rb", buffering=0))])
    return streams, (theirs, theirs, theirs)


def resize(terminal_file: BinaryIO, size: dict[str, int]) -> None:
    window = struct.pack("HHHH", size["Height"], size["Width"], 0, 0)
    fcntl.ioctl(terminal_file, termios.TIOCSWINSZ, window)


class Execution:
    def __init__(self, pods: Pods) -> None:
        self._pods = pods

    async def handle(self, request: web.Request) -> web.WebSocketResponse:
        run = self._run(request)
        socket = web.WebSocketResponse(protocols=PROTOCOLS, max_msg_size=0)
        if not socket.can_prepare(request).ok:
            raise web.HTTPBadRequest(text="exec is served over WebSockets only; use kubectl 1.31 or newer")
        await socket.prepare(request)
        session = Session(socket, run=run, query=request.query)
        await socket.send_bytes(bytes([STDOUT]))  # tells the client that the connection stands
        code = await session.run()
        if not socket.closed:
            await socket.send_bytes(bytes([STATUS]) + json.dumps(exit_status(code)).encode())
            await socket.close()
        return socket

    def _run(self, request: web.Request) -> Run:
        info = request.match_info
        if pod := self._pods.find(info["namespace"], info["pod"]):
            for container in pod.containers:
                if container.name == info["container"] and container.current:
                    return container.current
        raise web.HTTPBadRequest(text=f"container {info['container']} of pod {info['pod']} is not running")


class Session:
    """One command with its streams; it ends with its connection."""

    def __init__(self, socket: web.WebSocketResponse, *, run: Run, query: MultiMapping[str]) -> None:
        self._socket, self._run = socket, run
        self._command = query.getall("command", [])
        self._terminal = query.get("tty") in TRUE
        self._wants_input = query.get("input") in TRUE

    async def run(self) -> int:
        process, streams = self._start()
        outputs = [asyncio.create_task(self._copy(channel, file)) for channel, file in streams.outputs]
        listener = asyncio.create_task(self._listen(process, streams.input))
        try:
            code = await process.wait()
            await asyncio.wait(outputs, timeout=LINGER_SECONDS)
            return code
        finally:
            process.kill()
            for task in (*outputs, listener):
                task.cancel()
            await asyncio.gather(*outputs, listener, return_exceptions=True)

    def _start(self) -> tuple[Process, Streams]:
        streams, ends = terminal() if self._terminal else pipes(with_input=self._wants_input)
        command = self._run.entering(self._command, terminal=self._terminal)
        env = self._run.launch.env | ({"TERM": "xterm"} if self._terminal else {})
        try:
            process = Process(
                command,
                env=env,
                stdin=ends[0] if ends[0] is not None else subprocess.DEVNULL,
                stdout=ends[1],
                stderr=ends[2],
                new_session=not self._terminal,
            )
        finally:
            for end in {end for end in ends if end is not None}:
                os.close(end)
        return process, streams

    async def _copy(self, channel: int, file: BinaryIO) -> None:
        """Send what the command writes, until it or the client is gone."""
        loop, reader = asyncio.get_running_loop(), asyncio.StreamReader(limit=BLOCK_BYTES)
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), file)
        with contextlib.closing(transport), contextlib.suppress(OSError):
            while block := await reader.read(BLOCK_BYTES):
                await self._socket.send_bytes(bytes([channel]) + block)

    async def _listen(self, process: Process, file: BinaryIO | None) -> None:
        """Pass on the client's input and window sizes; a client that leaves takes the command with it."""
        writer = await self._writer(file) if file else None
        async for message in self._socket:
            if message.type != WSMsgType.BINARY or not message.data:
                continue
            channel, content = message.data[0], message.data[1:]
            if channel == STDIN and writer and content:
                writer.write(content)
                with contextlib.suppress(OSError):
                    await writer.drain()
            elif channel == CLOSE and writer and content == bytes([STDIN]) and not self._terminal:
                writer.close()
            elif channel == RESIZE and file and self._terminal:
                resize(file, json.loads(content))
        process.kill()

    @staticmethod
    async def _writer(file: BinaryIO) -> asyncio.StreamWriter:
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, file)
        return asyncio.StreamWriter(transport, protocol, None, loop)
