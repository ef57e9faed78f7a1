"""A load: what must be carried, per second.

Invariant: three rates of one mix of requests; scaling keeps the mix.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What must be carried, per second."""

    requests: float
    input_tokens: float
    """Uncached ones: what must be computed."""
    output_tokens: float

    def __add__(self, other: Load) -> Load:
        return Load(
            requests=self.requests + other.requests,
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
        )

    def scaled(self, factor: float) -> Load:
        """The same mix, `factor` times as much."""
        return Load(
            requests=self.requests * factor,
            input_tokens=self.input_tokens * factor,
            output_tokens=self.output_tokens * factor,
        )

    def at_least(self, other: Load) -> Load:
        """The greater of each rate."""
        return Load(
            requests=max(self.requests, other.requests),
            input_tokens=max(self.input_tokens, other.input_tokens),
            output_tokens=max(self.output_tokens, other.output_tokens),
        )
