"""Prefill workers compute what was claimed and expose the last chunk's transfer; unified workers put prompts first."""

from dataclasses import replace

import pytest
from tests.support.step_times import LinearSteps
from tests.support.virtual_engine import VirtualWorker

from duet_engine.protocol import StepKind
from duet_engine.simulated_engine.prefill_role import PrefillScheduler
from duet_engine.simulated_engine.request import Request, Room
from duet_engine.simulated_engine.scheduler import Limits, UnifiedScheduler

MODEL = LinearSteps(
    prefill_base_seconds=0.01,
    prefill_per_token_seconds=1e-4,
    prefill_per_token_squared_seconds=0.0,
    decode_base_seconds=0.010,
    decode_per_request_seconds=0.0,
    decode_per_context_token_seconds=0.0,
    transfer_base_seconds=0.002,
    transfer_per_token_seconds=1e-5,
)
LIMITS = Limits(
    kv_capacity_tokens=10_000, max_running_requests=8, chunked_prefill_tokens=1000, reserved_decode_tokens=100
)


def request(prompt: int, output: int = 10, *, name: str = "r") -> Request:
    room = Room(host="p", port=1, number=1)
    return Request(rid=name, prompt_tokens=prompt, max_new_tokens=output, output_tokens=output, room=room)


def test_a_prompt_waits_for_its_claim() -> None:
    scheduler = PrefillScheduler(model=MODEL, limits=LIMITS)
    scheduler.submit(request(500), 0.0)
    assert scheduler.start_step(0.0) is None
    assert scheduler.work().prefill_bootstrap == 1
    assert scheduler.queued_prefill_tokens() == 500


def test_only_the_last_chunk_s_transfer_is_exposed() -> None:
    scheduler = PrefillScheduler(model=MODEL, limits=LIMITS)
    virtual = VirtualWorker(scheduler)
    prompt = request(2500)
    virtual.submit(prompt)
    scheduler.claimed(prompt, 0.0)
    virtual.run()
    computed_at = MODEL.prompt_seconds(2500, chunk_tokens=1000)
    assert virtual.ears[prompt].token_times == pytest.approx([computed_at + MODEL.transfer_seconds(500)])


def test_a_slow_link_delays_the_hand_over_and_holds_kv() -> None:
    slow = replace(MODEL, transfer_per_token_seconds=1e-3)
    scheduler = PrefillScheduler(model=slow, limits=LIMITS)
    virtual = VirtualWorker(scheduler)
    first, second = request(1000, name="first"), request(1000, name="second")
    for prompt in (first, second):
        virtual.submit(prompt)
        scheduler.claimed(prompt, 0.0)
    held: list[int] = []
    virtual.at(1.0, lambda: held.append(scheduler.kv.used_tokens))
    virtual.run()
    assert held == [2000]
    # one second of link time each, one after the other, from the end of the first's only step (0.11 s)
    assert virtual.ears[first].token_times == pytest.approx([1.112])
    assert virtual.ears[second].token_times == pytest.approx([2.112])


def test_prompts_wait_for_kv_that_is_still_leaving() -> None:
    scheduler = PrefillScheduler(model=MODEL, limits=replace(LIMITS, kv_capacity_tokens=1200))
    virtual = VirtualWorker(scheduler)
    first, second = request(1000, name="first"), request(1000, name="second")
    for prompt in (first, second):
        virtual.submit(prompt)
        scheduler.claimed(prompt, 0.0)
    virtual.run()
    virtual.check_ended()
    began_second = next(time for time, step in virtual.steps if step.chunks[0].request is second)
    assert began_second >= virtual.ears[first].token_times[0]


def test_a_unified_worker_computes_prompts_before_it_goes_on_decoding() -> None:
    virtual = VirtualWorker(UnifiedScheduler(model=MODEL, limits=LIMITS))
    virtual.submit_at(0.0, request(100, 50, name="first"))
    virtual.submit_at(0.105, request(1500, 50, name="second"))
    virtual.run()
    kinds = [step.kind for _, step in virtual.steps]
    second_began = next(i for i, (_, step) in enumerate(virtual.steps) if step.prefill_tokens == 1000)
    assert kinds[second_began : second_began + 2] == [StepKind.PREFILL, StepKind.PREFILL]
    assert set(kinds) == {StepKind.PREFILL, StepKind.DECODE}


def test_small_prompts_share_a_step() -> None:
    virtual = VirtualWorker(UnifiedScheduler(model=MODEL, limits=LIMITS))
    for number in range(4):
        virtual.submit(request(300, 1, name=str(number)))
    virtual.run()
    assert [len(step.chunks) for _, step in virtual.steps] == [4, 1]
    assert [step.prefill_tokens for _, step in virtual.steps] == [1000, 200]


def test_a_retracted_request_of_a_unified_worker_computes_everything_again() -> None:
    limits = replace(LIMITS, kv_capacity_tokens=400, reserved_decode_tokens=10)
    scheduler = UnifiedScheduler(model=MODEL, limits=limits)
    virtual = VirtualWorker(scheduler)
    both = [request(20, 300, name="a"), request(20, 300, name="b")]
    for prompt in both:
        virtual.submit(prompt)
    virtual.run()
    virtual.check_ended()
    assert scheduler.totals.retracted_requests > 0
    assert scheduler.totals.prefill_tokens > 40
    assert [virtual.ears[prompt].tokens for prompt in both] == [300, 300]
