"""What one gateway sent to a worker, and what follows for the worker's load until its states include it.

Invariant: pure; a worker's own figures come first, and only what it can't know yet is added.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from duet_engine.perf.interface import StepTimes
from duet_engine.protocol import StepKind, WorkerState


@dataclass(frozen=True, slots=True, kw_only=True)
class SentWork:
    """One dispatch to one worker."""

    sequence: int
    prompt_tokens: int
    output_reserve_tokens: int
    local: bool
    """The worker prefills it and decodes it."""
    probe: bool = False
    """The one request that finds out whether an ejected worker works again."""


def work_ahead(
    state: WorkerState,
    steps: StepTimes,
    *,
    chunk_tokens: int,
    received_at: float,
    unconfirmed_tokens: Sequence[int],
) -> tuple[float, float, int]:
    """When the work that it reported will be done, what the prompts take that it hasn't confirmed, all tokens."""
    queued = max(1, state.work.running + state.work.queued + state.work.prefill_bootstrap)
    reported_seconds = 0.0
    if state.queued_prefill_tokens > 0:
        mean_tokens = max(1, state.queued_prefill_tokens // queued)
        reported_seconds = queued * steps.prompt_seconds(mean_tokens, chunk_tokens=chunk_tokens)
    if state.step is not StepKind.IDLE:  # both times are by the worker's clock
        reported_seconds -= max(0.0, state.written_at_seconds - state.step_started_at_seconds)
    unconfirmed_seconds = sum(
        [steps.prompt_seconds(tokens, chunk_tokens=chunk_tokens) for tokens in unconfirmed_tokens]
    )
    return received_at + reported_seconds, unconfirmed_seconds, state.queued_prefill_tokens + sum(unconfirmed_tokens)


def queued_kv_tokens(state: WorkerState, sent: Collection[SentWork], *, confirmed: int) -> int:
    """KV for which requests queue in the engine: reported nowhere, so taken for as much as its others have."""
    waiting = state.work.decode_prealloc
    if not waiting:
        return 0
    own = [work for work in sent if work.sequence <= confirmed and not work.local]
    if own:
        return waiting * sum(work.prompt_tokens + work.output_reserve_tokens for work in own) // len(own)
    return waiting * state.decode_context_tokens // max(1, state.decode_requests)
