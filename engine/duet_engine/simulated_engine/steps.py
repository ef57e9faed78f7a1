"""What one step holds, and the chunks of the prompts that wait for it.

Invariant: pure. How large a deflected chunk may be beside a decode batch is `duet_engine.policy.chunks`' decision; here
is only which prompts fill it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from duet_engine.perf.interface import StepBatch
from duet_engine.policy.chunks import DecodeBatch, bearable_sizes
from duet_engine.protocol import StepKind

if TYPE_CHECKING:
    from duet_engine.perf.interface import StepTimes
    from duet_engine.simulated_engine.request import Request


@dataclass(frozen=True, slots=True)
class Chunk:
    """Part of a prompt that one step computes."""

    request: Request
    tokens: int

    @property
    def last(self) -> bool:
        return self.tokens == self.request.uncomputed_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One forward pass: chunks of prompts and one token for each decoding request."""

    kind: StepKind
    chunks: tuple[Chunk, ...]
    decoding: tuple[Request, ...]
    predicted_seconds: float

    @property
    def prefill_tokens(self) -> int:
        return sum(chunk.tokens for chunk in self.chunks)


def with_chunks(batch: StepBatch, chunks: Iterable[Chunk]) -> StepBatch:
    """A batch and these chunks beside it, as the performance model takes it."""
    for chunk in chunks:
        batch = batch.with_chunks(chunk.tokens, chunk.request.computed_tokens)
    return batch


def pack(queue: Iterable[Request], budget_tokens: int, *, bounded: bool) -> tuple[Chunk, ...]:
    """Fill a step with prompts in order; at most the last one is left unfinished.

    With `bounded`, the gateway's chunk schedules hold too.
    """
    chunks: list[Chunk] = []
    for request in queue:
        tokens = min(request.uncomputed_tokens, budget_tokens)
        if bounded and request.chunks_done < len(request.chunk_bounds):
            tokens = min(tokens, max(1, request.chunk_bounds[request.chunks_done]))
        chunks.append(Chunk(request, tokens))
        budget_tokens -= tokens
        if budget_tokens <= 0 or not chunks[-1].last:
            break
    return tuple(chunks)


def safe_chunks(
    model: StepTimes,
    queue: Sequence[Request],
    batch: DecodeBatch,
    *,
    candidates_tokens: Sequence[int],
    budget_seconds: float,
    most_step_tokens: int,
) -> tuple[Chunk, ...]:
    """The chunks of the largest candidate size whose mixed step stays inside the budget; none if no size does."""
    decoding = batch.moments()
    sizes = bearable_sizes(
        model,
        batch,
        candidates_tokens=candidates_tokens,
        step_budget_seconds=budget_seconds,
        most_step_tokens=most_step_tokens,
    )
    safe = sizes.largest(
        lambda size: pack(queue, size, bounded=True),
        lambda chunks: model.step_seconds(with_chunks(decoding, chunks)),
    )
    return safe.work if safe else ()
