"""One simulated engine as a process: routes, cold start, drain on SIGTERM, faults for tests.

Invariant: until the cold start is over only probes and the drain are served; after SIGTERM no request that was
accepted is lost before the drain's deadline.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from duet_engine.authentication import OPEN_PATHS, Guard, ensure_local_token
from duet_engine.protocol import (
    DRAIN_PATH,
    INFO_PATH,
    KNOBS_PATH,
    LIVE_PATH,
    READY_PATH,
    STATE_PATH,
    RefusalReason,
    Role,
)
from duet_engine.simulated_engine.answers import respond_error, respond_refusal
from duet_engine.simulated_engine.bootstrap import DecodeRooms, PrefillRooms
from duet_engine.simulated_engine.duet_endpoints import DuetEndpoints
from duet_engine.simulated_engine.engine import Engine
from duet_engine.simulated_engine.generate import GenerateEndpoints, read_object
from duet_engine.simulated_engine.http_server import Exchange, HttpServer
from duet_engine.simulated_engine.parsing import BadRequest
from duet_engine.simulated_engine.request import Refused
from duet_engine.simulated_engine.sglang_endpoints import SglangEndpoints
from duet_engine.simulated_engine.telemetry import StateStream

if TYPE_CHECKING:
    from pathlib import Path

    from duet_engine.protocol import WorkerProfile
    from duet_engine.simulated_engine.settings import Settings

SETTLE_SECONDS = 0.25
"""How long a terminating worker must have been empty before it ends."""
POLL_SECONDS = 0.05
FAULTS_PATH = "/simulate/faults"

Route = Callable[[Exchange], None]


class App:
    """Wires an engine to its sockets."""

    def __init__(self, settings: Settings, profile: WorkerProfile) -> None:
        self.engine = Engine(settings, profile)
        self._settings = settings
        self.guard = _guard(settings)
        self._stream = StateStream(self.engine)
        self.engine.changed = self._stream.changed
        self._rooms = self._wire_rooms()
        self._server = self._http_server(self._handle)
        self._bootstrap_server = None if self._rooms is None else self._http_server(self._rooms.handle)
        self._routes = self._route_table()
        self._while_starting = {("GET", LIVE_PATH), ("GET", READY_PATH)} | {
            (method, DRAIN_PATH) for method in ("GET", "PUT", "DELETE")
        }

    async def run(self, started_at: float) -> int:
        """Serve until told to end; the exit status. `started_at` is when the process began, by `Engine.now`."""
        settings = self._settings
        if settings.local_token_file is not None:
            _write_local_token(settings.local_token_file)
        loop = asyncio.get_running_loop()
        terminated = asyncio.Event()
        for signal_number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signal_number, terminated.set)
        await self._listen()
        ready_at = started_at + cold_start_seconds(settings)
        loop.call_later(max(0.0, ready_at - Engine.now()), self._become_ready)
        await terminated.wait()
        return await self._terminate()

    async def _listen(self) -> None:
        """Open the sockets; a port that was 0 is known from now on."""
        settings = self._settings
        port = await _listen(self._server, settings.host, settings.port, option="--port")
        bootstrap_port = settings.bootstrap_port
        if self._bootstrap_server is not None:
            bootstrap_port = await _listen(
                self._bootstrap_server, settings.host, bootstrap_port, option="--bootstrap-port"
            )
        self.engine.settings = replace(settings, port=port, bootstrap_port=bootstrap_port)
        ports = f"{settings.host}:{port}, bootstrap port {bootstrap_port}"
        log(f"{settings.role} {settings.worker} listens on {ports} ({settings.gpu}, {settings.model})")
        if not self.guard.enforcing:
            log(f"anyone who reaches {settings.host} may use and drain this engine: no --trust-file is given")

    def _become_ready(self) -> None:
        self.engine.ready = True
        log(f"{self._settings.worker} is ready")
        self.engine.changed()

    async def _terminate(self) -> int:
        """Drain for good, then end; at the deadline whatever is left gets an error."""
        engine = self.engine
        engine.terminate()
        deadline = engine.now() + self._settings.drain_timeout_seconds
        log(f"{self._settings.worker} drains: {engine.scheduler.work().total} requests left")
        lost = 0
        while engine.scheduler.work().total or engine.drain.idle_seconds(engine.now()) < SETTLE_SECONDS:
            engine.drain.observe(engine.scheduler.work(), engine.now())
            if engine.now() > deadline:
                lost = engine.fail_all("The worker was told to end and its drain timeout has passed.")
                log(f"{self._settings.worker}: {lost} requests failed at the drain timeout")
                break
            await asyncio.sleep(POLL_SECONDS)
        self._stream.close()
        servers = [server for server in (self._server, self._bootstrap_server) if server is not None]
        await asyncio.gather(*(server.stop() for server in servers))
        return 1 if lost else 0

    def _http_server(self, route: Route) -> HttpServer:
        engine = self.engine
        return HttpServer(
            route,
            keep_alive_seconds=self._settings.keep_alive_seconds,
            draining=lambda: engine.drain.active(engine.now()),
        )

    def _wire_rooms(self) -> PrefillRooms | None:
        engine = self.engine
        if self._settings.role is Role.PREFILL:
            rooms = PrefillRooms(engine, timeout_seconds=self._settings.bootstrap_timeout_seconds)
            engine.delivered, engine.peer_gone = rooms.delivered, rooms.failed
            return rooms
        if self._settings.role is Role.DECODE:
            claims = DecodeRooms(engine)
            engine.claim, engine.peer_gone = claims.claim, claims.cancel
        return None

    def _route_table(self) -> dict[tuple[str, str], Route]:
        generate = GenerateEndpoints(self.engine, self._rooms)
        duet = DuetEndpoints(self.engine, self._stream)
        sglang = SglangEndpoints(self.engine)
        routes: dict[tuple[str, str], Route] = {
            ("POST", "/generate"): generate.native,
            ("POST", "/v1/completions"): generate.completions,
            ("POST", "/v1/chat/completions"): generate.chat,
            ("GET", "/v1/models"): sglang.models,
            ("GET", "/v1/loads"): sglang.loads,
            ("GET", "/metrics"): self._metrics,
            ("GET", "/ready"): sglang.ready,
            ("GET", "/health"): sglang.health,
            ("GET", "/health_generate"): sglang.health,
            ("GET", "/server_info"): sglang.server_info,
            ("GET", "/get_server_info"): sglang.server_info,
            ("GET", "/model_info"): sglang.model_info,
            ("GET", "/get_model_info"): sglang.model_info,
            ("POST", "/abort_request"): sglang.abort_request,
            ("POST", "/flush_cache"): sglang.flush_cache,
            ("GET", "/flush_cache"): sglang.flush_cache,
            ("GET", STATE_PATH): duet.state,
            ("GET", INFO_PATH): duet.info,
            ("GET", READY_PATH): duet.ready,
            ("GET", LIVE_PATH): duet.live,
        }
        routes |= {(method, DRAIN_PATH): duet.drain for method in ("GET", "PUT", "DELETE")}
        routes |= {(method, KNOBS_PATH): duet.knobs for method in ("GET", "PUT")}
        if self._settings.allow_faults:
            routes["POST", FAULTS_PATH] = self._faults
        return routes

    def _handle(self, exchange: Exchange) -> None:
        denial = self.guard.denial(exchange.path, exchange.headers.get("authorization"))
        if denial is not None:
            exchange.respond(denial.status, denial.body(), headers=denial.headers)
            return
        method = "GET" if exchange.method == "HEAD" else exchange.method
        route = self._routes.get((method, exchange.path))
        if route is None:
            self._no_route(exchange)
        elif self.engine.ready or (method, exchange.path) in self._while_starting:
            route(exchange)
        else:
            respond_refusal(exchange, Refused(RefusalReason.NOT_READY, "the engine is starting").refusal)

    def _no_route(self, exchange: Exchange) -> None:
        others = sorted(known for known, path in self._routes if path == exchange.path)
        if others:
            exchange.respond_json(405, {"detail": "Method Not Allowed"}, headers={"allow": ", ".join(others)})
        else:
            exchange.respond_json(404, {"detail": "Not Found"})

    def _metrics(self, exchange: Exchange) -> None:
        from duet_engine.simulated_engine import metrics  # a start-up without a scrape needn't load it

        exchange.respond(
            200, metrics.render(self.engine, self.guard.refusals.counts), content_type=metrics.CONTENT_TYPE
        )

    def _faults(self, exchange: Exchange) -> None:
        """`POST /simulate/faults` with any of crash, hang_seconds, fail_next_requests, slow_factor."""
        faults = self.engine.stepper.faults
        try:
            body = read_object(exchange.body)
            wanted = {name: _positive(body, name) for name in body if name != "crash"}
        except BadRequest as error:
            respond_error(exchange, str(error), status=400, kind="BadRequest")
            return
        if body.get("crash"):
            os._exit(1)
        if "hang_seconds" in wanted:
            faults.hang_until = self.engine.now() + wanted["hang_seconds"]
        faults.fail_next_requests = int(wanted.get("fail_next_requests", faults.fail_next_requests))
        faults.slow_factor = wanted.get("slow_factor", faults.slow_factor)
        self.engine.stepper.reschedule()
        exchange.respond_json(200, wanted)


def _guard(settings: Settings) -> Guard:
    return Guard(
        trust_file=settings.trust_file,
        shared_token_file=settings.shared_token_file,
        local_token_file=settings.local_token_file,
        # Faults are for tests, and only where they were asked for.
        open_paths=OPEN_PATHS | {FAULTS_PATH} if settings.allow_faults else OPEN_PATHS,
    )


def _write_local_token(path: Path) -> None:
    """For this container's own preStop, or end the process with the option to change."""
    try:
        ensure_local_token(path)
    except OSError as error:
        raise SystemExit(f"--local-token-file {path}: can't be written: {error.strerror}") from error


async def _listen(server: HttpServer, host: str, port: int, *, option: str) -> int:
    """Open one socket, or end the process with the option to change."""
    try:
        return await server.start(host, port)
    except OSError as error:
        raise SystemExit(f"--host {host}, {option} {port}: can't listen: {error.strerror}") from error


def _positive(body: dict[str, object], name: str) -> float:
    known = ("hang_seconds", "fail_next_requests", "slow_factor")
    value = body[name]
    if name not in known:
        raise BadRequest(f"{name}: unknown; known are crash, {', '.join(known)}")
    if not isinstance(value, int | float) or isinstance(value, bool) or value < 0:
        raise BadRequest(f"{name}: must be a number and not negative, got {value!r}")
    return float(value)


def cold_start_seconds(settings: Settings) -> float:
    """This worker's own cold start: the set time plus its seeded part of the spread."""
    seed = zlib.crc32(settings.worker.encode(), settings.seed)
    return settings.cold_start_seconds + settings.cold_start_spread_seconds * random.Random(seed).random()


def log(message: str) -> None:
    """One line for people, with the time."""
    print(time.strftime("%H:%M:%S"), message, flush=True)  # noqa: T201 - a pod's log is its standard output
