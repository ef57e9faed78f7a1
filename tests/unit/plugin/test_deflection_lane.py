"""The lane against a scheduler that holds what SGLang's does: who is counted, who is owed KV, what runs next."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from tests.support.step_times import LinearSteps

from duet_engine.plugin import deflection_view as view
from duet_engine.plugin.deflection_lane import Lane
from duet_engine.plugin.deflection_request import ATTRIBUTE, Deflection
from duet_engine.plugin.deflection_settings import DeflectionSettings
from duet_engine.protocol import Knobs, RefusalReason

MODEL = LinearSteps(
    prefill_base_seconds=0.004,
    prefill_per_token_seconds=2e-5,
    prefill_per_token_squared_seconds=0.0,
    decode_base_seconds=0.006,
    decode_per_request_seconds=1e-4,
    decode_per_context_token_seconds=0.0,
)
EXTEND = SimpleNamespace(is_extend=lambda: True, is_mixed=lambda: False)
MIXED = SimpleNamespace(is_extend=lambda: True, is_mixed=lambda: True)
DECODE = SimpleNamespace(is_extend=lambda: False, is_mixed=lambda: False)


@dataclass(eq=False)
class Request:
    """What the lane reads of SGLang's request."""

    seqlen: int
    holds_kv: bool = False
    extend_end: int = 0
    extend_len: int = 0
    num_matched_prefix_tokens: int = 0
    return_logprob: bool = False
    max_new_tokens: int = 100
    rid: str = "r"
    output_ids: list[int] = field(default_factory=list)

    @property
    def kv(self) -> Any:
        return SimpleNamespace(holds_kv=self.holds_kv)

    @property
    def sampling_params(self) -> Any:
        return SimpleNamespace(max_new_tokens=self.max_new_tokens)

    @property
    def origin_input_ids(self) -> range:
        return range(self.seqlen)

    def finished(self) -> bool:
        return False


@dataclass
class Batch:
    reqs: list[Request] = field(default_factory=list)
    batch_is_full: bool = False
    forward_mode: Any = field(default_factory=lambda: DECODE)
    return_logprob: bool = False


def deflected(seqlen: int, **fields: Any) -> Request:
    request = Request(seqlen, **fields)
    setattr(request, ATTRIBUTE, Deflection(arrived_at=0.0))
    return request


class Prealloc:
    """SGLang's sum, with the hook's share."""

    num_reserved_decode_tokens = 512

    def __init__(self, scheduler: Any, free: int) -> None:
        self.scheduler, self.free = scheduler, free
        self.queue: list[Any] = []
        self.retracted_queue: list[Any] = []

    def _allocatable_token_budgets(self, *, retractable_tokens: int, count_retracted: bool) -> int:
        active = len(self.scheduler.running_batch.reqs) + len(self.scheduler.waiting_queue)
        return self.free - 512 * active - view.owed_tokens(self.scheduler)


def scheduler_of(free: int = 100_000, page: int = 1, **state: Any) -> Any:
    """A decode worker without anything to do, but for `state`."""
    scheduler = SimpleNamespace(
        waiting_queue=[],
        running_batch=Batch(),
        last_batch=None,
        chunked_req=None,
        page_size=page,
        chunked_prefill_size=4096,
        max_running_requests=64,
        is_mixed_chunk=True,
        disagg_decode_transfer_queue=SimpleNamespace(queue=[]),
        token_to_kv_pool_allocator=SimpleNamespace(available_size=lambda: free),
        tree_cache=SimpleNamespace(evictable_size=lambda: 0),
    )
    vars(scheduler).update(state)
    scheduler.disagg_decode_prealloc_queue = Prealloc(scheduler, free)
    return scheduler


def lane_of(scheduler: Any, *, itl: int = 50) -> Lane:
    return Lane(scheduler, DeflectionSettings(knobs=Knobs(generation=1, itl_milliseconds=itl), steps=MODEL))


def test_waiting_and_transferred_requests_share_a_queue_and_are_told_apart_by_their_kv() -> None:
    waits, again, came = deflected(100), deflected(100, holds_kv=True), Request(50, holds_kv=True)
    scheduler = scheduler_of(waiting_queue=[came, waits, again])
    assert view.waiting(scheduler) == [waits]
    assert view.transferred(scheduler) == [came, again]


def test_residents_in_flight_beside_chunks_are_counted_and_the_running_batch_comes_back() -> None:
    """SGLang empties its running batch when it mixes: admission would promise the residents' KV to a transfer."""
    cut, residents = deflected(4000, holds_kv=True, extend_end=1000), [Request(300), Request(200)]
    running = Batch()
    scheduler = scheduler_of(
        chunked_req=cut, running_batch=running, last_batch=Batch([cut, *residents], forward_mode=MIXED)
    )
    assert view.resident_rows(scheduler) == residents
    with view.residents_in_sight(scheduler):
        assert scheduler.running_batch.reqs == residents
    assert scheduler.running_batch is running
    room = view.room(scheduler, most_deflected_requests=16)
    assert room.occupied_slots == 3
    assert room.free_tokens == 100_000 - 2 * 512 - (3000 + 1 + 512)


