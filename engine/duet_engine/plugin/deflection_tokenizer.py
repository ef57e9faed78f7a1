"""Where deflection meets SGLang's HTTP process: the mark on the way in, the refusal on the way out.

Invariant: a tokenized request bears the mark exactly when this task serves a deflected dispatch; what can't be
deflected is refused here, before the scheduler has heard of it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from duet_engine.plugin.deflection_admission import refuse
from duet_engine.plugin.deflection_intake import ARRIVAL
from duet_engine.plugin.deflection_request import mark
from duet_engine.plugin.deflection_support import SEVERAL_ANSWERS, not_supported_request
from duet_engine.plugin.hooks import Hook, Kind, Process
from duet_engine.plugin.sglang_types import Anything, Original, Tokenized
from duet_engine.protocol import ProtocolError, Refusal, RefusalReason

LOCAL_ROOM = 0
"""A decode worker's scheduler wants a room of every request; a deflected one's is taken off with the mark."""


class NotDeflectable(ValueError):
    """SGLang answers such errors itself; the intake puts the refusal in the answer's place."""


def tokenized(result: Tokenized, _manager: Anything, *_: Anything, **__: Anything) -> Anything:
    """`_create_tokenized_object`: mark what is deflected, and take a client's own mark off what isn't."""
    sampling = getattr(result, "sampling_params", None)
    if sampling is None or not hasattr(result, "bootstrap_room"):
        return result
    arrival = ARRIVAL.get()
    deflected = arrival is not None and arrival.dispatch.deflected
    if deflected:
        _refuse_if(not_supported_request(result))
        result.bootstrap_host, result.bootstrap_room = None, LOCAL_ROOM
    custom = sampling.custom_params
    if deflected or isinstance(custom, dict):
        sampling.custom_params = mark(custom, None if arrival is None else arrival.dispatch)
    return result


def several(*_: Anything, **__: Anything) -> None:
    """`_handle_batch_request`: one dispatch is one prompt and one answer."""
    arrival = ARRIVAL.get()
    if arrival is not None and arrival.dispatch.deflected:
        _refuse_if(f"can't be deflected: {SEVERAL_ANSWERS}")


def aborted(
    original: Original, manager: Anything, out: dict[str, Any], *arguments: Anything, **named: Anything
) -> Anything:
    """`_handle_abort_finish_reason`: note a scheduler's refusal for the intake."""
    arrival = ARRIVAL.get()
    reason = out["meta_info"]["finish_reason"] or {}
    if arrival is not None and arrival.dispatch.deflected and reason.get("status_code") == 503:
        with suppress(ProtocolError):  # SGLang's own 503 goes out as it is.
            arrival.refusal = Refusal.read(str(reason.get("message")))
    return original(manager, out, *arguments, **named)


def _refuse_if(problem: str | None) -> None:
    arrival = ARRIVAL.get()
    if problem is None or arrival is None:
        return
    arrival.refusal = refuse(RefusalReason.UNSUPPORTED, problem)
    raise NotDeflectable(problem)


def _hook(target: str, digest: str, function: Callable[..., Any], kind: Kind) -> Hook:
    path = f"managers.tokenizer_manager.TokenizerManager.{target}"
    return Hook(target=path, digest=digest, function=function, process=Process.SERVER, kind=kind)


HOOKS = (
    _hook("_create_tokenized_object", "4e62a4179d7a", tokenized, Kind.AFTER),
    _hook("_handle_batch_request", "3500d4b39e5b", several, Kind.BEFORE),
    _hook("_handle_abort_finish_reason", "69898a3eeed2", aborted, Kind.AROUND),
)
