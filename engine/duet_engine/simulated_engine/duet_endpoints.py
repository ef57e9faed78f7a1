"""The `/duet/*` endpoints, as the engine plugin serves them.

Invariant: what they say and accept are the documents of `duet_engine.protocol`; a bad document changes nothing.
"""

from __future__ import annotations

import os
from importlib.metadata import version
from typing import TYPE_CHECKING

from duet_engine.knobs import read_knobs
from duet_engine.protocol import (
    DrainRequest,
    DrainStatus,
    HookStatus,
    KnobsApplied,
    ProcessInfo,
    ProtocolError,
    Role,
    WorkerInfo,
)
from duet_engine.simulated_engine.answers import respond_error

if TYPE_CHECKING:
    from duet_engine.simulated_engine.engine import Engine
    from duet_engine.simulated_engine.http_server import Exchange
    from duet_engine.simulated_engine.telemetry import StateStream

ENGINE_NAME = "simulated-sglang"
SGLANG_VERSION = "0.5.23"
"""The version whose behaviour this engine has."""
NOT_SIMULATED = "not simulated"


class DuetEndpoints:
    """State, info, probes, drain and knobs of one worker."""

    def __init__(self, engine: Engine, stream: StateStream) -> None:
        self._engine = engine
        self._stream = stream

    def state(self, exchange: Exchange) -> None:
        if exchange.query.get("stream") in ("1", "true"):
            self._stream.add(exchange)
        else:
            exchange.respond(200, self._engine.state().write())

    def info(self, exchange: Exchange) -> None:
        engine, settings = self._engine, self._engine.settings
        deflection = "works" if settings.role is Role.DECODE else f"a {settings.role} worker takes no deflected prompts"
        info = WorkerInfo(
            **engine.stamp(),
            worker=settings.worker,
            role=settings.role,
            revision=settings.revision,
            engine_name=ENGINE_NAME,
            engine_version=SGLANG_VERSION,
            plugin_version=version("duet-serve"),
            plugin_active=True,
            processes=(
                ProcessInfo(
                    name="scheduler",
                    pid=os.getpid(),
                    hooks=(HookStatus(target="duet_engine.simulated_engine", active=True),),
                ),
            ),
            bootstrap_port=settings.bootstrap_port if settings.role is Role.PREFILL else None,
            gpu_partition=settings.gpu,
            features={
                "generate": {
                    "deflected": deflection,
                    "mixed": deflection,
                    "split": NOT_SIMULATED,
                    "look_ahead": NOT_SIMULATED,
                }
            },
            profile=engine.profile,
        )
        exchange.respond(200, info.write())

    def ready(self, exchange: Exchange) -> None:
        reason = self.unready_reason()
        exchange.respond_json(200 if reason is None else 503, {"ready": reason is None, "reason": reason})

    def live(self, exchange: Exchange) -> None:
        reason = self._engine.live()
        exchange.respond_json(200 if reason is None else 503, {"live": reason is None, "reason": reason})

    def unready_reason(self) -> str | None:
        """None when the worker takes new work."""
        engine = self._engine
        if not engine.ready:
            return "starting"
        if engine.drain.terminating:
            return "terminating"
        if engine.drain.active(engine.now()):
            return f"draining, asked for by {engine.drain.requested_by or 'nobody by name'}: {engine.drain.reason}"
        return None

    def drain(self, exchange: Exchange) -> None:
        engine = self._engine
        if exchange.method == "PUT":
            try:
                wanted = DrainRequest.read(exchange.body)
            except ProtocolError as error:
                respond_error(exchange, str(error), status=400, kind="BadRequest")
                return
            if wanted.worker not in ("", engine.settings.worker):
                respond_error(exchange, f"this is {engine.settings.worker}", status=409, kind="Conflict")
                return
            engine.start_drain(wanted)
        elif exchange.method == "DELETE":
            engine.cancel_drain()
        exchange.respond(200, self._drain_status().write())

    def _drain_status(self) -> DrainStatus:
        engine = self._engine
        return engine.drain.status(engine.scheduler.work(), engine.now(), engine.stamp())

    def knobs(self, exchange: Exchange) -> None:
        engine = self._engine
        if exchange.method != "PUT":
            exchange.respond(200, engine.knobs.write())
            return
        try:
            knobs = read_knobs(exchange.body)
        except ProtocolError as error:
            respond_error(exchange, str(error), status=400, kind="BadRequest")
            return
        changed = engine.apply_knobs(knobs)
        exchange.respond(
            200, KnobsApplied(**engine.stamp(), generation=engine.knobs.generation, changed=changed).write()
        )
