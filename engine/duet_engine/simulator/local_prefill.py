"""What the next step of a worker with prompts computes, for each way of local prefill.

Invariant: which chunk and which split is `duet_engine.policy`'s decision, by the step times that the worker believes;
here is only which prompts fill it. At most one prompt is left half computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from duet_engine.perf.interface import StepBatch
from duet_engine.policy.chunks import DecodeBatch, bearable_sizes, headroom_tokens_per_second
from duet_engine.policy.partition import Split
from duet_engine.simulator.scenario import LocalPrefill
from duet_engine.simulator.worker import Chunk

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from duet_engine.policy.deflect import DeflectionRule
    from duet_engine.policy.partition import SplitRule
    from duet_engine.simulator.decoding_worker import DecodingWorker
    from duet_engine.simulator.flight import Flight

Chunks = tuple[Chunk, ...]


@dataclass(frozen=True, slots=True)
class Rules:
    """What local prefill keeps to, and what gaps are held against."""

    deflection: DeflectionRule
    split: SplitRule
    itl_limits: tuple[float, ...]
    """The ITL objectives of the run."""


@dataclass(frozen=True, slots=True)
class OnePass:
    """One forward pass: chunks, and the decode batch beside them unless it has to wait. Without chunks: decode."""

    chunks: Chunks = ()
    decodes: bool = True
    sm_share: float = 1.0

    def batch(self, requests: int, context_tokens: int) -> StepBatch:
        """As the performance model takes it."""
        return with_chunks(StepBatch.decode(requests, context_tokens), self.chunks)


@dataclass(frozen=True, slots=True)
class SplitStep:
    """Chunks on some SMs, `look_ahead` decode steps on the others."""

    chunks: Chunks
    look_ahead: int
    decode_share: float
    prefill_share: float
    join_seconds: float

    def batch(self) -> StepBatch:
        """The chunks, as the performance model takes them."""
        return with_chunks(StepBatch(), self.chunks)


Choice = OnePass | SplitStep
DECODE_ALONE = OnePass()


def with_chunks(batch: StepBatch, chunks: Iterable[Chunk]) -> StepBatch:
    """A batch and these chunks beside it."""
    for flight, tokens in chunks:
        batch = batch.with_chunks(tokens, flight.computed_tokens)
    return batch


def pack(queue: Iterable[Flight], budget_tokens: int, *, bounded: bool = False) -> Chunks:
    """Fill a step with prompts in order. With `bounded`, the gateway's chunk schedules hold too."""
    chunks: list[Chunk] = []
    for flight in queue:
        left = flight.uncomputed_tokens
        tokens = min(left, budget_tokens)
        if bounded and flight.chunks_done < len(flight.chunk_bounds):
            tokens = min(tokens, max(1, flight.chunk_bounds[flight.chunks_done]))
        if tokens <= 0:
            break
        chunks.append(Chunk(flight, tokens))
        budget_tokens -= tokens
        if tokens < left:
            break
    return tuple(chunks)


def choose(worker: DecodingWorker, now: float) -> Choice:
    """The next step of a worker in which prompts wait."""
    queue = list(_admitted(worker)) if worker.unified else list(worker.prompts)
    if not queue:
        return DECODE_ALONE
    style, budget = worker.pool.local_prefill, worker.pool.limits.chunked_prefill_tokens
    if style is LocalPrefill.FIXED_SPLIT:
        return _fixed_split(worker, queue)
    if style is LocalPrefill.PROMPTS_FIRST or not worker.batch:
        worker.unsafe_since = None
        return OnePass(pack(queue, budget), decodes=False)
    if style is LocalPrefill.MIXED:
        return OnePass(pack(queue, budget - len(worker.batch)))
    choice = _split(worker, queue) if style is LocalPrefill.SPLIT else _safe(worker, queue)
    return choice or _without_safe_chunk(worker, queue, now)


def has_safe_chunk(worker: DecodingWorker) -> bool:
    """Whether a fresh prompt could be computed beside the present batch."""
    headroom = headroom_tokens_per_second(
        worker.pool.policy_steps,
        DecodeBatch(len(worker.batch), worker.batch.context_tokens),
        candidates_tokens=_candidates(worker),
        step_budget_seconds=worker.rules.deflection.step_budget_seconds,
        full_chunk_tokens=worker.pool.limits.chunked_prefill_tokens,
    )
    return headroom > 0


