"""A decode worker with deflected prefill: who joins when, what is refused and with which reason."""

from dataclasses import replace
from itertools import pairwise

import pytest
from tests.support.step_times import LinearSteps
from tests.support.virtual_engine import VirtualWorker

from duet_engine.protocol import Knobs, RefusalReason, StepKind
from duet_engine.simulated_engine.decode_role import DecodeScheduler
from duet_engine.simulated_engine.request import Refused, Request, Room, Stage
from duet_engine.simulated_engine.scheduler import Limits
from duet_engine.simulated_engine.steps import Step

MODEL = LinearSteps(
    prefill_base_seconds=0.005,
    prefill_per_token_seconds=1e-4,
    prefill_per_token_squared_seconds=0.0,
    decode_base_seconds=0.010,
    decode_per_request_seconds=0.001,
    decode_per_context_token_seconds=0.0,
)
LIMITS = Limits(
    kv_capacity_tokens=10_000,
    max_running_requests=32,
    chunked_prefill_tokens=2048,
    reserved_decode_tokens=100,
    max_deflected_requests=2,
)
KNOBS = Knobs(generation=1, itl_milliseconds=50, beta_percent=100, chunk_candidates_tokens=(512, 256, 128))


def worker(limits: Limits = LIMITS, knobs: Knobs = KNOBS) -> tuple[DecodeScheduler, VirtualWorker]:
    scheduler = DecodeScheduler(model=MODEL, limits=limits, knobs=knobs)
    virtual = VirtualWorker(scheduler)

    def answer(request: Request) -> None:
        virtual.at(virtual.now, lambda: scheduler.arrived(request, virtual.now))

    virtual.on_claim = answer
    return scheduler, virtual


def transferred(prompt: int = 10, output: int = 500, *, name: str = "t") -> Request:
    room = Room(host="p", port=1, number=1)
    return Request(rid=name, prompt_tokens=prompt, max_new_tokens=output, output_tokens=output, room=room)


def deflected(prompt: int = 1000, output: int = 10, *, bounds: tuple[int, ...] = (), name: str = "d") -> Request:
    return Request(
        rid=name, prompt_tokens=prompt, max_new_tokens=output, output_tokens=output, deflected=True, chunk_bounds=bounds
    )


def test_an_empty_batch_takes_the_whole_chunk_whatever_the_schedule_says() -> None:
    _, virtual = worker()
    virtual.submit_at(0.0, deflected(prompt=3000, bounds=(128, 128)))
    virtual.run()
    assert [step.prefill_tokens for _, step in virtual.steps[:2]] == [2048, 952]


def test_beside_residents_a_chunk_is_the_largest_that_is_safe_and_within_the_schedule() -> None:
    _, virtual = worker()
    for number in range(10):  # decode alone 20 ms; 256 tokens more make 45.6 ms, 288 48.8 ms, 512 71.2 ms
        virtual.submit_at(0.0, transferred(name=f"t{number}"))
    virtual.submit_at(1.0, deflected(prompt=1000, bounds=(512, 200)))
    virtual.run()
    mixed = [step for _, step in virtual.steps if step.kind is StepKind.MIXED]
    assert [step.prefill_tokens for step in mixed] == [256, 200, 256, 288]
    assert max(step.predicted_seconds for step in mixed) <= 0.050


def test_transferred_requests_join_between_the_chunks_of_a_long_deflected_prompt() -> None:
    _, virtual = worker()
    virtual.submit_at(0.0, transferred(name="resident"))
    long, late = deflected(prompt=5000), transferred(name="late")
    virtual.submit_at(0.1, long)
    virtual.submit_at(0.5, late)
    virtual.run()
    assert virtual.ears[late].token_times[0] < virtual.ears[long].token_times[0] - 0.2


def test_only_one_deflected_prompt_is_chunked_at_a_time() -> None:
    _, virtual = worker()
    virtual.submit_at(0.0, transferred())
    first, second = deflected(name="first"), deflected(name="second")
    virtual.submit_at(0.1, first)
    virtual.submit_at(0.1, second)
    began: list[str] = []
    virtual.on_step = lambda step: began.extend(chunk.request.rid for chunk in step.chunks)
    virtual.run()
    assert began == sorted(began)


