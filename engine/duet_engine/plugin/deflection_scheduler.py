"""Where deflection meets SGLang's scheduler: the one module that knows its methods.

Invariant: batches are made, run and accounted for by SGLang's own code for ordinary servers; what is added is which
requests that code sees and how long a chunk may be. Once SGLang prefills on decode workers itself, this module calls
that instead, and nothing else changes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from duet_engine.plugin import deflection_view as view
from duet_engine.plugin.deflection_lane import Lane
from duet_engine.plugin.deflection_request import ATTRIBUTE, awaits_prefill, deflection_of, take_mark
from duet_engine.plugin.deflection_settings import DeflectionSettings
from duet_engine.plugin.hooks import Hook, Kind, Process
from duet_engine.plugin.sglang_types import Anything, Batch, Original, Prealloc, Request, Scheduler
from duet_engine.protocol import Refusal, RefusalReason

_LANE = "duet_lane"


def open_lane(scheduler: Scheduler, settings: DeflectionSettings) -> Lane:
    """Give a scheduler its lane."""
    lane = Lane.of_server(scheduler, settings)
    setattr(scheduler, _LANE, lane)
    return lane


def lane_of(scheduler: Scheduler) -> Lane:
    """A scheduler's lane; its loop begins with one."""
    lane: Lane = getattr(scheduler, _LANE)
    return lane


def resolved_arguments(scheduler: Scheduler) -> Anything:
    """A server's arguments as SGLang has resolved them: the ones that were given lack its defaults and its role's."""
    from sglang.srt.arg_groups.model_override_base import resolved_view

    return resolved_view(scheduler.server_args)


# --- arrival ---


def create_request(
    original: Original, scheduler: Scheduler, received: Anything, *arguments: Anything, **named: Anything
) -> Anything:
    """`_create_generation_req`: take the mark off; a deflected request is an ordinary server's from here on."""
    from sglang.srt.disaggregation.utils import DisaggregationMode

    deflection = take_mark(received.sampling_params)
    if deflection is None:
        return original(scheduler, received, *arguments, **named)
    named.update(bootstrap_host=None, bootstrap_room=None)
    request = original(scheduler, received, *arguments, **named)
    request.time_stats.disagg_mode = DisaggregationMode.NULL
    setattr(request, ATTRIBUTE, deflection)
    return request


def add_request(original: Original, scheduler: Scheduler, request: Request, is_retracted: bool = False) -> None:
    """`_add_request_to_queue`: deflected requests wait for prefill here instead of for a transfer."""
    deflection = deflection_of(request)
    if deflection is None:
        original(scheduler, request, is_retracted)
        return
    if is_retracted:
        if _backup() != "none":
            original(scheduler, request, is_retracted)
            return
        deflection.start_again()
    elif not _admitted(scheduler, request):
        return
    request.time_stats.set_wait_queue_entry_time()
    lane_of(scheduler).take(request)


def _admitted(scheduler: Scheduler, request: Request) -> bool:
    """Whether it may wait; if not, its client has been told."""
    from sglang.srt.disaggregation.utils import is_unadmitted_reject
    from sglang.srt.mem_cache.common import match_kv_cache

    if is_unadmitted_reject(request):
        scheduler.retire_unadmitted_request(request)
        return False
    if not scheduler._set_or_validate_priority(request):
        scheduler._release_aborted_request(request)
        return False
    lane = lane_of(scheduler)
    if scheduler.disaggregation_mode.value != "decode":
        role = scheduler.disaggregation_mode.value
        message = f"only a decode worker prefills deflected requests, not a {role} one"
        refusal: Refusal | None = Refusal(reason=RefusalReason.WRONG_ROLE, message=message)
    else:
        if scheduler.tree_cache.supports_prefix_sharing():
            match_kv_cache(request, scheduler.tree_cache)
        refusal = lane.refusal(request)
    if refusal is None:
        lane.requests_total += 1
        return True
    scheduler._release_aborted_request(request)
    scheduler.send_abort_output(_abort(request, _finished_reason(refusal)), request)
    return False


# --- the next step ---


def next_batch(original: Original, scheduler: Scheduler, running_batch: Batch) -> Anything:
    """`get_next_disagg_decode_batch_to_run`: an ordinary server's step while there is deflected work."""
    if view.has_work(scheduler) or scheduler._pending_chunked_abort_req is not None:
        return scheduler.get_next_batch_to_run(running_batch, scheduler.last_batch)
    return original(scheduler, running_batch)


