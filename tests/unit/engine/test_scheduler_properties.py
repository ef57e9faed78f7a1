"""Whatever comes in whatever order: KV is never exceeded, no token is lost, every accepted request ends, and residents'
gaps are kept."""

import itertools
import random

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.step_times import LinearSteps
from tests.support.virtual_engine import VirtualWorker

from duet_engine.policy.chunks import DecodeBatch, protects_anyone
from duet_engine.protocol import Knobs, StepKind
from duet_engine.simulated_engine.decode_role import DecodeScheduler
from duet_engine.simulated_engine.prefill_role import PrefillScheduler
from duet_engine.simulated_engine.request import Request, Room
from duet_engine.simulated_engine.scheduler import Limits, Scheduler, UnifiedScheduler
from duet_engine.simulated_engine.steps import Step

CAPACITY = 2_000
SMALL = Limits(
    kv_capacity_tokens=CAPACITY,
    max_running_requests=6,
    chunked_prefill_tokens=300,
    reserved_decode_tokens=64,
    max_deflected_requests=4,
)
KNOBS = Knobs(generation=1, itl_milliseconds=20, chunk_candidates_tokens=(256, 128, 64, 32))
MODEL = LinearSteps(
    prefill_base_seconds=0.005,
    prefill_per_token_seconds=5e-5,
    prefill_per_token_squared_seconds=2e-8,
    decode_base_seconds=0.006,
    decode_per_request_seconds=2e-4,
    decode_per_context_token_seconds=2e-6,
    transfer_base_seconds=0.002,
    transfer_per_token_seconds=1e-5,
)

NAMES = itertools.count()


@st.composite
def requests(draw: st.DrawFn) -> tuple[Request, float, float | None]:
    """A request that fits, when it comes, and after how long its client gives up, if it does."""
    prompt = draw(st.integers(1, 1_200))
    limit = draw(st.integers(1, min(700, CAPACITY - prompt)))
    request = Request(
        rid=f"r{next(NAMES)}",
        prompt_tokens=prompt,
        max_new_tokens=limit,
        output_tokens=draw(st.integers(1, limit)),
        deflected=draw(st.booleans()),
        chunk_bounds=tuple(draw(st.lists(st.integers(1, 400), max_size=4))),
        room=Room(host="p", port=1, number=next(NAMES)),
    )
    return request, draw(st.floats(0, 3)), draw(st.none() | st.floats(0, 6))


Traffic = list[tuple[Request, float, float | None]]
TRAFFIC = st.lists(requests(), min_size=1, max_size=25)


def play(worker: VirtualWorker, traffic: Traffic) -> None:
    for request, arrival, patience in traffic:
        worker.submit_at(arrival, request)
        if patience is not None:
            worker.at(arrival + patience, lambda request=request: worker.abort(request))
    worker.run()
    worker.check_ended()


@settings(max_examples=30, deadline=None)
@given(TRAFFIC)
def test_a_unified_worker_loses_nothing(traffic: Traffic) -> None:
    scheduler = UnifiedScheduler(model=MODEL, limits=SMALL)
    worker = VirtualWorker(scheduler)
    worker.on_step = at_most_one_prompt_is_left_unfinished
    play(worker, traffic)
    kept = [request for request in worker.ears if request not in worker.aborted]
    if scheduler.totals.retracted_requests == 0 and len(kept) == len(worker.ears):
        assert scheduler.totals.prefill_tokens == sum(request.prompt_tokens for request in kept)


def at_most_one_prompt_is_left_unfinished(step: Step) -> None:
    assert step.prefill_tokens <= SMALL.chunked_prefill_tokens
    assert all(chunk.last for chunk in step.chunks[:-1])


@settings(max_examples=30, deadline=None)
@given(TRAFFIC, st.integers(0, 2**32))
def test_a_prefill_worker_hands_over_every_claimed_prompt_once(traffic: Traffic, seed: int) -> None:
    scheduler = PrefillScheduler(model=MODEL, limits=SMALL)
    worker = VirtualWorker(scheduler)
    delivered: list[Request] = []
    worker.on_delivered = delivered.append
    delays = random.Random(seed)
    for request, arrival, patience in traffic:
        claim_at = arrival + delays.random()
        worker.at(claim_at, lambda request=request: scheduler.claimed(request, worker.now))
        if patience is None:
            continue
        worker.at(arrival + patience, lambda request=request: worker.abort(request))
    for request, arrival, _ in traffic:
        worker.submit_at(arrival, request)
    worker.run()
    worker.check_ended()
    assert len(delivered) == len(set(delivered))
    assert {request for request in worker.ears if request not in worker.aborted} == set(delivered)
    for request in delivered:
        assert request.computed_tokens >= request.prompt_tokens