def test_kv_is_reserved_before_prefill_and_the_first_that_does_not_fit_holds_back_the_rest() -> None:
    scheduler, virtual = worker(limits=replace(LIMITS, kv_capacity_tokens=1_000))
    claimed: list[Request] = []
    virtual.on_claim = claimed.append
    first, large, small = transferred(500, 100), transferred(600, 100), transferred(10, 100)
    for request in (first, large, small):
        virtual.submit(request)
    assert scheduler.start_step(0.0) is None  # nothing has arrived, nothing to compute
    progress = scheduler.take_progress()
    assert progress.claims == [first]
    assert (scheduler.kv.used_tokens, scheduler.kv.reserved_tokens) == (500, 100)
    assert scheduler.work().decode_prealloc == 2
    scheduler.abort(first)
    scheduler.start_step(1.0)
    assert scheduler.take_progress().claims == [large, small]


def test_promised_tokens_count_against_the_next_request() -> None:
    scheduler, virtual = worker(limits=replace(LIMITS, kv_capacity_tokens=1_000))
    claimed: list[Request] = []
    virtual.on_claim = claimed.append
    first, second = transferred(500, 100), transferred(350, 100)
    virtual.submit(first)
    virtual.submit(second)
    scheduler.start_step(0.0)
    assert scheduler.take_progress().claims == [first]


def test_new_requests_wait_behind_retracted_ones() -> None:
    scheduler, virtual = worker(limits=replace(LIMITS, kv_capacity_tokens=400, reserved_decode_tokens=10))
    virtual.submit_at(0.0, transferred(20, 350, name="a"))
    virtual.submit_at(0.0, transferred(20, 350, name="b"))
    late = transferred(1, 1, name="late")
    virtual.at(3.0, lambda: virtual.submit(late))
    virtual.on_step = lambda step: in_order(scheduler, late, step)
    virtual.run()
    assert scheduler.totals.retracted_requests == 1
    assert virtual.ears[late].finished == 1


def in_order(scheduler: DecodeScheduler, late: Request, step: Step) -> None:
    assert not (scheduler.retracted and late.claimed), f"{late.rid} overtook in {step}"


def test_a_prompt_that_its_schedule_leaves_unfinished_is_the_only_one_in_its_step() -> None:
    _, virtual = worker()
    virtual.submit_at(0.0, transferred())
    virtual.submit_at(0.1, deflected(prompt=200, bounds=(100, 100), name="first"))
    virtual.submit_at(0.1, deflected(prompt=200, name="second"))
    virtual.run()
    mixed = [step for _, step in virtual.steps if step.kind is StepKind.MIXED]
    assert [(chunk.request.rid, chunk.tokens) for chunk in mixed[0].chunks] == [("first", 100)]


def refused(virtual: VirtualWorker, request: Request) -> RefusalReason:
    with pytest.raises(Refused) as raised:
        virtual.scheduler.submit(request, virtual.now)
    assert request.stage is Stage.NEW and request.kv_tokens == 0
    return raised.value.refusal.reason


def test_a_full_deflected_queue_refuses() -> None:
    _, virtual = worker()
    virtual.submit(deflected())
    virtual.submit(deflected())
    assert refused(virtual, deflected()) is RefusalReason.QUEUE_FULL


def test_deflection_off_refuses_and_lets_running_ones_end() -> None:
    scheduler, virtual = worker()
    running = deflected()
    virtual.submit(running)
    scheduler.apply_knobs(KNOBS.model_copy(update={"deflection_enabled": False}))
    assert refused(virtual, deflected()) is RefusalReason.DEFLECTION_OFF
    virtual.run()
    assert virtual.ears[running].finished == 1


