"""What one step holds, how long it takes, and how large a deflected chunk may be.

Invariant: pure. A chunk is safe when the mixed step it makes stays inside the ITL budget; the choice is the largest
safe candidate for the decode batch as it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from duet_engine.policy.chunks import DecodeBatch, protects_anyone
from duet_engine.protocol import StepKind

if TYPE_CHECKING:
    from duet_engine.perf.linear import LinearStepModel
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


def step_seconds(model: LinearStepModel, *, requests: int, context_tokens: int, chunks: Sequence[Chunk]) -> float:
    """Time of one step with this decode batch and these chunks."""
    if not chunks:
        return model.decode_step_seconds(requests, context_tokens)
    first, *others = chunks
    return model.mixed_step_seconds(
        requests=requests,
        context_tokens=context_tokens,
        chunk_tokens=first.tokens,
        cached_tokens=first.request.computed_tokens,
    ) + sum(model.chunk_seconds(chunk.tokens, chunk.request.computed_tokens) for chunk in others)


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
    model: LinearStepModel,
    queue: Sequence[Request],
    batch: DecodeBatch,
    *,
    candidates_tokens: Iterable[int],
    budget_seconds: float,
) -> tuple[Chunk, ...]:
    """The chunks of the largest candidate size whose mixed step stays inside the budget; none if no size does."""
    for candidate in bearable_sizes(model, batch, candidates_tokens=candidates_tokens, budget_seconds=budget_seconds):
        chunks = pack(queue, candidate.tokens, bounded=True)
        seconds = step_seconds(model, requests=batch.requests, context_tokens=batch.context_tokens, chunks=chunks)
        if seconds <= candidate.budget_seconds:
            return chunks
    return ()


def headroom_tokens_per_second(
    model: LinearStepModel,
    batch: DecodeBatch,
    *,
    candidates_tokens: Iterable[int],
    budget_seconds: float,
    full_chunk_tokens: int,
) -> float:
    """Prefill tokens per second that fit beside this decode batch inside the ITL budget."""
    if batch.requests == 0:
        return full_chunk_tokens / model.prefill_step_seconds(full_chunk_tokens)
    for candidate in bearable_sizes(model, batch, candidates_tokens=candidates_tokens, budget_seconds=budget_seconds):
        seconds = model.mixed_step_seconds(
            requests=batch.requests, context_tokens=batch.context_tokens, chunk_tokens=candidate.tokens
        )
        if seconds <= candidate.budget_seconds:
            return candidate.tokens / seconds
    return 0.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """A chunk size and how long a step with it may take."""

    tokens: int
    budget_seconds: float


def bearable_sizes(
    model: LinearStepModel, batch: DecodeBatch, *, candidates_tokens: Iterable[int], budget_seconds: float
) -> list[Candidate]:
    """Sizes to try, largest first. Where holding prompts back protects nobody, the smallest at any length of step."""
    sizes = sorted(candidates_tokens, reverse=True)
    if protects_anyone(model, batch, smallest_tokens=sizes[-1], step_budget_seconds=budget_seconds):
        return [Candidate(size, budget_seconds) for size in sizes]
    return [Candidate(sizes[-1], math.inf)]
