"""What one of SGLang's schedulers holds, counted: requests by place, and tokens.

Invariant: each request is counted in one place, and counting changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from duet_engine.plugin.facts import SchedulerFacts
from duet_engine.protocol import Role

ROLES = tuple(Role)
MODES = {"null": Role.UNIFIED, "prefill": Role.PREFILL, "decode": Role.DECODE}


def count_work(scheduler: Any, facts: SchedulerFacts, *, rows_outside: int) -> None:  # noqa: ANN401
    """Requests by place. `rows_outside`: those in steps under way that SGLang's running batch doesn't hold."""
    mode = MODES[scheduler.disaggregation_mode.value]
    facts.role = float(ROLES.index(mode))
    facts.running = float(len(scheduler.running_batch.reqs) + rows_outside)
    chunked = scheduler.chunked_req is not None and mode is not Role.PREFILL
    facts.queued = float(len(scheduler.waiting_queue) + len(scheduler.grammar_manager.grammar_queue) + chunked)
    if mode is Role.PREFILL:
        facts.prefill_bootstrap = float(len(scheduler.disagg_prefill_bootstrap_queue.queue))
        facts.prefill_inflight = float(len(scheduler.disagg_prefill_inflight_queue))
    elif mode is Role.DECODE:
        waiting = scheduler.disagg_decode_prealloc_queue
        facts.decode_prealloc = float(len(waiting.queue) + len(waiting.retracted_queue))
        facts.decode_transfer = float(len(scheduler.disagg_decode_transfer_queue.queue))


def count_tokens(scheduler: Any, facts: SchedulerFacts, *, computing_tokens: int) -> None:  # noqa: ANN401
    """KV, and prompt tokens that wait or are computed just now (`computing_tokens`). Needs the work counted."""
    free = scheduler.token_to_kv_pool_allocator.available_size() + scheduler.tree_cache.evictable_size()
    facts.kv_used_tokens = max(0.0, facts.kv_capacity_tokens - free)
    role = ROLES[int(facts.role)]
    if role is Role.DECODE:
        # What waits here has its KV already; room for what it will make is promised to each.
        held = facts.running + facts.queued + facts.decode_transfer
        promised = held * scheduler.disagg_decode_prealloc_queue.num_reserved_decode_tokens
        facts.kv_reserved_tokens = min(promised, facts.kv_capacity_tokens - facts.kv_used_tokens)
        facts.queued_prefill_tokens = 0.0
        return
    tokens = uncached_tokens(scheduler.waiting_queue) + computing_tokens
    if role is Role.PREFILL:
        tokens += uncached_tokens(scheduler.disagg_prefill_bootstrap_queue.queue)
    chunked = scheduler.chunked_req
    # The chunk under way is among those that are computed just now.
    tokens += 0 if chunked is None else max(0, int(chunked.seqlen) - int(chunked.extend_end or 0))
    facts.queued_prefill_tokens = float(tokens)


def uncached_tokens(waiting: Iterable[Any]) -> int:
    """Prompt tokens that are still to be computed."""
    return sum(max(0, len(request.origin_input_ids) - int(request.num_matched_prefix_tokens)) for request in waiting)
