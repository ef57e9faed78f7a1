"""SGLang's decode scheduler as deflection sees it: who waits for what, who decodes, what room is left.

Invariant: reads only, but for a moment's other view of the running batch. Requests that decode beside chunks are in
SGLang's last batch and not in its running one: whoever counts residents must count them here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from duet_engine.plugin.deflection_admission import Room, outstanding_tokens
from duet_engine.plugin.deflection_request import awaits_prefill
from duet_engine.plugin.sglang_types import Batch, Request, Scheduler
from duet_engine.policy.chunks import DecodeBatch


def waiting(scheduler: Scheduler) -> list[Request]:
    """Deflected requests of which no chunk has run, in order."""
    return [request for request in scheduler.waiting_queue if awaits_prefill(request)]


def transferred(scheduler: Scheduler) -> list[Request]:
    """Requests whose KV is here and that wait to join the running batch."""
    return [request for request in scheduler.waiting_queue if not awaits_prefill(request)]


def has_work(scheduler: Scheduler) -> bool:
    """Whether the next step may be other than a plain decode step."""
    last = scheduler.last_batch
    return (
        scheduler.chunked_req is not None
        or (last is not None and last.forward_mode.is_extend())
        or any(awaits_prefill(request) for request in scheduler.waiting_queue)
    )


def cached_tokens(request: Request) -> int:
    """How much of a waiting prompt the radix cache had when it was last asked."""
    return int(request.num_matched_prefix_tokens)


def unfinished(scheduler: Scheduler) -> Iterator[tuple[Request, int]]:
    """Deflected requests whose prompts aren't all computed, the one that is cut first; how many tokens each lacks."""
    if (cut := scheduler.chunked_req) is not None:
        yield cut, cut.seqlen - cut.extend_end
    for request in waiting(scheduler):
        yield request, request.seqlen - cached_tokens(request)


def owed_tokens(scheduler: Scheduler) -> int:
    """KV that taken prompts have yet to get, which transfers may not be promised."""
    if scheduler.chunked_req is None and not scheduler.waiting_queue:
        return 0
    owed = sum(outstanding_tokens(tokens, scheduler.page_size) for _, tokens in unfinished(scheduler))
    # SGLang reserves for the output of each request in its queues; one that is cut is in none of them.
    return owed + (reserved_decode_tokens(scheduler) if scheduler.chunked_req is not None else 0)


def reserved_decode_tokens(scheduler: Scheduler) -> int:
    """What SGLang keeps free for the output of each request that decodes or will."""
    return int(scheduler.disagg_decode_prealloc_queue.num_reserved_decode_tokens)


def resident_rows(scheduler: Scheduler) -> list[Request]:
    """Requests that decode here, also those that are in flight beside chunks."""
    rows = list(scheduler.running_batch.reqs)
    last = scheduler.last_batch
    if last is not None and last is not scheduler.running_batch and last.forward_mode.is_extend():
        known = {id(row) for row in rows} | {id(scheduler.chunked_req)}
        rows += [row for row in last.reqs if id(row) not in known and not row.finished()]
    return rows


@contextmanager
def residents_in_sight(scheduler: Scheduler) -> Iterator[list[Request]]:
    """Let SGLang's admission of transfers count the requests that decode beside chunks, too."""
    running, rows = scheduler.running_batch, resident_rows(scheduler)
    if len(rows) != len(running.reqs):
        scheduler.running_batch = type(running)(reqs=rows, batch_is_full=running.batch_is_full)
    try:
        yield rows
    finally:
        scheduler.running_batch = running


def decode_batch(rows: Iterable[Request]) -> DecodeBatch:
    """These requests as the performance model takes them."""
    lengths = [row.seqlen for row in rows]
    return DecodeBatch(len(lengths), sum(lengths))


def joined(batch: Batch, cut: Request | None) -> int:
    """How many requests of a prefill batch decode from now on."""
    return sum(1 for row in batch.reqs if row is not cut and not row.finished())


def free_kv_tokens(scheduler: Scheduler) -> int:
    """KV that nobody holds, or that only the cache does."""
    return int(scheduler.token_to_kv_pool_allocator.available_size() + scheduler.tree_cache.evictable_size())


def room(scheduler: Scheduler, *, most_deflected_requests: int) -> Room:
    """What the worker has left."""
    prealloc = scheduler.disagg_decode_prealloc_queue
    reserve, prompts = reserved_decode_tokens(scheduler), sum(1 for _ in unfinished(scheduler))
    with residents_in_sight(scheduler) as rows:
        # What SGLang would promise a transfer now; our hook has taken off what deflected prompts are owed.
        free_tokens = prealloc._allocatable_token_budgets(
            retractable_tokens=sum(row.seqlen for row in rows), count_retracted=True
        )
    in_transfer = len(scheduler.disagg_decode_transfer_queue.queue)
    return Room(
        free_tokens=int(free_tokens),
        awaited_tokens=sum(len(waiting.req.origin_input_ids) + reserve for waiting in prealloc.queue),
        retracted_requests=len(prealloc.retracted_queue),
        occupied_slots=len(rows) + prompts + in_transfer + len(transferred(scheduler)),
        slots=scheduler.max_running_requests,
        deflected_requests=prompts,
        most_deflected_requests=most_deflected_requests,
        reserved_decode_tokens=reserve,
        page_tokens=scheduler.page_size,
    )
