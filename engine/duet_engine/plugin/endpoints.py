"""The `/duet/*` endpoints of a real engine, and what SGLang's readiness says beside them.

Invariant: what they say and accept are the documents of `duet_engine.protocol`; a bad document changes nothing.
"""

from __future__ import annotations

from duet_engine.knobs import read_knobs
from duet_engine.plugin.asgi import Call, Endpoint
from duet_engine.plugin.documents import worker_info
from duet_engine.plugin.server_side import ServerSide
from duet_engine.plugin.state_stream import StateStream
from duet_engine.protocol import (
    DRAIN_PATH,
    INFO_PATH,
    KNOBS_PATH,
    LIVE_PATH,
    READY_PATH,
    STATE_PATH,
    DrainRequest,
    KnobsApplied,
    ProtocolError,
)


class DuetEndpoints:
    """State, info, probes, drain and knobs of one worker."""

    def __init__(self, side: ServerSide) -> None:
        self._side = side
        self._stream = StateStream(side)

    def routes(self) -> dict[tuple[str, str], Endpoint]:
        routes: dict[tuple[str, str], Endpoint] = {
            ("GET", STATE_PATH): self.state,
            ("GET", INFO_PATH): self.info,
            ("GET", READY_PATH): self.ready,
            ("GET", LIVE_PATH): self.live,
        }
        routes |= {(method, DRAIN_PATH): self.drain for method in ("GET", "PUT", "DELETE")}
        return routes | {(method, KNOBS_PATH): self.knobs for method in ("GET", "PUT")}

    async def state(self, call: Call) -> None:
        if call.query in (b"stream=1", b"stream=true"):
            await self._stream.serve(call)
        else:
            await call.respond(200, self._side.state().write())

    async def info(self, call: Call) -> None:
        await call.respond(200, worker_info(self._side).write())

    async def ready(self, call: Call) -> None:
        reason = self._side.unready_reason()
        await call.json(200 if reason is None else 503, {"ready": reason is None, "reason": reason})

    async def live(self, call: Call) -> None:
        reason = self._side.stuck_reason()
        await call.json(200 if reason is None else 503, {"live": reason is None, "reason": reason})

    async def drain(self, call: Call) -> None:
        side = self._side
        if call.method == "PUT":
            try:
                wanted = DrainRequest.read(await call.body() or b"")
            except ProtocolError as error:
                await call.error(400, str(error), kind="BadRequest")
                return
            if wanted.worker not in ("", side.worker):
                await call.error(409, f"this is {side.worker}", kind="Conflict")
                return
            side.start_drain(wanted)
        elif call.method == "DELETE":
            side.drain.cancel()
        await call.respond(200, side.drain_status().write())

    async def knobs(self, call: Call) -> None:
        side = self._side
        if call.method != "PUT":
            await call.respond(200, side.knobs.write())
            return
        try:
            changed = await side.apply_knobs(read_knobs(await call.body() or b""))
        except ProtocolError as error:
            await call.error(400, str(error), kind="BadRequest")
        except (TimeoutError, RuntimeError) as error:
            await call.error(503, f"nothing was changed: {error or 'no answer'}", kind="ServiceUnavailable")
        else:
            applied = KnobsApplied(**side.stamp(), generation=side.knobs.generation, changed=changed)
            await call.respond(200, applied.write())