def test_what_a_cut_prompt_and_waiting_ones_lack_is_owed_to_them_uncached_tokens_only() -> None:
    cut = deflected(4000, holds_kv=True, extend_end=1000)
    waits = deflected(100, num_matched_prefix_tokens=64)
    scheduler = scheduler_of(page=16, chunked_req=cut, waiting_queue=[waits])
    assert view.owed_tokens(scheduler) == (3008 + 16) + (48 + 16) + 512
    assert lane_of(scheduler).queued_tokens() == 3000 + 36


def test_a_request_that_fits_is_taken_and_one_that_does_not_is_refused_with_what_is_missing() -> None:
    scheduler = scheduler_of(free=1000)
    lane = lane_of(scheduler)
    assert lane.refusal(deflected(800)) is None
    refusal = lane.refusal(deflected(950))
    assert refusal is not None and refusal.reason is RefusalReason.NO_KV
    lane.apply(Knobs(generation=2, itl_milliseconds=50, deflection_enabled=False))
    off = lane.refusal(deflected(10))
    assert off is not None and off.reason is RefusalReason.DEFLECTION_OFF


def test_what_comes_while_sglang_is_shown_a_part_of_the_queue_waits_beside() -> None:
    scheduler = scheduler_of()
    lane, request = lane_of(scheduler), deflected(10)
    lane.inbox = []
    lane.take(request)
    assert scheduler.waiting_queue == [] and lane.inbox == [request]


def test_logprobs_are_computed_apart_because_they_cant_mix() -> None:
    plain, with_logprobs = deflected(100), deflected(100, return_logprob=True)
    scheduler = scheduler_of(waiting_queue=[plain, with_logprobs], running_batch=Batch([Request(10)]))
    lane = lane_of(scheduler)
    assert lane.plan(scheduler.running_batch)[1] == [plain]
    scheduler.waiting_queue = [with_logprobs, plain]
    chosen, requests = lane.plan(scheduler.running_batch)
    assert requests == [with_logprobs]
    apart = 0.004 + 100 * 2e-5 + 0.006 + 1e-4
    assert chosen is not None and abs(chosen.predicted_seconds - apart) < 1e-9


def test_residents_of_a_pure_prefill_go_next_and_those_it_made_need_not() -> None:
    cut, resident, new = deflected(9000, extend_end=500), Request(10), deflected(20, holds_kv=True)
    cut.return_logprob = new.return_logprob = True  # so that they can't mix
    scheduler = scheduler_of(waiting_queue=[cut])
    lane = lane_of(scheduler)
    assert lane.plan(Batch([resident]))[0] is not None
    scheduler.waiting_queue, scheduler.chunked_req = [], cut
    scheduler.last_batch = Batch([new, cut], forward_mode=EXTEND)
    assert lane.plan(Batch([new]))[0] is not None
    assert lane.plan(Batch([new, resident]))[0] is None


def test_a_chunk_without_free_kv_waits_beside_residents_and_the_request_knows_why() -> None:
    request = deflected(500)
    scheduler = scheduler_of(free=300, waiting_queue=[request], running_batch=Batch([Request(10)]))
    lane = lane_of(scheduler)
    assert lane.plan(scheduler.running_batch) == (None, [])
    assert [refusal.reason for _, refusal in lane.given_up(2.1)] == [RefusalReason.NO_KV]
    scheduler.token_to_kv_pool_allocator.available_size = lambda: 10_000
    assert lane.plan(scheduler.running_batch)[0] is not None and list(lane.given_up(2.1)) == []


def test_an_unsafe_worker_gives_up_who_waits_but_never_a_begun_prompt() -> None:
    crowd = Batch([Request(10) for _ in range(60)])
    begun, fresh = deflected(9000, holds_kv=True, extend_end=500), deflected(500)
    scheduler = scheduler_of(chunked_req=begun, waiting_queue=[fresh], running_batch=crowd)
    lane = lane_of(scheduler, itl=14)
    assert lane.plan(crowd)[0] is None and lane.unsafe_since is not None
    assert [request for request, _ in lane.given_up(lane.unsafe_since + 3.0)] == [fresh]
    while lane.stalled_seconds <= lane.settings.wait_seconds:
        assert lane.plan(crowd)[0] is None
    chosen, requests = lane.plan(crowd)
    assert chosen is not None and chosen.tokens == 128 and requests == [begun]
    assert lane.stalled_seconds == 0.0


def test_one_that_has_answered_already_is_computed_again_however_long_it_takes() -> None:
    again = deflected(500, output_ids=[1])
    crowd = Batch([Request(10) for _ in range(60)])
    lane = lane_of(scheduler_of(waiting_queue=[again], running_batch=crowd), itl=14)
    assert lane.plan(crowd)[0] is None and lane.unsafe_since is not None
    assert list(lane.given_up(lane.unsafe_since + 60.0)) == []


def test_who_came_by_transfer_after_a_pass_has_sat_nothing_out() -> None:
    cut = deflected(6000, holds_kv=True, extend_end=4096, extend_len=4096)
    scheduler = scheduler_of(waiting_queue=[deflected(6000)])
    lane = lane_of(scheduler)
    assert lane.plan(Batch())[0] is not None
    scheduler.waiting_queue, scheduler.chunked_req, scheduler.last_batch = [], cut, Batch([cut], forward_mode=EXTEND)
    assert lane.plan(Batch([Request(300)]))[0] is not None
