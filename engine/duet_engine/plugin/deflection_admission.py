"""Whether a decode worker takes a deflected request, and when it gives up one that waits.

Invariant: pure. A request is refused at once or not at all for want of room: what is taken has its KV in sight, beside
what running requests, transfers and earlier deflected prompts will need. A request of which a chunk has run is never
refused.
"""

from __future__ import annotations

from dataclasses import dataclass

from duet_engine.plugin.deflection_chunks import ceil_to_page
from duet_engine.protocol import Refusal, RefusalReason

RETRY_AFTER_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class KvNeed:
    """What a deflected request will hold."""

    uncached_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What a worker has left, at the moment a request comes."""

    free_tokens: int
    """KV that is free or can be freed, less what running and transferring requests and deflected prompts will take."""
    awaited_tokens: int
    """KV that earlier P/D requests wait for: they come first."""
    retracted_requests: int
    """Requests that lost their KV and want it back."""
    occupied_slots: int
    """Requests that run or will."""
    slots: int
    deflected_requests: int
    """Deflected requests whose prompts aren't all computed."""
    most_deflected_requests: int
    reserved_decode_tokens: int
    page_tokens: int


def refusal_on_arrival(need: KvNeed, room: Room, *, not_supported: str | None, enabled: bool) -> Refusal | None:
    """Why a request isn't taken; None takes it."""
    if not_supported is not None:
        return refuse(RefusalReason.DEFLECTION_OFF, not_supported)
    if not enabled:
        return refuse(RefusalReason.DEFLECTION_OFF, "deflection is off on this worker (knob deflection_enabled)")
    if room.deflected_requests >= room.most_deflected_requests or room.occupied_slots >= room.slots:
        return refuse(
            RefusalReason.QUEUE_FULL,
            f"{room.deflected_requests} deflected prompts wait (at most {room.most_deflected_requests}) and "
            f"{room.occupied_slots} of {room.slots} places are taken",
        )
    needed = needed_tokens(need, room)
    if room.retracted_requests or needed + room.awaited_tokens > room.free_tokens:
        return refuse(
            RefusalReason.NO_KV,
            f"{needed} KV tokens needed, {max(0, room.free_tokens)} free, {room.awaited_tokens} awaited by earlier "
            f"requests, {room.retracted_requests} requests retracted",
        )
    return None


def needed_tokens(need: KvNeed, room: Room) -> int:
    """KV of its prompt in whole pages, and the reserve that every decoding request gets."""
    prompt_tokens = ceil_to_page(need.uncached_tokens, room.page_tokens) + room.page_tokens
    return prompt_tokens + min(need.output_tokens, room.reserved_decode_tokens)


def outstanding_tokens(uncached_tokens: int, page_tokens: int) -> int:
    """KV that a taken prompt has yet to get: nobody else may be promised it."""
    return ceil_to_page(uncached_tokens, page_tokens) + page_tokens


def refusal_while_waiting(
    *,
    waited_seconds: float,
    unsafe_seconds: float | None,
    kv_short: bool,
    bound_tokens: int | None,
    most_wait_seconds: float,
    most_unsafe_seconds: float,
) -> Refusal | None:
    """Why a request whose first chunk hasn't run is given up; None lets it wait on.

    `unsafe_seconds` is how long no chunk has been safe, None while one is. Whoever comes when that has lasted a while
    already needn't wait to hear it.
    """
    over = waited_seconds > most_wait_seconds
    if unsafe_seconds is not None and (over or unsafe_seconds - waited_seconds > most_unsafe_seconds):
        return refuse(
            RefusalReason.ITL_UNSAFE, f"no chunk has been safe beside the residents for {unsafe_seconds:.1f} s"
        )
    if over and bound_tokens == 0:
        return refuse(RefusalReason.ITL_UNSAFE, f"its chunk budget is 0 tokens; waited {most_wait_seconds:g} s")
    if over and kv_short:
        return refuse(RefusalReason.NO_KV, f"no KV became free for it in {most_wait_seconds:g} s")
    return None


def refuse(reason: RefusalReason, message: str) -> Refusal:
    return Refusal(reason=reason, message=message, retry_after_seconds=RETRY_AFTER_SECONDS)