def test_deflected_prompts_get_only_kv_that_nobody_waits_for() -> None:
    _, virtual = worker(limits=replace(LIMITS, kv_capacity_tokens=1_000))
    assert refused(virtual, deflected(prompt=950, output=100)) is RefusalReason.NO_KV
    virtual.submit(transferred(800, 100))
    virtual.submit(transferred(800, 100))
    virtual.scheduler.start_step(0.0)
    assert refused(virtual, deflected(prompt=1, output=1)) is RefusalReason.NO_KV


def crowded() -> tuple[DecodeScheduler, VirtualWorker]:
    """26 residents: decode alone takes 36 ms, 128 tokens more 48.8 ms; two residents more and no chunk is safe."""
    scheduler, virtual = worker()
    for number in range(28):
        virtual.submit_at(0.0, transferred(name=f"t{number}"))
    return scheduler, virtual


def test_a_lastingly_unsafe_worker_refuses_at_once() -> None:
    scheduler, virtual = crowded()
    late: list[RefusalReason] = []
    virtual.at(0.3, lambda: late.append(submit_reason(virtual, deflected(name="early"))))
    virtual.at(1.5, lambda: late.append(submit_reason(virtual, deflected(name="late"))))
    virtual.run()
    assert late == [None, RefusalReason.ITL_UNSAFE]
    assert scheduler.headroom_tokens_per_second() > 0  # empty again


def submit_reason(virtual: VirtualWorker, request: Request) -> RefusalReason | None:
    before = len(virtual.refusals)
    virtual.submit(request)
    return virtual.refusals[-1].refusal.reason if len(virtual.refusals) > before else None


def test_a_request_that_waited_too_long_for_a_safe_chunk_is_refused_with_nothing_done() -> None:
    _, virtual = crowded()
    waiting = deflected()
    virtual.submit_at(0.3, waiting)
    virtual.run()
    (failure,) = virtual.ears[waiting].failures
    assert failure.refusal is not None and failure.refusal.reason is RefusalReason.ITL_UNSAFE
    assert virtual.ears[waiting].tokens == 0 and waiting.chunks_done == 0


def test_a_started_prompt_is_never_refused_but_goes_on_slowly() -> None:
    """A chunk of the smallest size each two seconds, although none is safe beside 28 residents."""
    _, virtual = worker(limits=replace(LIMITS, kv_capacity_tokens=100_000))
    started = deflected(prompt=5000)
    virtual.submit_at(0.0, started)
    residents = [transferred(name=f"t{number}", output=1000, prompt=1) for number in range(28)]
    for request in residents:
        virtual.submit_at(0.05, request)
    virtual.run()
    assert [step.prefill_tokens for _, step in virtual.steps if step.chunks] == [2048, 2048, *[128] * 7, 8]
    moments = [time for time, step in virtual.steps if step.kind is StepKind.MIXED and step.prefill_tokens == 128]
    assert all(2.0 < later - earlier < 2.2 for earlier, later in pairwise(moments))
    assert virtual.ears[started].finished == 1
    assert virtual.ears[started].token_times[0] < min(virtual.ears[request].token_times[-1] for request in residents)


def test_where_even_one_resident_makes_any_chunk_unsafe_the_smallest_is_taken() -> None:
    """A slow slice: holding prompts back would help nobody, so they go on instead of being refused for ever."""
    _, virtual = worker(knobs=KNOBS.model_copy(update={"itl_milliseconds": 15}))
    virtual.submit_at(0.0, transferred())
    waiting = deflected(prompt=300)
    virtual.submit_at(0.1, waiting)
    virtual.run()
    assert virtual.ears[waiting].finished == 1
    assert [step.prefill_tokens for _, step in virtual.steps if step.kind is StepKind.MIXED] == [128, 128, 44]


def test_a_request_that_outgrows_kv_is_retracted_and_comes_back_whole() -> None:
    scheduler, virtual = worker(limits=replace(LIMITS, kv_capacity_tokens=400, reserved_decode_tokens=10))
    both = [transferred(20, 300, name="a"), transferred(20, 300, name="b")]
    for request in both:
        virtual.submit_at(0.0, request)
    virtual.run()
    virtual.check_ended()
    assert scheduler.totals.retracted_requests > 0
    assert [virtual.ears[request].tokens for request in both] == [300, 300]
