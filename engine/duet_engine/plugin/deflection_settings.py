"""What a decode worker's deflection goes by: live knobs, the performance model, and bounds on waiting.

Invariant: a value; whoever changes something puts another in its place, so that one pass never sees half of a change.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from duet_engine.plugin.deflection_chunks import ChunkLimits
from duet_engine.plugin.settings import SettingError
from duet_engine.policy.chunks import step_budget_seconds
from duet_engine.protocol import Knobs

if TYPE_CHECKING:
    from duet_engine.perf.interface import StepTimes

LIMIT_VARIABLE = "DUET_DEFLECTED_REQUESTS_LIMIT"
DEFAULT_LIMIT = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class DeflectionSettings:
    """One worker's settings."""

    knobs: Knobs
    steps: StepTimes
    """What is safe follows from it."""
    most_deflected_requests: int = DEFAULT_LIMIT
    wait_seconds: float = 2.0
    """How long a request may wait for its first chunk where no chunk can run, and a begun one for its next."""
    unsafe_seconds: float = 0.5
    """How long no chunk may have been safe before those that wait are sent elsewhere at once."""

    @property
    def step_budget_seconds(self) -> float:
        """How long a step beside residents may take: the ITL objective less the margin for prediction errors."""
        return step_budget_seconds(itl_seconds=self.knobs.itl_milliseconds / 1e3, beta=self.knobs.beta_percent / 100)

    def limits(self, *, page_tokens: int, full_chunk_tokens: int) -> ChunkLimits:
        """What bounds this worker's chunks. Sizes are whole pages, and none is above what SGLang has memory for."""
        within = {min(size, full_chunk_tokens) for size in self.knobs.chunk_candidates_tokens}
        sizes = {max(size // page_tokens, 1) * page_tokens for size in within}
        return ChunkLimits(
            page_tokens=page_tokens,
            full_chunk_tokens=full_chunk_tokens,
            candidates_tokens=tuple(sorted(sizes, reverse=True)),
            step_budget_seconds=self.step_budget_seconds,
        )


def requests_limit(environment: Mapping[str, str] = os.environ) -> int:
    """How many deflected prompts may wait or be under way.

    Raises:
        SettingError: the variable holds no positive number.
    """
    text = environment.get(LIMIT_VARIABLE, str(DEFAULT_LIMIT))
    if not text.isdecimal() or int(text) == 0:
        raise SettingError(f"{LIMIT_VARIABLE}: must be a positive whole number, got {text!r}")
    return int(text)
