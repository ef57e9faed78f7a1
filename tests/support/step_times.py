"""Step times for tests of whoever asks for them: linear in tokens, so that what a test expects can be told by hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from duet_engine.perf.interface import Basis, StepBatch, StepTime

if TYPE_CHECKING:
    from duet_engine.perf.interface import FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearSteps:
    """Prefill of q tokens behind c: base + a·q + b·(2·q·c + q²). Decode of n requests over k tokens: base + d·n + e·k.

    A mixed step has one base, the longer. Implements `duet_engine.perf.interface.StepTimes`; SMs make no difference.
    """

    prefill_base_seconds: float
    prefill_per_token_seconds: float
    prefill_per_token_squared_seconds: float = 0.0
    decode_base_seconds: float
    decode_per_request_seconds: float = 0.0
    decode_per_context_token_seconds: float = 0.0
    transfer_base_seconds: float = 0.0
    transfer_per_token_seconds: float = 0.0

    @property
    def sms(self) -> int:
        return 100

    @property
    def sm_granularity(self) -> int:
        return 1

    def step(self, batch: StepBatch, *, sm_share: float = 1.0) -> StepTime:
        return StepTime(self.step_seconds(batch, sm_share=sm_share), Basis.ASSUMED)

    def step_seconds(self, batch: StepBatch, *, sm_share: float = 1.0) -> float:
        del sm_share
        base, work = 0.0, 0.0
        if batch.prefill_tokens > 0:
            base = self.prefill_base_seconds
            work = self.chunk_seconds(batch)
        if batch.decode_requests > 0:
            base = max(base, self.decode_base_seconds)
            work += self.decode_per_request_seconds * batch.decode_requests
            work += self.decode_per_context_token_seconds * batch.decode_context_tokens
        return base + work

    def step_seconds_over(self, batch: StepBatch, sm_shares: FloatArray) -> FloatArray:
        return np.full_like(sm_shares, self.step_seconds(batch))

    def chunk_seconds(self, batch: StepBatch) -> float:
        """Work of a step's chunks without the launch of the step."""
        squares = 2.0 * batch.prefill_pairs - batch.prefill_tokens
        return self.prefill_per_token_seconds * batch.prefill_tokens + self.prefill_per_token_squared_seconds * squares

    def prompt_seconds(self, prompt_tokens: int, *, cached_tokens: int = 0, chunk_tokens: int) -> float:
        uncached_tokens = max(prompt_tokens - cached_tokens, 1)
        steps = -(-uncached_tokens // chunk_tokens)
        return steps * self.prefill_base_seconds + self.chunk_seconds(StepBatch.prefill(uncached_tokens, cached_tokens))

    def transfer_seconds(self, tokens: float) -> float:
        return self.transfer_base_seconds + self.transfer_per_token_seconds * tokens


QUICK = LinearSteps(
    prefill_base_seconds=0.005,
    prefill_per_token_seconds=2e-5,
    prefill_per_token_squared_seconds=1e-10,
    decode_base_seconds=0.005,
    decode_per_request_seconds=1e-4,
    decode_per_context_token_seconds=1e-7,
    transfer_base_seconds=0.001,
    transfer_per_token_seconds=1e-6,
)
"""A small model on a large GPU: 45 ms for 2,000 tokens."""

SLOW = LinearSteps(
    prefill_base_seconds=0.005,
    prefill_per_token_seconds=1e-4,
    decode_base_seconds=0.005,
    decode_per_request_seconds=1e-4,
    decode_per_context_token_seconds=1e-7,
    transfer_base_seconds=0.001,
    transfer_per_token_seconds=1e-6,
)
"""A tenth of a second for a thousand tokens."""