def _admitted(worker: DecodingWorker) -> Iterator[Flight]:
    """A unified worker's prompts in order, each given KV as it is reached, up to the first that gets none."""
    slots = worker.slots
    for flight in worker.prompts:
        if flight.kv.tokens == 0 and (slots <= 0 or not worker.admit_local(flight)):
            return
        slots -= 1
        yield flight


def _safe(worker: DecodingWorker, queue: Sequence[Flight]) -> OnePass | None:
    """The largest candidate whose mixed step is believed to keep the budget."""
    steps, batch = worker.pool.policy_steps, DecodeBatch(len(worker.batch), worker.batch.context_tokens)
    decoding = batch.moments()
    sizes = bearable_sizes(
        steps,
        batch,
        candidates_tokens=_candidates(worker),
        step_budget_seconds=worker.rules.deflection.step_budget_seconds,
        most_step_tokens=worker.pool.limits.chunked_prefill_tokens,
    )
    safe = sizes.largest(
        lambda size: pack(queue, size, bounded=True), lambda chunks: steps.step_seconds(with_chunks(decoding, chunks))
    )
    if safe is None:
        return None
    worker.unsafe_since = None
    return OnePass(safe.work)


def _split(worker: DecodingWorker, queue: Sequence[Flight]) -> Choice | None:
    """DuetServe: the token budget's batch as it is or split; a smaller chunk where neither keeps the budget."""
    decoding = StepBatch.decode(len(worker.batch), worker.batch.context_tokens)
    budget = worker.pool.limits.chunked_prefill_tokens - len(worker.batch)
    sms = worker.pool.policy_steps.sms
    for size in sorted({budget, *(size for size in _candidates(worker) if size < budget)}, reverse=True):
        chunks = pack(queue, size)
        choice = worker.partitioner.choose(with_chunks(decoding, chunks), worker.rules.split) if chunks else None
        if choice is None:
            continue
        worker.unsafe_since = None
        if not isinstance(choice, Split):
            return OnePass(chunks)
        return SplitStep(
            chunks,
            choice.look_ahead,
            choice.decode_sms / sms,
            choice.prefill_sms / sms,
            worker.rules.split.join_seconds,
        )
    return None


def _fixed_split(worker: DecodingWorker, queue: Sequence[Flight]) -> Choice:
    """Each phase keeps to its SMs, with as many decode steps as fit into the chunk's time."""
    decode_share = worker.pool.limits.decode_sm_share
    prefill_share = 1.0 - decode_share
    chunks = pack(queue, worker.pool.limits.chunked_prefill_tokens)
    if not worker.batch:
        return OnePass(chunks, decodes=False, sm_share=prefill_share)
    steps = worker.pool.policy_steps
    decode_seconds = steps.step_seconds(
        StepBatch.decode(len(worker.batch), worker.batch.context_tokens), sm_share=decode_share
    )
    prefill_seconds = steps.step_seconds(with_chunks(StepBatch(), chunks), sm_share=prefill_share)
    look_ahead = max(1, int(prefill_seconds / decode_seconds))
    return SplitStep(chunks, look_ahead, decode_share, prefill_share, worker.rules.split.join_seconds)


def _without_safe_chunk(worker: DecodingWorker, queue: Sequence[Flight], now: float) -> OnePass:
    """Residents decode alone; a prompt that has begun goes on after a while, others are sent back."""
    limits = worker.pool.limits
    if has_safe_chunk(worker):
        worker.unsafe_since = None
    elif worker.unsafe_since is None:
        worker.unsafe_since = now
    head = queue[0]
    if now - head.progressed_at > limits.deflected_wait_seconds and (head.chunks_done > 0 or worker.unified):
        return OnePass(pack(queue, _candidates(worker)[-1], bounded=True))
    if not worker.unified:
        for flight in [each for each in queue if each.chunks_done == 0]:
            if now - flight.progressed_at > limits.deflected_wait_seconds:
                worker.refuse(flight)
    return DECODE_ALONE


def _candidates(worker: DecodingWorker) -> tuple[int, ...]:
    """Chunk sizes to try, largest first."""
    most = worker.pool.limits.chunked_prefill_tokens
    return tuple(size for size in worker.rules.deflection.candidates_tokens if size <= most) or (most,)
