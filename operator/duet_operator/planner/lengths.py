"""How long requests are: the traffic's shape as capacities need it.

Invariant: prompt lengths are taken as log-normal with the measured mean and P95, so that a few very long prompts
neither vanish in a mean nor decide alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import exp, log, sqrt

NORMAL_P95 = 1.645
NORMAL_DECILE_MIDDLES = (-1.645, -1.036, -0.674, -0.385, -0.126, 0.126, 0.385, 0.674, 1.036, 1.645)
UNKNOWN_SIGMA = sqrt(log(2.0))
"""As varied as exponential lengths, until a P95 was measured."""
GREATEST_SIGMA = sqrt(log(5.0))


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """What requests look like, in tokens: means, and the P95 of prompts (0: unknown)."""

    input_tokens: float
    cached_tokens: float
    output_tokens: float
    p95_input_tokens: float = 0.0

    @cached_property
    def uncached_tokens(self) -> float:
        return max(self.input_tokens - self.cached_tokens, 1.0)

    @cached_property
    def uncached_share(self) -> float:
        return self.uncached_tokens / max(self.input_tokens, 1.0)

    @cached_property
    def context_tokens(self) -> float:
        """Mean context of a resident request over its decode."""
        return self.input_tokens + self.output_tokens / 2

    @cached_property
    def sigma(self) -> float:
        """Standard deviation of the logarithm of prompt lengths."""
        if self.p95_input_tokens <= 0 or self.input_tokens <= 0:
            return UNKNOWN_SIGMA
        ratio = max(self.p95_input_tokens / self.input_tokens, 1.0)
        return min(NORMAL_P95 - sqrt(max(NORMAL_P95**2 - 2 * log(ratio), 0.0)), GREATEST_SIGMA)

    @cached_property
    def squared_variation(self) -> float:
        """Squared coefficient of variation of prompt lengths."""
        return exp(self.sigma**2) - 1

    @cached_property
    def weighted_uncached_tokens(self) -> float:
        """Length of the prompt that the mean token belongs to: where work per token should be judged."""
        return self.uncached_tokens * (1 + self.squared_variation)

    def typical_inputs(self) -> tuple[float, ...]:
        """The middles of ten equally likely classes of prompt lengths."""
        sigma = self.sigma
        middle = self.input_tokens * exp(-(sigma**2) / 2)
        return tuple(max(middle * exp(sigma * normal), 1.0) for normal in NORMAL_DECILE_MIDDLES)
