"""Step times as the simulator asks for them: quickly, and as an engine runs them.

Invariant: nothing here is a latency formula; every figure is the performance model's. Decode batches run padded to the
next captured graph, and a step without a graph takes at least its launch. A decode step's time is linear in the
contexts' length at a given batch where the model says so, so two calls tell all steps of a batch.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from duet_engine.perf.interface import StepBatch, StepTime, StepTimes

if TYPE_CHECKING:
    from duet_engine.simulator.scenario import EngineLimits

Line = tuple[float, float]
"""Seconds without any context, and for each token of it."""
_MOST_REMEMBERED = 200_000
_LINEAR_WITHIN = 1e-9
_PROBES_TOKENS = (1, 16_384, 700, 5_000, 9_000, 60_000)
"""Mean contexts at which a line is drawn (the first two) and tried."""


def decode_line(steps: StepTimes, requests: int, *, sm_share: float = 1.0) -> Line | None:
    """The decode step of so many requests as a line over their contexts; None where it isn't one."""
    contexts = [requests * tokens for tokens in _PROBES_TOKENS]
    times = [steps.step_seconds(StepBatch.decode(requests, context), sm_share=sm_share) for context in contexts]
    slope = (times[1] - times[0]) / (contexts[1] - contexts[0])
    base = times[0] - slope * contexts[0]
    fits = all(
        abs(base + slope * context - seconds) <= _LINEAR_WITHIN * seconds
        for context, seconds in zip(contexts, times, strict=True)
    )
    return (base, slope) if fits else None


class Remembered:
    """A performance model that remembers lines and prompts: what policies ask again and again."""

    __slots__ = ("_lines", "_prompts", "_steps", "_transfer", "sm_granularity", "sms", "step_seconds_over")

    def __init__(self, steps: StepTimes) -> None:
        self._steps = steps
        self._lines: dict[float, Line | None] = {}
        self._prompts: dict[tuple[int, int, int], float] = {}
        base = steps.transfer_seconds(0)
        self._transfer: Line = (base, (steps.transfer_seconds(1 << 20) - base) / (1 << 20))
        self.sms, self.sm_granularity = steps.sms, steps.sm_granularity
        self.step_seconds_over = steps.step_seconds_over

    def step(self, batch: StepBatch, *, sm_share: float = 1.0) -> StepTime:
        return self._steps.step(batch, sm_share=sm_share)

    def step_seconds(self, batch: StepBatch, *, sm_share: float = 1.0) -> float:
        requests = batch.decode_requests
        if batch.prefill_tokens or sm_share != 1.0 or requests < 1.0:
            return self._steps.step_seconds(batch, sm_share=sm_share)
        if requests not in self._lines:
            self._lines[requests] = decode_line(self._steps, int(requests)) if requests % 1 == 0 else None
        line = self._lines[requests]
        return self._steps.step_seconds(batch) if line is None else line[0] + line[1] * batch.decode_context_tokens

    def prompt_seconds(self, prompt_tokens: int, *, cached_tokens: int = 0, chunk_tokens: int) -> float:
        key = (prompt_tokens, cached_tokens, chunk_tokens)
        seconds = self._prompts.get(key)
        if seconds is None:
            if len(self._prompts) >= _MOST_REMEMBERED:
                self._prompts.clear()
            seconds = self._steps.prompt_seconds(prompt_tokens, cached_tokens=cached_tokens, chunk_tokens=chunk_tokens)
            self._prompts[key] = seconds
        return seconds

    def transfer_seconds(self, tokens: float) -> float:
        return self._transfer[0] + self._transfer[1] * tokens


class Pace:
    """The true step times of one pool's engines."""

    __slots__ = ("_limits", "_lines", "_share", "_steps", "handover_seconds", "link_seconds_per_token")

    def __init__(self, steps: StepTimes, limits: EngineLimits, *, decode_sm_share: float = 1.0) -> None:
        self._steps, self._limits, self._share = steps, limits, decode_sm_share
        self._lines: dict[int, Line | None] = {}
        self.handover_seconds = steps.transfer_seconds(0)
        self.link_seconds_per_token = (steps.transfer_seconds(1 << 20) - self.handover_seconds) / (1 << 20)

    def decode_line(self, requests: int) -> Line | None:
        """Steps of this batch over its contexts; None where each must be asked for."""
        if requests not in self._lines:
            line = decode_line(self._steps, self._padded(requests), sm_share=self._share)
            if line is not None and not self._has_graph(requests):
                line = line if line[0] >= self._limits.eager_step_seconds else None
            self._lines[requests] = line
        return self._lines[requests]

    def decode_seconds(self, requests: int, context_tokens: int, *, sm_share: float = 1.0) -> float:
        """One decode step."""
        seconds = self._steps.step_seconds(StepBatch.decode(self._padded(requests), context_tokens), sm_share=sm_share)
        return seconds if self._has_graph(requests) else max(seconds, self._limits.eager_step_seconds)

    def prompt_step_seconds(self, batch: StepBatch, *, sm_share: float = 1.0) -> float:
        """A step with chunks in it."""
        return max(self._steps.step_seconds(batch, sm_share=sm_share), self._limits.eager_step_seconds)

    def _has_graph(self, requests: int) -> bool:
        sizes = self._limits.graph_batch_sizes
        return not sizes or requests <= sizes[-1]

    def _padded(self, requests: int) -> int:
        sizes = self._limits.graph_batch_sizes
        return sizes[bisect_left(sizes, requests)] if sizes and requests <= sizes[-1] else requests
