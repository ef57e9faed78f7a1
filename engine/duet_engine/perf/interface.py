"""What policies ask of a performance model: how long a step takes at a share of the SMs, and what that rests on.

Invariant: a batch is given by its moments, so its size costs nothing, and everything is in seconds and tokens. Whoever
decides from a step time reads its basis too: a gain that rests on an assumption is no gain to a live policy.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    FloatArray = NDArray[np.floating[Any]]


class Basis(StrEnum):
    """What a figure rests on, best first."""

    MEASURED = "measured"
    """Steps of this model on this GPU, timed whole."""
    KERNEL_COMPOSED = "kernel-composed"
    """Kernels timed on this GPU, added up to steps."""
    DATA_SHEET = "data-sheet"
    """The vendor's figures, with efficiencies of other GPUs."""
    ASSUMED = "assumed"
    """Nothing that was measured tells it."""

    @property
    def known(self) -> bool:
        """Whether a live policy may count a gain that rests on this."""
        return self is not Basis.ASSUMED


def weakest(*bases: Basis) -> Basis:
    """What a figure rests on that is made of several: the weakest of theirs."""
    order = list(Basis)
    return max(bases, key=order.index)


class StepBatch(NamedTuple):
    """What one forward pass computes, by its moments. Either part may be empty.

    A tuple, because the loops that look for chunks make dozens of them for one decision.
    """

    decode_requests: float = 0.0
    decode_context_tokens: float = 0.0
    """Length of the decoding requests' contexts in all."""
    prefill_requests: float = 0.0
    """Prompts that have a chunk in this step."""
    prefill_tokens: float = 0.0
    """Tokens of these chunks in all."""
    prefill_context_tokens: float = 0.0
    """Tokens already computed or cached ahead of these chunks, in all."""
    prefill_pairs: float = 0.0
    """Pairs of tokens that attend to each other: q·c + q(q+1)/2 for each chunk of q tokens behind c."""

    @classmethod
    def decode(cls, requests: float, context_tokens: float) -> StepBatch:
        """One token for each of `requests` requests whose contexts are `context_tokens` long in all."""
        return cls(requests, context_tokens)

    @classmethod
    def prefill(
        cls, chunk_tokens: float, context_tokens: float = 0.0, *, requests: float = 1.0, printed: bool = False
    ) -> StepBatch:
        """Equal chunks of `requests` prompts: `chunk_tokens` new tokens behind `context_tokens` each."""
        return cls().with_chunks(chunk_tokens, context_tokens, requests=requests, printed=printed)

    def with_chunks(
        self, chunk_tokens: float, context_tokens: float = 0.0, *, requests: float = 1.0, printed: bool = False
    ) -> StepBatch:
        """This batch and equal chunks of more prompts beside it.

        `printed` counts pairs as the DuetServe paper prints it, q(q+c): without the causal half, so a prompt's chunks
        cost less than the prompt. For reproducing the paper only.
        """
        decode_requests, decode_context_tokens, prompts, tokens, ahead_tokens, pairs = self
        new_pairs = chunk_tokens * (chunk_tokens if printed else (chunk_tokens + 1.0) / 2.0)
        return StepBatch(
            decode_requests,
            decode_context_tokens,
            prompts + requests,
            tokens + requests * chunk_tokens,
            ahead_tokens + requests * context_tokens,
            pairs + requests * (chunk_tokens * context_tokens + new_pairs),
        )

    @classmethod
    def of(cls, parts: Iterable[StepBatch]) -> StepBatch:
        """All parts in one step: moments add up."""
        return cls(*(sum(moments) for moments in zip(*(cls(), *parts), strict=True)))

    @property
    def tokens(self) -> float:
        """Tokens that pass through the model."""
        return self.decode_requests + self.prefill_tokens

    @property
    def decode_part(self) -> StepBatch:
        """The decode batch alone."""
        return StepBatch.decode(self.decode_requests, self.decode_context_tokens)

    @property
    def prefill_part(self) -> StepBatch:
        """The chunks alone."""
        return self._replace(decode_requests=0.0, decode_context_tokens=0.0)


class StepTime(NamedTuple):
    """How long a step takes and what that rests on."""

    seconds: float
    basis: Basis


class StepTimes(Protocol):
    """One replica: one model on its GPUs or slices of them."""

    @property
    def sms(self) -> int:
        """Streaming multiprocessors of one of its GPUs or slices."""
        ...

    @property
    def sm_granularity(self) -> int:
        """SMs that a split can only move together: those of a TPC."""
        ...

    def step(self, batch: StepBatch, *, sm_share: float = 1.0) -> StepTime:
        """The step on `sm_share` of the SMs, with its basis. A batch with both parts is a mixed step."""
        ...

    def step_seconds(self, batch: StepBatch, *, sm_share: float = 1.0) -> float:
        """The same without its basis, for inner loops: at most 10 µs; 0 for an empty batch."""
        ...

    def step_seconds_over(self, batch: StepBatch, sm_shares: FloatArray) -> FloatArray:
        """The same batch at each of many shares, in one call."""
        ...

    def prompt_seconds(self, prompt_tokens: int, *, cached_tokens: int = 0, chunk_tokens: int) -> float:
        """All steps of one prompt, alone on all SMs, in chunks of at most `chunk_tokens`."""
        ...

    def transfer_seconds(self, tokens: float) -> float:
        """KV of so many tokens from a prefill to a decode worker."""
        ...
