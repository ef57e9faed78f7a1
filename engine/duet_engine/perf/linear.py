"""Step times that are linear in tokens: what one forward pass takes on one worker.

Invariant: a prompt's cost is the sum of its chunks' costs but for the launch of each step, because attention work is
counted exactly (a chunk of q tokens behind c cached ones attends to q·c + q²/2 pairs). Everything is in seconds and
tokens, and nothing here has state.

Mixed steps add a chunk's work to the decode step's (Kairos, arXiv 2607.02043, section 4.3, in the public form
t_dec(B, KV) + c_pf·chi + c_attn·chi·(done + chi/2)).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from duet_engine.perf.interface import Basis, StepBatch, StepTime
from duet_engine.protocol import StepCoefficients

if TYPE_CHECKING:
    from duet_engine.perf.interface import FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearStepModel:
    """Coefficients of one worker, for one model on one GPU or slice of it.

    Prefill of q tokens behind c cached ones: base + a·q + b·(2·q·c + q²).
    Decode of n requests over k context tokens in all: base + d·n + e·k.
    """

    prefill_base_seconds: float
    prefill_per_token_seconds: float
    prefill_per_token_squared_seconds: float
    decode_base_seconds: float
    decode_per_request_seconds: float
    decode_per_context_token_seconds: float
    transfer_base_seconds: float = 0.0
    transfer_per_token_seconds: float = 0.0

    @classmethod
    def from_coefficients(cls, coefficients: StepCoefficients) -> Self:
        """The model that a worker reported about itself."""
        return cls(**coefficients.model_dump())

    def coefficients(self) -> StepCoefficients:
        """What a worker reports about itself."""
        return StepCoefficients(
            prefill_base_seconds=self.prefill_base_seconds,
            prefill_per_token_seconds=self.prefill_per_token_seconds,
            prefill_per_token_squared_seconds=self.prefill_per_token_squared_seconds,
            decode_base_seconds=self.decode_base_seconds,
            decode_per_request_seconds=self.decode_per_request_seconds,
            decode_per_context_token_seconds=self.decode_per_context_token_seconds,
            transfer_base_seconds=self.transfer_base_seconds,
            transfer_per_token_seconds=self.transfer_per_token_seconds,
        )

    @property
    def sms(self) -> int:
        """It knows of no SMs: a split in hundredths, and no better for being finer."""
        return 100

    @property
    def sm_granularity(self) -> int:
        return 1

    def step(self, batch: StepBatch, *, sm_share: float = 1.0) -> StepTime:
        return StepTime(self.step_seconds(batch, sm_share=sm_share), Basis.ASSUMED)

    def step_seconds(self, batch: StepBatch, *, sm_share: float = 1.0) -> float:
        """Prefill slows as its SMs get fewer, decode doesn't: it reads memory."""
        decode_seconds = chunk_seconds = base_seconds = 0.0
        if batch.prefill_tokens > 0:
            base_seconds = self.prefill_base_seconds
            squares = 2.0 * batch.prefill_pairs - batch.prefill_tokens
            chunk_seconds = (
                self.prefill_per_token_seconds * batch.prefill_tokens + self.prefill_per_token_squared_seconds * squares
            )
        if batch.decode_requests > 0:
            base_seconds = max(base_seconds, self.decode_base_seconds)
            decode_seconds = (
                self.decode_per_request_seconds * batch.decode_requests
                + self.decode_per_context_token_seconds * batch.decode_context_tokens
            )
        return base_seconds + decode_seconds + chunk_seconds / sm_share

    def step_seconds_over(self, batch: StepBatch, sm_shares: FloatArray) -> FloatArray:
        return np.array([self.step_seconds(batch, sm_share=float(share)) for share in sm_shares])

    def chunk_seconds(self, chunk_tokens: float, cached_tokens: float = 0.0) -> float:
        """Work of one chunk without the launch of its step."""
        pairs = 2.0 * chunk_tokens * cached_tokens + chunk_tokens * chunk_tokens
        return self.prefill_per_token_seconds * chunk_tokens + self.prefill_per_token_squared_seconds * pairs

    def prefill_step_seconds(self, chunk_tokens: float, cached_tokens: float = 0.0) -> float:
        """One step that computes `chunk_tokens` new tokens behind `cached_tokens`."""
        return self.prefill_base_seconds + self.chunk_seconds(chunk_tokens, cached_tokens)

    def prompt_seconds(self, prompt_tokens: int, *, cached_tokens: int = 0, chunk_tokens: int) -> float:
        """All steps of one prompt, alone on the worker, in chunks of at most `chunk_tokens`."""
        uncached_tokens = max(prompt_tokens - cached_tokens, 1)
        steps = -(-uncached_tokens // chunk_tokens)
        return steps * self.prefill_base_seconds + self.chunk_seconds(uncached_tokens, cached_tokens)

    def decode_step_seconds(self, requests: float, context_tokens: float) -> float:
        """One token for each of `requests` requests whose contexts are `context_tokens` long in all."""
        return (
            self.decode_base_seconds
            + self.decode_per_request_seconds * requests
            + self.decode_per_context_token_seconds * context_tokens
        )

    def mixed_step_seconds(
        self, *, requests: float, context_tokens: float, chunk_tokens: float, cached_tokens: float = 0.0
    ) -> float:
        """One step with a decode batch and a prefill chunk on all SMs; either may be empty."""
        if chunk_tokens <= 0:
            return self.decode_step_seconds(requests, context_tokens)
        if requests <= 0:
            return self.prefill_step_seconds(chunk_tokens, cached_tokens)
        decode = self.decode_step_seconds(requests, context_tokens) - self.decode_base_seconds
        base = max(self.decode_base_seconds, self.prefill_base_seconds)
        return base + decode + self.chunk_seconds(chunk_tokens, cached_tokens)

    def transfer_seconds(self, tokens: float) -> float:
        """KV of `tokens` tokens from a prefill to a decode worker."""
        return self.transfer_base_seconds + self.transfer_per_token_seconds * tokens

    def scaled(self, *, compute_share: float, bandwidth_share: float) -> Self:
        """The same model on a slice of the GPU: token work grows with fewer SMs, decode with less memory bandwidth."""
        return type(self)(
            prefill_base_seconds=self.prefill_base_seconds / compute_share,
            prefill_per_token_seconds=self.prefill_per_token_seconds / compute_share,
            prefill_per_token_squared_seconds=self.prefill_per_token_squared_seconds / compute_share,
            decode_base_seconds=self.decode_base_seconds / bandwidth_share,
            decode_per_request_seconds=self.decode_per_request_seconds / compute_share,
            decode_per_context_token_seconds=self.decode_per_context_token_seconds / bandwidth_share,
            transfer_base_seconds=self.transfer_base_seconds,
            transfer_per_token_seconds=self.transfer_per_token_seconds,
        )
