"""SGLang's change of role while it runs (`--enable-pd-role-switch`, `POST /pd_role_switch`), made safe to call.

Invariant: only a drained worker switches: SGLang checks that it is idle, not that nobody sends it anything. A switch
that failed half-way can't be taken back: the worker stays unready, says why, and its liveness asks for a restart.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from duet_engine.protocol import DrainPhase

if TYPE_CHECKING:
    from duet_engine.plugin.asgi import Application, Call, Message
    from duet_engine.plugin.server_side import ServerSide

ROLE_SWITCH_PATH = "/pd_role_switch"


async def switch(call: Call, side: ServerSide, app: Application) -> None:
    """Let SGLang switch, and look at what it answers."""
    if side.drain.phase(side.work(), time.monotonic()) is not DrainPhase.DRAINED:
        await call.error(409, "drain this worker first (PUT /duet/drain), until it holds nothing", kind="Conflict")
        return
    answer: list[bytes] = []
    statuses: list[int] = []

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])
        else:
            answer.append(message.get("body", b""))
        await call.send(message)

    await app(call.scope, call.receive, send)
    side.failed_switch = failure(statuses[0] if statuses else 500, b"".join(answer))


def failure(status: int, answer: bytes) -> str | None:
    """Why this worker is of no use any more; None after a switch and after a refusal that changed nothing."""
    if status == 200:
        return None
    try:
        document = json.loads(answer)
    except ValueError:
        document = {}
    if not isinstance(document, dict):
        document = {}
    # A document that SGLang can't read is answered before any scheduler hears of it.
    if document.get("safe_to_restore") is True or document.get("object") == "error":
        return None
    return f"a role switch failed half-way: {answer[:200].decode(errors='replace')}"
