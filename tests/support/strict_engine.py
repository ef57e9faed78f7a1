"""A worker that takes nothing but what a gateway of ours would send, byte by byte, and complains about the rest.

It looks like a plain SGLang server. Each request's head must be exactly the gateway's own, its body a JSON object with
a random id of the gateway's, and nothing may stand between one request and the next.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter

from tests.support.hostile import MARK

_POST = re.compile(
    rb"POST (/v1/completions|/v1/chat/completions|/generate|/abort_request) HTTP/1\.1\r\n"
    rb"host: 127\.0\.0\.1:\d+\r\ncontent-type: application/json\r\ncontent-length: (\d+)\r\n\r\n"
)
_GET = re.compile(rb"GET (/duet/info|/server_info|/ready|/v1/loads)[? ]")
_RID = re.compile(r"[0-9a-f]{32}")
_DOCUMENTS = {
    b"/server_info": {"model_path": "m", "disaggregation_mode": "null", "max_total_num_tokens": 10**8},
    b"/ready": {},
    b"/v1/loads": {"loads": [{"num_running_reqs": 0, "max_total_num_tokens": 10**8}]},
}
EVENTS = (
    b'data: {"choices":[{"text":"a","finish_reason":null}],"usage":null}\n\n',
    b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":1}}\n\ndata: [DONE]\n\n',
)


class StrictEngine:
    """Serves and judges."""

    def __init__(self) -> None:
        self.complaints: list[str] = []
        self.served: Counter[str] = Counter()
        self.url = ""
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0, backlog=1000)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def close(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await _head(reader):
                if (get := _GET.match(head)) is not None:
                    self._answer_get(get[1], writer)
                elif (post := _POST.fullmatch(head)) is not None:
                    self._judge(post[1].decode(), await reader.readexactly(int(post[2])), writer)
                else:
                    self.complaints.append(f"not a head of ours: {head!r}")
                    return
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError) as error:
            if isinstance(error, asyncio.IncompleteReadError) and error.partial:
                self.complaints.append(f"cut off: {error.partial[:200]!r}")
        except asyncio.CancelledError:  # the loop ends
            return
        finally:
            writer.close()

    def _answer_get(self, path: bytes, writer: asyncio.StreamWriter) -> None:
        document = _DOCUMENTS.get(path)
        body = json.dumps(document).encode()
        status = b"200 OK" if document is not None else b"404 Not Found"
        writer.write(b"HTTP/1.1 %b\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body))

    def _judge(self, path: str, body: bytes, writer: asyncio.StreamWriter) -> None:
        self.served[path] += 1
        fields = json.loads(body)
        rid = fields.get("rid") if isinstance(fields, dict) else None
        if MARK in body or not isinstance(rid, str) or not _RID.fullmatch(rid):
            self.complaints.append(f"{path}: {body[:300]!r}")
        if path == "/abort_request":
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        elif fields.get("stream"):
            writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            for event in EVENTS:
                writer.write(b"%x\r\n%b\r\n" % (len(event), event))
            writer.write(b"0\r\n\r\n")
        else:
            answer = (
                b'{"choices":[{"text":"a","finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":1}}'
            )
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(answer), answer))


async def _head(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise
        return b""