def prefill_pass(original: Original, scheduler: Scheduler, running_batch: Batch) -> Anything:
    """`get_new_batch_prefill`: transferred requests join, then SGLang cuts what the lane has chosen."""
    from sglang.srt.managers.schedule_batch import NextBatchPlan

    if scheduler.disaggregation_mode.value != "decode":
        return original(scheduler, running_batch)
    if view.transferred(scheduler) or scheduler.grammar_manager.has_waiting_grammars():
        running_batch = _join_transferred(scheduler, running_batch)
    _put_in_order(scheduler, running_batch)
    lane = lane_of(scheduler)
    chosen, requests = lane.plan(running_batch)
    if chosen is None:
        return NextBatchPlan(batch_to_run=None, running_batch=running_batch)
    residents = len(running_batch.reqs) if scheduler.is_mixed_chunk else 0
    before = scheduler.waiting_queue, scheduler.chunked_prefill_size
    shown = [request for request in requests if request is not scheduler.chunked_req]
    scheduler.waiting_queue, scheduler.chunked_prefill_size = (
        shown,
        chosen.sglang_chunk_tokens(resident_requests=residents),
    )
    lane.inbox = []
    try:
        plan = original(scheduler, running_batch)
        left = {id(request) for request in scheduler.waiting_queue}
    finally:
        arrived, lane.inbox = lane.inbox, None
        scheduler.waiting_queue, scheduler.chunked_prefill_size = before
    taken = {id(request) for request in shown if id(request) not in left}
    scheduler.waiting_queue = [request for request in scheduler.waiting_queue if id(request) not in taken] + arrived
    if plan.batch_to_run is not None:
        lane.computed([request for request in requests if id(request) not in left])
    lane.found_no_kv([request for request in shown if id(request) in left])
    return plan


def _join_transferred(scheduler: Scheduler, running_batch: Batch) -> Anything:
    """As SGLang's decode loop does it, also while a prompt is cut: residents needn't wait for its end."""
    batch = scheduler.get_new_prebuilt_batch(running_batch)
    if not batch:
        return running_batch
    scheduler.batch_result_processor.process_batch_result_prebuilt(batch)
    batch.filter_batch()
    if batch.is_empty():
        return running_batch
    if running_batch.is_empty():
        return batch
    running_batch.merge_batch(batch)
    return running_batch


def _put_in_order(scheduler: Scheduler, running_batch: Batch) -> None:
    """By SGLang's own policy, which otherwise sees the chosen ones alone: priority, longest cached prefix and so on."""
    waiting = view.waiting(scheduler)
    if len(waiting) > 1:
        scheduler.policy.calc_priority(waiting, running_batch, processed_tokens=scheduler.processed_tokens_counter)
        scheduler.waiting_queue = [*view.transferred(scheduler), *waiting]


def prebuilt_batch(original: Original, scheduler: Scheduler, running_batch: Batch) -> Anything:
    """`_get_new_prebuilt_batch`: it takes all that waits for transferred, so show it nothing else.

    Nor does it count a prompt that is cut, and SGLang's buffers have no more rows than requests may run.
    """
    lane = lane_of(scheduler)
    held_back, cut = view.waiting(scheduler), int(scheduler.chunked_req is not None)
    if not held_back and not cut and not scheduler.grammar_manager.has_waiting_grammars():
        return original(scheduler, running_batch)
    scheduler.waiting_queue = view.transferred(scheduler)
    scheduler.max_running_requests -= cut
    lane.inbox = []
    try:
        return original(scheduler, running_batch)
    finally:
        arrived, lane.inbox = lane.inbox, None
        scheduler.max_running_requests += cut
        scheduler.waiting_queue = [*scheduler.waiting_queue, *held_back, *arrived]


# --- KV that others may not be promised ---


def process_decode_queue(original: Original, scheduler: Scheduler) -> Anything:
    """`process_decode_queue`: it admits transfers by the running batch, which is empty beside chunks."""
    prealloc = scheduler.disagg_decode_prealloc_queue
    if not prealloc.queue and not prealloc.retracted_queue:
        return original(scheduler)
    with view.residents_in_sight(scheduler):
        return original(scheduler)


def allocatable_tokens(result: int, prealloc: Prealloc, *_: Anything, **__: Anything) -> int:
    """`_allocatable_token_budgets`: less what deflected prompts are owed."""
    return result - view.owed_tokens(prealloc.scheduler)


