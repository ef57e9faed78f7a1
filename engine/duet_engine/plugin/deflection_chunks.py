"""How much of the deflected prompts the next step of a decode worker computes.

Invariant: pure, and equal inputs give equal passes, so that every rank of a worker takes the same one. A pass never
cuts a prompt anywhere but at a page, is never under a page unless it ends its prompt, and beside residents it is never
longer than the ITL budget while it is up to the model to say. Residents that sat one pass out take the next step: where
a batch can't mix, prefill and decode alternate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from duet_engine.perf.interface import StepBatch
from duet_engine.policy.chunks import DecodeBatch, bearable_sizes

if TYPE_CHECKING:
    from duet_engine.perf.interface import StepTimes


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A deflected prompt that is not all computed yet."""

    remaining_tokens: int
    """To compute; what is cached needn't be."""
    context_tokens: int = 0
    """Cached or computed ahead of them."""
    bound_tokens: int | None = None
    """The gateway's bound for the next chunk; 0 asks for none at all."""
    begun: bool = False
    """A chunk of it has run: it is never given up for want of time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkLimits:
    """What bounds the chunks of one worker."""

    page_tokens: int
    full_chunk_tokens: int
    """Of a step without residents."""
    candidates_tokens: tuple[int, ...]
    """Sizes to try beside residents, largest first."""
    step_budget_seconds: float


class Share(NamedTuple):
    """What one prompt gets of a pass. A tuple, because looking for a pass makes dozens."""

    place: int
    """Of its prompt among those asked for."""
    tokens: int
    context_tokens: int


@dataclass(frozen=True, slots=True)
class PrefillPass:
    """Which prompts the next step computes, and how far."""

    shares: tuple[Share, ...]
    budget_tokens: int
    """Chunk budget that makes SGLang cut them just so: it counts each finished prompt in whole pages."""
    predicted_seconds: float

    @property
    def tokens(self) -> int:
        return sum(share.tokens for share in self.shares)

    def sglang_chunk_tokens(self, *, resident_requests: int) -> int:
        """`chunked_prefill_size` for this pass: with mixed chunks SGLang takes one token off it for each resident."""
        return self.budget_tokens + resident_requests


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What the next step would run beside."""

    residents: DecodeBatch
    mixes: bool
    """Whether residents can take part in a step with chunks."""
    residents_sat_out: bool = False
    """The last step was a prefill without them."""
    overdue: bool = False
    """A begun prompt has waited so long that its smallest chunk must run."""


def floor_to_page(tokens: int, page_tokens: int) -> int:
    return tokens // page_tokens * page_tokens


def ceil_to_page(tokens: int, page_tokens: int) -> int:
    return -(-tokens // page_tokens) * page_tokens


def next_pass(
    steps: StepTimes, prompts: Sequence[Prompt], situation: Situation, limits: ChunkLimits
) -> PrefillPass | None:
    """What to prefill in the next step; None leaves it to decode.

    `prompts` are in order; one that SGLang has cut already is the first of them.
    """
    if situation.residents.requests <= 0:
        return _pass(steps, _pack(prompts, limits.full_chunk_tokens, limits.page_tokens), limits, situation)
    if situation.residents_sat_out:
        return None
    sizes = bearable_sizes(
        steps,
        situation.residents,
        candidates_tokens=limits.candidates_tokens,
        step_budget_seconds=limits.step_budget_seconds,
        most_step_tokens=limits.full_chunk_tokens,
    )
    for size in sizes.tokens:
        shares = _pack(prompts, size, limits.page_tokens)
        if shares and seconds_beside(steps, shares, situation) <= sizes.step_budget_seconds:
            return _pass(steps, shares, limits, situation)
    if situation.overdue and prompts and prompts[0].begun:
        smallest = max(limits.candidates_tokens[-1], limits.page_tokens)
        return _pass(steps, _pack(prompts[:1], smallest, limits.page_tokens), limits, situation)
    return None


def seconds_beside(steps: StepTimes, shares: Sequence[Share], situation: Situation) -> float:
    """How long residents wait for their next token when these chunks run: one mixed step, or two steps in turn."""
    residents = situation.residents.moments()
    together = situation.mixes or situation.residents.requests <= 0
    batch = residents if together else StepBatch()
    for share in shares:
        batch = batch.with_chunks(share.tokens, share.context_tokens)
    return steps.step_seconds(batch) + (0.0 if together else steps.step_seconds(residents))


def _pack(prompts: Sequence[Prompt], size_tokens: int, page_tokens: int) -> tuple[Share, ...]:
    """Fill `size_tokens` with prompts in order; only the last one may be cut, and at a page."""
    shares: list[Share] = []
    left_tokens = size_tokens
    for index, prompt in enumerate(prompts):
        if prompt.bound_tokens == 0 and not prompt.begun:
            continue
        room = left_tokens if prompt.bound_tokens is None else min(left_tokens, max(prompt.bound_tokens, page_tokens))
        tokens = prompt.remaining_tokens if prompt.remaining_tokens <= room else floor_to_page(room, page_tokens)
        if tokens <= 0:
            break
        shares.append(Share(index, tokens, prompt.context_tokens))
        left_tokens -= ceil_to_page(tokens, page_tokens)
        if tokens < prompt.remaining_tokens or left_tokens <= 0:
            break
    return tuple(shares)


def _pass(steps: StepTimes, shares: tuple[Share, ...], limits: ChunkLimits, situation: Situation) -> PrefillPass | None:
    if not shares:
        return None
    budget = sum(ceil_to_page(share.tokens, limits.page_tokens) for share in shares[:-1]) + shares[-1].tokens
    return PrefillPass(shares, budget, seconds_beside(steps, shares, situation))
