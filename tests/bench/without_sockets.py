"""One gateway process without sockets: requests go in and come out as bytes, so that only its own work is timed.

All that it does for a request is there: parser, caller, body, queue, decision, what engines are sent. Only the kernel
is not.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from time import monotonic
from typing import Any, cast

from duet_engine.gateway.callers import Callers
from duet_engine.gateway.demand import Demand
from duet_engine.gateway.discovery import Member
from duet_engine.gateway.inference import Inference
from duet_engine.gateway.live_settings import LiveSettings
from duet_engine.gateway.loop_lag import LoopLag
from duet_engine.gateway.relay import Relay
from duet_engine.gateway.routing import Dispatcher
from duet_engine.gateway.server import PublicServer
from duet_engine.gateway.settings import Limits
from duet_engine.gateway.tokens import TokenEstimator
from duet_engine.gateway.upstream import Upstream
from duet_engine.gateway.wire.client_connection import ClientConnection
from duet_engine.gateway.wire.listener import Listener
from duet_engine.gateway.wire.pool import Address
from duet_engine.gateway.wire.server_connection import ServerConnection
from duet_engine.gateway.workers import Workers
from duet_engine.perf import catalog
from duet_engine.protocol import Role, WorkerInfo, WorkerState
from duet_engine.slo import Objective

MODEL = "m"


class Wire:
    """Stands for a transport: keeps what is written."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, _: str) -> None:
        """There is no socket."""

    def close(self) -> None:
        self.closed = True

    abort = close


class Inside:
    """The parts of one process, as `gateway.app` wires them, before idle workers of these roles."""

    def __init__(self, roles: Sequence[Role]) -> None:
        limits = Limits(window_seconds=1000.0)
        live = LiveSettings(objective=Objective(ttft_seconds=60.0, itl_seconds=10.0), model_names=(MODEL,))
        self.workers = _workers(roles)
        self.asked: list[Wire] = []
        """Connections on which engines were asked."""
        dispatcher = Dispatcher(
            self.workers, live=lambda: live, limits=limits, window_seconds=lambda: limits.window_seconds
        )
        upstream = Upstream(limits=limits, gateway_id="gateway-0", changed=dispatcher.wake)
        cast("Any", upstream)._pool.take = self._connection
        callers = Callers(None, lambda: live)
        inference = Inference(
            Relay(upstream, dispatcher, limits),
            callers=callers,
            demand=Demand(),
            tokens=TokenEstimator(),
            lag=LoopLag(),
            limits=limits,
            live=lambda: live,
        )
        public = PublicServer(inference, callers=callers, live=lambda: live, unready_reason=lambda: None)
        self.listener = Listener(public.handle, check=public.check, limits=limits, draining=lambda: False)

    def client(self) -> ServerConnection:
        """A new connection of a client."""
        connection = ServerConnection(self.listener)
        connection.connection_made(cast("asyncio.Transport", Wire()))
        return connection

    def _connection(self, _: Address) -> ClientConnection:
        wire, connection = Wire(), ClientConnection(lambda _: None)
        connection.connection_made(cast("asyncio.Transport", wire))
        self.asked.append(wire)
        return connection


def _workers(roles: Sequence[Role]) -> Workers:
    workers = Workers("gateway-0")
    come, _ = workers.update(
        [
            Member(uid=f"{role}-{at}", name=f"{role}-{at}", url=f"http://10.0.{at // 250}.{at % 250}:30000", role=role)
            for at, role in enumerate(roles)
        ]
    )
    for worker in come:
        role = worker.member.role
        profile = catalog.profile("h100-sxm", "Qwen/Qwen3-8B", role=role)
        worker.describe(WorkerInfo(worker=worker.name, role=role, profile=profile, prefix_cache=True))
        worker.heard(WorkerState(worker=worker.name, role=role, ready=True, deflection_active=True), monotonic())
    return workers


def request(prompt: str) -> bytes:
    """As a client sends it."""
    body = json.dumps({"model": MODEL, "prompt": prompt, "max_tokens": 64, "stream": True}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nUser-Agent: Go-http-client/1.1\r\n"
    return head + b"Content-Length: %d\r\nContent-Type: application/json\r\n\r\n%b" % (len(body), body)
