"""How a prompt is cut into chunks that a decode batch bears: LargestSafe (Kairos, arXiv 2607.02043, 4.3, algorithm 1).

At each step the largest chi of the candidates with T_step(batch, done, chi) <= beta·tau - o, the last one shortened.
The printed budget is beta·tau with beta = 1, which any noise breaks; see `step_budget_seconds`.

Invariant: while a chunk exists whose step stays within the budget, no chunk of the schedule exceeds it, and the chunks
add up to the prompt.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Generic, NamedTuple, TypeVar

from duet_engine.perf.interface import StepBatch, StepTimes

Work = TypeVar("Work")


@dataclass(frozen=True, slots=True)
class DecodeBatch:
    """The requests that get a token in each step of a worker, and the length of their contexts in all."""

    requests: int
    context_tokens: int

    def moments(self) -> StepBatch:
        """The batch as the performance model takes it."""
        return StepBatch.decode(self.requests, self.context_tokens)


@dataclass(frozen=True, slots=True)
class ChunkSchedule:
    """Successive chunks of one prompt and what their steps take in all."""

    chunks_tokens: tuple[int, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class SafeWork(Generic[Work]):
    """What a step of this candidate size would compute, and how long it takes."""

    size_tokens: int
    work: Work
    seconds: float


@dataclass(frozen=True, slots=True)
class SafeSizes:
    """Candidate sizes, largest first, and how long a step with one of them may take."""

    tokens: tuple[int, ...]
    step_budget_seconds: float

    def largest(self, work_of: Callable[[int], Work], seconds_of: Callable[[Work], float]) -> SafeWork[Work] | None:
        """The first size whose work is done within the budget; None if no size's is."""
        for size in self.tokens:
            work = work_of(size)
            seconds = seconds_of(work)
            if seconds <= self.step_budget_seconds:
                return SafeWork(size, work, seconds)
        return None


@cache
def allowed_sizes(candidates_tokens: tuple[int, ...], *, most_tokens: int) -> tuple[int, ...]:
    """The candidates that an engine's buffers allow; its own limit when all are larger."""
    return tuple(size for size in candidates_tokens if size <= most_tokens) or (most_tokens,)


def step_budget_seconds(*, itl_seconds: float, beta: float, engine_gap_seconds: float = 0.0) -> float:
    """How long a step may take beside residents: beta·tau - o.

    `engine_gap_seconds` is o, what a token takes between the engine's step and the client.
    """
    return beta * itl_seconds - engine_gap_seconds


def beta_from_errors(observed_over_predicted_p95: float) -> float:
    """The share of the objective that 95 % of the steps keep when filled to it; never more than all of it."""
    if not observed_over_predicted_p95 > 0.0:
        raise ValueError(f"observed_over_predicted_p95: must be positive, got {observed_over_predicted_p95}")
    return min(1.0, 1.0 / observed_over_predicted_p95)


@cache
def descending(candidates_tokens: tuple[int, ...]) -> tuple[int, ...]:
    """The same sizes.

    Raises:
        ValueError: when they don't descend.
    """
    sizes = candidates_tokens
    if not sizes or sizes[-1] <= 0 or any(larger <= smaller for larger, smaller in pairwise(sizes)):
        raise ValueError(f"candidates_tokens: must descend and hold at least one positive size, got {list(sizes)}")
    return sizes


def bearable_sizes(
    steps: StepTimes,
    batch: DecodeBatch,
    *,
    candidates_tokens: Iterable[int],
    step_budget_seconds: float,
    most_step_tokens: int,
) -> SafeSizes:
    """The sizes to try beside this batch. With the batch's own tokens a step holds no more than `most_step_tokens`, as
    in an ordinary engine with mixed chunks: its buffers are made for so many.

    A batch without requests has no gap to protect. Neither has one on a worker where the smallest chunk beside a
    single request already passes the budget: holding prompts back there would win nothing, so it gets the smallest.
    """
    sizes = descending(tuple(candidates_tokens))
    if batch.requests <= 0:
        return SafeSizes(sizes, math.inf)
    sizes = _beside(batch, sizes, most_step_tokens)
    if protects_anyone(steps, batch, smallest_tokens=sizes[-1], step_budget_seconds=step_budget_seconds):
        return SafeSizes(sizes, step_budget_seconds)
    return SafeSizes(sizes[-1:], math.inf)


def _beside(batch: DecodeBatch, sizes: tuple[int, ...], most_step_tokens: int) -> tuple[int, ...]:
    """The smallest size stays whatever the batch: a prompt that has begun must end some day."""
    room = most_step_tokens - batch.requests
    if sizes[0] <= room:
        return sizes
    return tuple(dict.fromkeys(max(min(size, room), sizes[-1]) for size in sizes))


def protects_anyone(steps: StepTimes, batch: DecodeBatch, *, smallest_tokens: int, step_budget_seconds: float) -> bool:
    """Whether even one request of this batch's mean length could be held within the budget beside a chunk."""
    alone = StepBatch.decode(1.0, batch.context_tokens / max(batch.requests, 1))
    return steps.step_seconds(alone.with_chunks(smallest_tokens)) <= step_budget_seconds


