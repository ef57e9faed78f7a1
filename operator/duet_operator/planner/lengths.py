"""How long requests are, and how long prompts may wait: the traffic's shape as capacities need it.

Invariant: prompt lengths are taken as log-normal with the measured mean and P95, so that a few very long prompts
neither vanish in a mean nor decide alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import exp, log, sqrt
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

NORMAL_P95 = 1.645
NORMAL_DECILE_MIDDLES = (-1.645, -1.036, -0.674, -0.385, -0.126, 0.126, 0.385, 0.674, 1.036, 1.645)
UNKNOWN_SIGMA = sqrt(log(2.0))
"""As varied as exponential lengths, until a P95 was measured."""
GREATEST_SIGMA = sqrt(log(5.0))
FULL_WEIGHT_SHARE = 0.25
"""A prompt that may wait less than this share of its objective counts in proportion: with no room to wait it misses
whatever the number of workers, and must not cost GPUs."""
FULLY_JUDGED_SHARE = 0.1
LOWEST_UTILISATION, HIGHEST_UTILISATION = 0.4, 0.9


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


@dataclass(frozen=True, slots=True)
class Patience:
    """What one class of prompts may wait, of what objective."""

    slack_seconds: float
    objective_seconds: float


@dataclass(frozen=True, slots=True)
class WaitLimit:
    """How steeply waits must die away, P(wait > t) = exp(-rate·t), and the share of prompts that this is for."""

    rate: float
    judged_share: float


def wait_limit(patiences: Sequence[Patience], miss_share: float) -> WaitLimit:
    """The least steep limit by which no more than `miss_share` of the prompts that can wait at all wait too long."""
    classes = [
        (min(each.slack_seconds / (FULL_WEIGHT_SHARE * each.objective_seconds), 1.0) / len(patiences), each)
        for each in patiences
        if each.slack_seconds > 0
    ]
    judged = sum(weight for weight, _ in classes)

    def too_steep(rate: float) -> bool:
        return sum(weight * exp(-rate * each.slack_seconds) for weight, each in classes) <= miss_share * judged

    if not classes:
        return WaitLimit(0.0, 0.0)
    low, high = 0.0, 1.0
    while not too_steep(high):
        low, high = high, 2 * high
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if too_steep(middle) else (middle, high)
    return WaitLimit(high, judged)


def utilisation(*, servers: int, service_seconds: float, limit: WaitLimit, variation: float) -> float:
    """Highest share of time that the servers of one queue may be busy so that waits stay within the limit.

    Heavy traffic in M/G/c: P(wait > t) ≈ exp(-2·c·(1-ρ)·t / (ρ·s·(1+v))), solved for ρ; M/D/1 is c = 1, v = 0. Where
    hardly any prompt can wait and still be in time, more servers would help nobody, and they may be busy.
    """
    strict = 1 / (1 + limit.rate * service_seconds * (1 + variation) / (2 * servers))
    strict = min(max(strict, LOWEST_UTILISATION), HIGHEST_UTILISATION)
    relevance = min(limit.judged_share / FULLY_JUDGED_SHARE, 1.0)
    return HIGHEST_UTILISATION - relevance * (HIGHEST_UTILISATION - strict)
