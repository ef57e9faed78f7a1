"""How a prompt is cut into chunks that a decode batch bears: the LargestSafe schedule (Kairos, arXiv 2607.02043, 4.3).

Invariant: while a chunk exists whose step stays within the budget, no chunk of the schedule exceeds it, and the chunks
add up to the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from duet_engine.perf.linear import LinearStepModel


@dataclass(frozen=True, slots=True)
class DecodeBatch:
    """The requests that get a token in each step of a worker, and the length of their contexts in all."""

    requests: int
    context_tokens: int


@dataclass(frozen=True, slots=True)
class ChunkSchedule:
    """Successive chunks of one prompt and what their steps take in all."""

    chunks_tokens: tuple[int, ...]
    seconds: float


def largest_safe_schedule(
    steps: LinearStepModel,
    batch: DecodeBatch,
    *,
    prompt_tokens: int,
    candidates_tokens: Sequence[int],
    step_budget_seconds: float,
) -> ChunkSchedule | None:
    """The largest candidate that is safe at each step; None when at some step none is.

    `candidates_tokens` descends. Steps only get longer as the prompt's own context grows, so the candidate never grows
    back. A batch without requests has no gap to protect. Neither has one on a worker where the smallest chunk beside a
    single request already passes the budget: holding prompts back there would win nothing, so it gets the smallest.
    """
    if any(larger <= smaller for larger, smaller in pairwise(candidates_tokens)) or not candidates_tokens:
        raise ValueError(f"candidates_tokens: must descend and hold at least one size, got {list(candidates_tokens)}")
    remaining_sizes = list(candidates_tokens)
    budget_seconds = step_budget_seconds
    if batch.requests <= 0:
        budget_seconds = float("inf")
    elif not protects_anyone(steps, batch, smallest_tokens=remaining_sizes[-1], step_budget_seconds=budget_seconds):
        remaining_sizes, budget_seconds = remaining_sizes[-1:], float("inf")
    chunks: list[int] = []
    done_tokens, total_seconds, size_index = 0, 0.0, 0
    while done_tokens < prompt_tokens:
        if size_index == len(remaining_sizes):
            return None
        chunk_tokens = min(remaining_sizes[size_index], prompt_tokens - done_tokens)
        step_seconds = steps.mixed_step_seconds(
            requests=batch.requests,
            context_tokens=batch.context_tokens,
            chunk_tokens=chunk_tokens,
            cached_tokens=done_tokens,
        )
        if step_seconds > budget_seconds:
            size_index += 1
            continue
        chunks.append(chunk_tokens)
        done_tokens += chunk_tokens
        total_seconds += step_seconds
    return ChunkSchedule(tuple(chunks), total_seconds)


def protects_anyone(
    steps: LinearStepModel, batch: DecodeBatch, *, smallest_tokens: int, step_budget_seconds: float
) -> bool:
    """Whether even one request of this batch's mean length could be held within the budget beside a chunk."""
    mean_context_tokens = batch.context_tokens / max(batch.requests, 1)
    alone_seconds = steps.mixed_step_seconds(
        requests=1, context_tokens=mean_context_tokens, chunk_tokens=smallest_tokens
    )
    return alone_seconds <= step_budget_seconds
