"""`kubectl port-forward`: connections to a pod's address, multiplexed over SPDY inside one WebSocket.

For each connection the client opens two streams with one request id: `error`, on which a failure is told in words,
and `data`. Both are closed when the connection is over.
"""

import asyncio
import contextlib

from aiohttp import WSMsgType, web

from duet_dev.kubelet import spdy
from duet_dev.kubelet.pods import Pods

PROTOCOL = "SPDY/3.1+portforward.k8s.io"
BLOCK_BYTES = 2**15
CONNECT_TIMEOUT_SECONDS = 5


class PortForward:
    def __init__(self, pods: Pods) -> None:
        self._pods = pods

    async def handle(self, request: web.Request) -> web.WebSocketResponse:
        info = request.match_info
        pod = self._pods.find(info["namespace"], info["pod"])
        if pod is None:
            raise web.HTTPNotFound(text=f"pod {info['pod']} is not known here")
        socket = web.WebSocketResponse(protocols=(PROTOCOL,), max_msg_size=0)
        if not socket.can_prepare(request).ok:
            raise web.HTTPBadRequest(text="ports are forwarded over WebSockets only; use kubectl 1.31 or newer")
        await socket.prepare(request)
        await Session(socket, pod.address).run()
        return socket


class Session:
    def __init__(self, socket: web.WebSocketResponse, address: str) -> None:
        self._socket, self._address = socket, address
        self._headers = spdy.HeaderWriter()
        self._streams: dict[str, dict[str, int]] = {}  # of requests that have only one of their two yet
        self._writers: dict[int, asyncio.StreamWriter] = {}  # by data stream, like the tasks
        self._tasks: dict[int, asyncio.Task[None]] = {}

    async def run(self) -> None:
        reader = spdy.Reader()
        try:
            async for message in self._socket:
                for frame in reader.feed(message.data) if message.type == WSMsgType.BINARY else ():
                    await self._take(frame)
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _take(self, frame: spdy.Frame) -> None:
        match frame:
            case spdy.Opened():
                await self._socket.send_bytes(self._headers.accepted(frame.stream))
                streams = self._streams.setdefault(frame.headers["requestid"], {})
                streams[frame.headers["streamtype"]] = frame.stream
                if len(streams) == 2:
                    del self._streams[frame.headers["requestid"]]
                    await self._connect(int(frame.headers["port"]), streams["data"], streams["error"])
            case spdy.Data(stream, content, last) if writer := self._writers.get(stream):
                with contextlib.suppress(OSError):
                    writer.write(content)
                    if last:
                        writer.write_eof()
                    await writer.drain()
            case spdy.Reset(stream) if task := self._tasks.get(stream):
                task.cancel()
            case spdy.Ping(identifier):
                await self._socket.send_bytes(spdy.ping(identifier))
            case spdy.GoAway():
                await self._socket.close()

    async def _connect(self, port: int, data_stream: int, error_stream: int) -> None:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
                reader, writer = await asyncio.open_connection(self._address, port)
        except (OSError, TimeoutError) as error:
            await self._send(error_stream, f"{self._address}:{port}: {error}".encode(), last=True)
            await self._send(data_stream, last=True)
            return
        self._writers[data_stream] = writer
        self._tasks[data_stream] = asyncio.create_task(self._copy(reader, data_stream, error_stream))

    async def _copy(self, reader: asyncio.StreamReader, data_stream: int, error_stream: int) -> None:
        """Send what the pod answers, until it ends or the client resets the stream."""
        try:
            with contextlib.suppress(OSError):
                while block := await reader.read(BLOCK_BYTES):
                    await self._send(data_stream, block)
        finally:
            self._writers.pop(data_stream).close()
            del self._tasks[data_stream]
            with contextlib.suppress(OSError):
                await self._send(data_stream, last=True)
                await self._send(error_stream, last=True)

    async def _send(self, stream: int, content: bytes = b"", *, last: bool = False) -> None:
        await self._socket.send_bytes(spdy.data(spdy.Data(stream, content, last)))
