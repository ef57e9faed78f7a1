"""Who is taken and who is given up: room for everything that was promised, and no endless waiting."""

from dataclasses import replace

import pytest

from duet_engine.plugin.deflection_admission import KvNeed, Room, refusal_on_arrival, refusal_while_waiting
from duet_engine.protocol import Refusal, RefusalReason

ROOM = Room(
    free_tokens=2000,
    awaited_tokens=0,
    retracted_requests=0,
    occupied_slots=3,
    slots=8,
    deflected_requests=1,
    most_deflected_requests=4,
    reserved_decode_tokens=512,
    page_tokens=16,
)
NEED = KvNeed(uncached_tokens=1000, output_tokens=4096)


def on_arrival(
    room: Room, need: KvNeed = NEED, *, not_supported: str | None = None, enabled: bool = True
) -> Refusal | None:
    return refusal_on_arrival(need, room, not_supported=not_supported, enabled=enabled)


def test_what_fits_is_taken_to_the_last_page() -> None:
    needed = 1008 + 16 + 512
    assert on_arrival(replace(ROOM, free_tokens=needed)) is None
    refusal = on_arrival(replace(ROOM, free_tokens=needed - 1))
    assert refusal is not None and refusal.reason is RefusalReason.NO_KV
    assert f"{needed} KV tokens needed, {needed - 1} free" in refusal.message


def test_a_short_answer_reserves_no_more_than_itself() -> None:
    assert on_arrival(replace(ROOM, free_tokens=1008 + 16 + 10), KvNeed(uncached_tokens=1000, output_tokens=10)) is None


@pytest.mark.parametrize("change", [{"awaited_tokens": 600}, {"retracted_requests": 1}])
def test_transfers_that_wait_and_requests_that_were_retracted_come_first(change: dict[str, int]) -> None:
    refusal = on_arrival(replace(ROOM, **change))
    assert refusal is not None and refusal.reason is RefusalReason.NO_KV


@pytest.mark.parametrize("change", [{"occupied_slots": 8}, {"deflected_requests": 4}])
def test_a_full_worker_says_so(change: dict[str, int]) -> None:
    refusal = on_arrival(replace(ROOM, **change))
    assert refusal is not None and refusal.reason is RefusalReason.QUEUE_FULL


def test_what_is_off_or_unproven_here_is_named() -> None:
    off = on_arrival(ROOM, enabled=False)
    assert off is not None and off.reason is RefusalReason.DEFLECTION_OFF and "deflection_enabled" in off.message
    unproven = on_arrival(ROOM, not_supported="deflection doesn't work with HiCache")
    assert unproven is not None and unproven.message == "deflection doesn't work with HiCache"


def while_waiting(
    waited: float, *, unsafe: float | None = None, kv_short: bool = False, bound: int | None = None
) -> Refusal | None:
    return refusal_while_waiting(
        waited_seconds=waited,
        unsafe_seconds=unsafe,
        kv_short=kv_short,
        bound_tokens=bound,
        most_wait_seconds=2.0,
        most_unsafe_seconds=0.5,
    )


def test_one_that_only_stands_in_line_waits_on() -> None:
    assert while_waiting(100.0) is None


def test_who_waits_for_a_safe_chunk_is_told_after_a_while_and_who_comes_late_at_once() -> None:
    assert while_waiting(1.0, unsafe=1.0) is None
    told = while_waiting(2.1, unsafe=2.1)
    assert told is not None and told.reason is RefusalReason.ITL_UNSAFE
    late = while_waiting(0.0, unsafe=0.6)
    assert late is not None and late.reason is RefusalReason.ITL_UNSAFE
    assert while_waiting(0.0, unsafe=0.4) is None


def test_a_chunk_budget_of_zero_waits_and_is_refused() -> None:
    assert while_waiting(1.9, bound=0) is None
    told = while_waiting(2.1, bound=0)
    assert told is not None and told.reason is RefusalReason.ITL_UNSAFE


def test_missing_kv_is_waited_for_a_while() -> None:
    assert while_waiting(1.9, kv_short=True) is None
    told = while_waiting(2.1, kv_short=True)
    assert told is not None and told.reason is RefusalReason.NO_KV