def decode_worker(delays: random.Random, *, loss: float = 0.0) -> tuple[DecodeScheduler, VirtualWorker]:
    """A decode worker whose prefill peers answer each claim after a while, or never and then the client gives up."""
    scheduler = DecodeScheduler(model=MODEL, limits=SMALL, knobs=KNOBS)
    worker = VirtualWorker(scheduler)

    def answer(request: Request) -> None:
        after = worker.now + delays.uniform(0.001, 0.5)
        if delays.random() < loss:
            worker.at(after, lambda: worker.abort(request))
        else:
            worker.at(after, lambda: scheduler.arrived(request, worker.now))

    worker.on_claim = answer
    return scheduler, worker


@settings(max_examples=50, deadline=None)
@given(TRAFFIC, st.integers(0, 2**32))
def test_a_decode_worker_loses_nothing_under_aborts_and_lost_transfers(traffic: Traffic, seed: int) -> None:
    scheduler, worker = decode_worker(random.Random(seed), loss=0.1)
    play(worker, traffic)
    assert scheduler.totals.deflected_tokens == scheduler.totals.prefill_tokens
    for refused in worker.refusals:
        assert refused.refusal.message


@settings(max_examples=50, deadline=None)
@given(TRAFFIC, st.integers(0, 2**32))
def test_no_chunk_is_unsafe_while_a_safe_one_exists(traffic: Traffic, seed: int) -> None:
    scheduler, worker = decode_worker(random.Random(seed))
    last_progress: dict[Request, float] = {}

    def look(step: Step) -> None:
        if step.kind is not StepKind.MIXED:
            return
        batch = DecodeBatch(len(step.decoding), scheduler.context_tokens)
        head = step.chunks[0].request
        starved = worker.now - last_progress.get(head, worker.now) > SMALL.deflected_wait_seconds
        smallest = min(KNOBS.chunk_candidates_tokens)
        if protects_anyone(MODEL, batch, smallest_tokens=smallest, step_budget_seconds=scheduler.budget_seconds):
            assert step.predicted_seconds <= scheduler.budget_seconds or (starved and step.prefill_tokens <= smallest)
        last_progress[head] = worker.now + step.predicted_seconds
        assert bounds_hold(step)

    worker.on_step = look
    play(worker, traffic)


def bounds_hold(step: Step) -> bool:
    """The gateway's schedule is an upper bound for each of a request's chunks beside a decode batch."""
    return all(
        chunk.request.chunks_done >= len(chunk.request.chunk_bounds)
        or chunk.tokens <= max(1, chunk.request.chunk_bounds[chunk.request.chunks_done])
        for chunk in step.chunks
    )


def test_the_same_traffic_gives_the_same_steps() -> None:
    def once() -> list[tuple[float, StepKind]]:
        chance = random.Random(5)
        _, worker = decode_worker(random.Random(1))
        for number in range(40):
            worker.submit_at(chance.random() * 5, prompt(chance.randrange(1, 900), chance.randrange(1, 300), number))
        worker.run()
        return [(time, step.kind) for time, step in worker.steps]

    assert once() == once()


def prompt(tokens: int, output: int, number: int) -> Request:
    return Request(
        rid=str(number),
        prompt_tokens=tokens,
        max_new_tokens=output,
        output_tokens=output,
        deflected=number % 2 == 0,
        room=Room(host="p", port=1, number=number),
    )


def schedulers() -> list[Scheduler]:
    return [
        UnifiedScheduler(model=MODEL, limits=SMALL),
        PrefillScheduler(model=MODEL, limits=SMALL),
        DecodeScheduler(model=MODEL, limits=SMALL, knobs=KNOBS),
    ]


def test_an_empty_worker_has_nothing_to_do() -> None:
    for scheduler in schedulers():
        assert scheduler.start_step(0.0) is None
        assert scheduler.next_event_at() is None
        assert scheduler.work().total == 0
