"""What a decode worker's deflection goes by: live knobs, the performance model, and bounds on waiting.

Invariant: a value; whoever changes something puts another in its place, so that one pass never sees half of a change.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from duet_engine.perf.linear import LinearStepModel
from duet_engine.plugin.deflection_chunks import ChunkLimits
from duet_engine.policy.chunks import step_budget_seconds
from duet_engine.protocol import Knobs, ProtocolError, StepCoefficients

if TYPE_CHECKING:
    from duet_engine.perf.interface import StepTimes

ITL_VARIABLE = "DUET_ITL_MILLISECONDS"
STEPS_VARIABLE = "DUET_STEP_COEFFICIENTS"
LIMIT_VARIABLE = "DUET_DEFLECTED_REQUESTS_LIMIT"
DEFAULT_ITL_MILLISECONDS = 50
DEFAULT_LIMIT = 16


class SettingsError(ValueError):
    """A variable that can't be read; the message names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeflectionSettings:
    """One worker's settings."""

    knobs: Knobs
    steps: StepTimes | None = None
    """Without a model nothing is known to be safe, and nothing is deflected here."""
    most_deflected_requests: int = DEFAULT_LIMIT
    wait_seconds: float = 2.0
    """How long a request may wait for its first chunk where no chunk can run, and a begun one for its next."""
    unsafe_seconds: float = 0.5
    """How long no chunk may have been safe before those that wait are sent elsewhere at once."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """What holds until somebody says otherwise.

        Raises:
            SettingsError: naming the variable.
        """
        coefficients = environment.get(STEPS_VARIABLE)
        try:
            steps = LinearStepModel.from_coefficients(StepCoefficients.read(coefficients)) if coefficients else None
        except ProtocolError as error:
            raise SettingsError(f"{STEPS_VARIABLE}: {error}") from error
        itl_milliseconds = _positive(environment, ITL_VARIABLE, DEFAULT_ITL_MILLISECONDS)
        return cls(
            knobs=Knobs(generation=0, itl_milliseconds=itl_milliseconds),
            steps=steps,
            most_deflected_requests=_positive(environment, LIMIT_VARIABLE, DEFAULT_LIMIT),
        )

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


def _positive(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, str(default))
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number <= 0:
        raise SettingsError(f"{name}: must be a positive whole number, got {text!r}")
    return number
