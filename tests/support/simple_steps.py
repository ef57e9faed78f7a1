"""Step times that are easy to reckon with: linear in tokens, requests and contexts."""

from dataclasses import dataclass

import numpy as np

from duet_engine.perf.interface import Basis, StepBatch, StepTime


@dataclass(frozen=True, kw_only=True)
class SimpleSteps:
    """`duet_engine.perf.interface.StepTimes`. Prompts slow down with fewer SMs, decode doesn't."""

    prompt_base_seconds: float = 0.005
    prompt_token_seconds: float = 5e-5
    prompt_pair_seconds: float = 4e-8
    decode_base_seconds: float = 0.006
    decode_request_seconds: float = 2e-4
    decode_context_token_seconds: float = 2e-6
    transfer_base_seconds: float = 0.002
    transfer_token_seconds: float = 1e-5
    sms: int = 100
    sm_granularity: int = 10

    def step(self, batch: StepBatch, *, sm_share: float = 1.0) -> StepTime:
        return StepTime(self.step_seconds(batch, sm_share=sm_share), Basis.ASSUMED)

    def step_seconds(self, batch: StepBatch, *, sm_share: float = 1.0) -> float:
        base = prompts = decode = 0.0
        if batch.prefill_tokens > 0:
            base = self.prompt_base_seconds
            prompts = self.prompt_token_seconds * batch.prefill_tokens + self.prompt_pair_seconds * batch.prefill_pairs
        if batch.decode_requests > 0:
            base = max(base, self.decode_base_seconds)
            decode = self.decode_request_seconds * batch.decode_requests
            decode += self.decode_context_token_seconds * batch.decode_context_tokens
        return base + decode + prompts / sm_share

    def step_seconds_over(self, batch: StepBatch, sm_shares: np.ndarray) -> np.ndarray:
        return np.array([self.step_seconds(batch, sm_share=float(share)) for share in sm_shares])

    def prompt_seconds(self, prompt_tokens: int, *, cached_tokens: int = 0, chunk_tokens: int) -> float:
        total, done = 0.0, min(cached_tokens, prompt_tokens - 1)
        while done < prompt_tokens:
            chunk = min(chunk_tokens, prompt_tokens - done)
            total += self.step_seconds(StepBatch.prefill(chunk, done))
            done += chunk
        return total

    def transfer_seconds(self, tokens: float) -> float:
        return self.transfer_base_seconds + self.transfer_token_seconds * tokens
