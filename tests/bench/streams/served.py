"""Streams of small chunks from uvicorn, SGLang's own HTTP server: one flush for each event.

Run: `served.py PORT CHUNKS PACE`, as `streams serve`; uvicorn must be installed.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

CHUNKS, PACE_SECONDS = int(sys.argv[2]), float(sys.argv[3].removesuffix("ms")) / 1e3
CHOICE = {"index": 0, "text": " word", "logprobs": None, "finish_reason": None}
EVENT = {"id": "0" * 32, "object": "text_completion", "created": 1_700_000_000, "choices": [CHOICE], "model": "m"}
LOAD = {"num_running_reqs": 0, "num_waiting_reqs": 0, "num_used_tokens": 0, "max_total_num_tokens": 10_000_000}
INFO = {
    "model_path": "m",
    "served_model_name": "m",
    "max_total_num_tokens": 10_000_000,
    "max_running_requests": 100_000,
    "chunked_prefill_size": 8192,
    "disaggregation_mode": "null",
    "tp_size": 1,
    "dp_size": 1,
    "version": "0.5.23",
    "is_generation": True,
}
DOCUMENTS = {
    "/health": {},
    "/health_generate": {},
    "/abort_request": {},
    **dict.fromkeys(("/server_info", "/get_server_info", "/model_info", "/get_model_info"), INFO),
    "/v1/loads": {"loads": [{"dp_rank": 0, **LOAD}]},
    "/v1/models": {"object": "list", "data": [{"id": "m", "object": "model"}]},
}


async def application(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    streams = scope["path"] == "/v1/completions"
    kind = b"text/event-stream" if streams else b"application/json"
    status = 200 if streams or scope["path"] in DOCUMENTS else 404
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]})
    if streams:
        event = b"data: %b\n\n" % json.dumps(EVENT).encode()
        for _ in range(CHUNKS):
            await send({"type": "http.response.body", "body": event, "more_body": True})
            await asyncio.sleep(PACE_SECONDS)
    last = b"data: [DONE]\n\n" if streams else json.dumps(DOCUMENTS.get(scope["path"], {})).encode()
    await send({"type": "http.response.body", "body": last})


if __name__ == "__main__":
    uvicorn.run(application, port=int(sys.argv[1]), log_level="warning", lifespan="off")  # type: ignore[arg-type]
