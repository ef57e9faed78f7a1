"""Keeping a model true while it runs: one slow factor for each kind of step, from the steps that are observed.

Invariant: no single step moves a factor by more than a fraction of a percent, no factor leaves its bounds, and how far
it has gone is visible: a model that needs much correction isn't calibrated for what it runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Self

import numpy as np

from duet_engine.perf.interface import StepBatch, StepTime, StepTimes
from duet_engine.protocol import StepKind

if TYPE_CHECKING:
    from duet_engine.perf.interface import FloatArray

WEIGHT = 1 / 256
"""Of one step in its factor."""
LARGEST_SURPRISE = 2.0
"""A step counts as at most so many times too long or too short: stalls say nothing about the model."""
BOUND = 1.5
"""A factor stays between its inverse and itself."""
DRIFTED = 1.15
"""From here on the model should be calibrated anew."""


def kind_of(batch: StepBatch) -> StepKind:
    """What kind of step a batch makes."""
    if batch.prefill_tokens <= 0:
        return StepKind.DECODE if batch.decode_requests > 0 else StepKind.IDLE
    return StepKind.MIXED if batch.decode_requests > 0 else StepKind.PREFILL


@dataclass(frozen=True, slots=True)
class Correction:
    """Factors on predicted step times."""

    factors: Mapping[StepKind, float] = field(default_factory=dict)

    def factor(self, kind: StepKind) -> float:
        """By how much longer steps of this kind take than the model says."""
        return self.factors.get(kind, 1.0)

    def observed(self, kind: StepKind, *, predicted_seconds: float, observed_seconds: float) -> Self:
        """After one more step; `predicted_seconds` is the model's own, without correction."""
        if predicted_seconds <= 0 or observed_seconds <= 0:
            return self
        surprise = observed_seconds / predicted_seconds / self.factor(kind)
        surprise = min(max(surprise, 1 / LARGEST_SURPRISE), LARGEST_SURPRISE)
        moved = self.factor(kind) * surprise**WEIGHT
        return replace(self, factors={**self.factors, kind: min(max(moved, 1 / BOUND), BOUND)})

    @property
    def drifted(self) -> dict[StepKind, float]:
        """The kinds of steps whose model is off, with their factors."""
        return {kind: factor for kind, factor in self.factors.items() if abs(math.log(factor)) > math.log(DRIFTED)}


@dataclass(frozen=True, slots=True)
class CorrectedSteps:
    """A model with a correction on its step times; implements `interface.StepTimes`."""

    model: StepTimes
    correction: Correction

    @property
    def sms(self) -> int:
        return self.model.sms

    @property
    def sm_granularity(self) -> int:
        return self.model.sm_granularity

    def step(self, batch: StepBatch, *, sm_share: float = 1.0) -> StepTime:
        seconds, basis = self.model.step(batch, sm_share=sm_share)
        return StepTime(seconds * self.correction.factor(kind_of(batch)), basis)

    def step_seconds(self, batch: StepBatch, *, sm_share: float = 1.0) -> float:
        return self.model.step_seconds(batch, sm_share=sm_share) * self.correction.factor(kind_of(batch))

    def step_seconds_over(self, batch: StepBatch, sm_shares: FloatArray) -> FloatArray:
        return np.asarray(self.model.step_seconds_over(batch, sm_shares) * self.correction.factor(kind_of(batch)))

    def prompt_seconds(self, prompt_tokens: int, *, cached_tokens: int = 0, chunk_tokens: int) -> float:
        seconds = self.model.prompt_seconds(prompt_tokens, cached_tokens=cached_tokens, chunk_tokens=chunk_tokens)
        return seconds * self.correction.factor(StepKind.PREFILL)

    def transfer_seconds(self, tokens: float) -> float:
        return self.model.transfer_seconds(tokens)