def back_up(original: Original, request: Request, *arguments: Anything) -> Anything:
    """`backup_kv_cache`: a deflected request needs no backup to go on, it is computed again."""
    backend = arguments[-1]
    if backend == "none" and deflection_of(request) is not None:
        return True
    return original(request, *arguments)


def hold_rebootstrap(original: Original, prealloc: Prealloc, request: Request) -> None:
    """`hold_rebootstrap`: a pause took its KV; no prefill worker has ever seen a deflected request."""
    deflection = deflection_of(request)
    if deflection is None:
        original(prealloc, request)
        return
    if request.pd_rebootstrap_forced_output_id is not None:
        request.output_ids.append(request.pd_rebootstrap_forced_output_id)
        request.pd_rebootstrap_forced_output_id = None
    request.pd_rebootstrap_in_progress = False
    deflection.start_again()
    request.time_stats.set_wait_queue_entry_time()
    lane_of(prealloc.scheduler).take(request)


# --- the end of waiting ---


def abort_request(original: Original, scheduler: Scheduler, received: Anything) -> None:
    """`abort_request`: SGLang takes for granted that what waits on a decode worker holds KV."""
    ended = [
        request
        for request in scheduler.waiting_queue
        if awaits_prefill(request) and (received.abort_all or request.rid.startswith(received.rid))
    ]
    gone = {id(request) for request in ended}
    scheduler.waiting_queue = [request for request in scheduler.waiting_queue if id(request) not in gone]
    for request in ended:
        scheduler._release_aborted_request(request)
        scheduler.send_abort_output(_abort(request, received.finished_reason), request)
    original(scheduler, received)


def timeout_aborts(result: list[Any], scheduler: Scheduler) -> list[Any]:
    """`_poll_timeout_aborts`: only rank 0 runs it, and what it returns is broadcast to all ranks."""
    if scheduler.disaggregation_mode.value != "decode":
        return result
    over = lane_of(scheduler).given_up(time.monotonic())
    return [*result, *(_abort(request, _finished_reason(refusal)) for request, refusal in over)]


def _abort(request: Request, finished_reason: dict[str, Any] | None) -> Anything:
    from sglang.srt.managers.scheduler import _make_abort_req

    return _make_abort_req(request, finished_reason=finished_reason)


def _finished_reason(refusal: Refusal) -> dict[str, Any]:
    """A refusal as SGLang carries it to the HTTP process."""
    return {"type": "abort", "status_code": 503, "message": refusal.write().decode()}


def _backup() -> str:
    from sglang.srt.runtime_context import get_disagg

    return str(get_disagg().disaggregation_decode_retraction_backup)


def _hook(target: str, digest: str, function: Callable[..., Any], kind: Kind = Kind.AROUND) -> Hook:
    return Hook(target=target, digest=digest, function=function, process=Process.SCHEDULER, kind=kind)


_SCHEDULER = "managers.scheduler.Scheduler."
_DECODE = "disaggregation.decode."
_LOOP = _DECODE + "SchedulerDisaggregationDecodeMixin."

HOOKS = (
    _hook(_SCHEDULER + "_create_generation_req", "9f867d91dee9", create_request),
    _hook(_SCHEDULER + "_add_request_to_queue", "056a60799b02", add_request),
    _hook(_LOOP + "get_next_disagg_decode_batch_to_run", "8a9255e6fcf4", next_batch),
    _hook(_SCHEDULER + "get_new_batch_prefill", "a8b9a7a4fee3", prefill_pass),
    _hook(_LOOP + "_get_new_prebuilt_batch", "b51d6b336384", prebuilt_batch),
    _hook(_LOOP + "process_decode_queue", "eebd4b89bba2", process_decode_queue),
    _hook(_DECODE + "DecodePreallocQueue._allocatable_token_budgets", "79c2ece1dc89", allocatable_tokens, Kind.AFTER),
    _hook("mem_cache.common.backup_kv_cache", "c84d462c5543", back_up),
    _hook(_DECODE + "DecodePreallocQueue.hold_rebootstrap", "27103c574242", hold_rebootstrap),
    _hook(_SCHEDULER + "abort_request", "b16ca1103b1d", abort_request),
    _hook(_SCHEDULER + "_poll_timeout_aborts", "563ad485b205", timeout_aborts, Kind.AFTER),
)