def largest_safe_chunk(
    steps: StepTimes, batch: DecodeBatch, *, candidates_tokens: tuple[int, ...], step_budget_seconds: float
) -> SafeWork[StepBatch] | None:
    """The largest safe chunk of a fresh prompt, by the rule of `bearable_sizes`; None when none is safe."""
    sizes, decoding = descending(candidates_tokens), batch.moments()
    budget = step_budget_seconds if batch.requests > 0 else math.inf
    safe = _largest_chunk(steps, decoding, sizes, budget)
    if safe or protects_anyone(steps, batch, smallest_tokens=sizes[-1], step_budget_seconds=step_budget_seconds):
        return safe
    return _largest_chunk(steps, decoding, sizes[-1:], math.inf)


def _largest_chunk(
    steps: StepTimes, decoding: StepBatch, sizes: tuple[int, ...], budget_seconds: float
) -> SafeWork[StepBatch] | None:
    """By halves: a larger chunk never takes less."""
    found, first, behind = None, 0, len(sizes)
    while first < behind:
        middle = (first + behind) // 2
        work = decoding.with_chunks(sizes[middle])
        seconds = steps.step_seconds(work)
        if seconds <= budget_seconds:
            found, behind = SafeWork(sizes[middle], work, seconds), middle
        else:
            first = middle + 1
    return found


def largest_safe_schedule(
    steps: StepTimes,
    batch: DecodeBatch,
    *,
    prompt_tokens: int,
    candidates_tokens: Sequence[int],
    step_budget_seconds: float,
    cached_tokens: int = 0,
) -> ChunkSchedule | None:
    """The largest safe candidate at each step; None when at some step none is.

    `prompt_tokens` are those to compute, behind `cached_tokens` that needn't be. Steps only get longer as the prompt's
    own context grows, so a size that was unsafe once isn't tried again. The printed algorithm would, for a last chunk
    that is shorter: at most one step less, for chunks that grow again. For the same reason only the ends of a run of
    equal chunks are asked for: its steps grow (nearly) evenly.
    """
    sizes, prompt = descending(tuple(candidates_tokens)), _Prompt(prompt_tokens, cached_tokens)
    budget = step_budget_seconds if batch.requests > 0 else math.inf
    schedule = _Schedule(steps, batch, budget).of(prompt, sizes)
    if schedule or protects_anyone(steps, batch, smallest_tokens=sizes[-1], step_budget_seconds=step_budget_seconds):
        return schedule
    return _Schedule(steps, batch, math.inf).of(prompt, sizes[-1:])


class _Prompt(NamedTuple):
    tokens: int
    cached_tokens: int


class _Schedule:
    """Runs of equal chunks of one prompt, each run as long as its size is safe."""

    __slots__ = ("_budget_seconds", "_decoding", "_step_seconds")

    def __init__(self, steps: StepTimes, batch: DecodeBatch, budget_seconds: float) -> None:
        self._step_seconds = steps.step_seconds
        self._decoding = batch.moments()
        self._budget_seconds = budget_seconds

    def of(self, prompt: _Prompt, sizes: tuple[int, ...]) -> ChunkSchedule | None:
        chunks: list[int] = []
        done_tokens, total_seconds = 0, 0.0
        for size in sizes:
            whole = (prompt.tokens - done_tokens) // size
            count, seconds = self._run(size, prompt.cached_tokens + done_tokens, whole)
            chunks += [size] * count
            done_tokens += count * size
            total_seconds += seconds
            rest = prompt.tokens - done_tokens
            if count == whole and rest:
                seconds = self._seconds(rest, prompt.cached_tokens + done_tokens)
                if seconds <= self._budget_seconds:
                    return ChunkSchedule((*chunks, rest), total_seconds + seconds)
            elif not rest:
                return ChunkSchedule(tuple(chunks), total_seconds)
        return None

    def _run(self, size: int, ahead_tokens: int, most: int) -> tuple[int, float]:
        """How many chunks of this size are safe from here on, at most so many, and what they take in all."""
        if most == 0 or (first := self._seconds(size, ahead_tokens)) > self._budget_seconds:
            return 0, 0.0
        safe, unsafe, last = 1, most + 1, first
        tried = most
        while unsafe - safe > 1:
            seconds = self._seconds(size, ahead_tokens + (tried - 1) * size)
            if seconds <= self._budget_seconds:
                safe, last = tried, seconds
            else:
                unsafe = tried
            tried = (safe + unsafe) // 2
        return safe, safe * (first + last) / 2

    def _seconds(self, chunk_tokens: int, ahead_tokens: int) -> float:
        return self._step_seconds(self._decoding.with_chunks(chunk_tokens, ahead_tokens))


def headroom_tokens_per_second(
    steps: StepTimes,
    batch: DecodeBatch,
    *,
    candidates_tokens: Iterable[int],
    step_budget_seconds: float,
    full_chunk_tokens: int,
) -> float:
    """Prefill tokens per second that fit beside this decode batch: those of the largest safe chunk of a fresh prompt.

    Without a batch the worker prefills in full chunks.
    """
    if batch.requests <= 0:
        return full_chunk_tokens / steps.step_seconds(StepBatch.prefill(full_chunk_tokens))
    safe = largest_safe_chunk(
        steps, batch, candidates_tokens=tuple(candidates_tokens), step_budget_seconds=step_budget_seconds
    )
    return safe.size_tokens / safe.seconds if safe else 0.0
