"""Distributions of prompt and output lengths.

Invariant: every draw is a whole number of tokens from 1 to `LONGEST_TOKENS`, and has the stated mean up to that
rounding and clipping.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    FloatArray = NDArray[np.floating[Any]]

LONGEST_TOKENS = 1_000_000


class Lengths(Protocol):
    """A distribution to draw from."""

    @property
    def mean_tokens(self) -> float: ...

    def draw(self, count: int, generator: np.random.Generator) -> FloatArray:
        """`count` lengths before rounding; `whole` rounds and clips them."""
        ...


def whole(lengths: FloatArray) -> list[int]:
    """Lengths as tokens are counted."""
    tokens: list[int] = np.clip(np.rint(lengths), 1, LONGEST_TOKENS).astype(np.int64).tolist()
    return tokens


@dataclass(frozen=True, slots=True)
class Fixed:
    """Always the same."""

    mean_tokens: float

    def draw(self, count: int, generator: np.random.Generator) -> FloatArray:  # noqa: ARG002 - no chance in it
        return np.full(count, self.mean_tokens)


@dataclass(frozen=True, slots=True)
class Exponential:
    """Memoryless: ServeGen (arXiv 2505.09999) finds outputs so, client by client."""

    mean_tokens: float

    def draw(self, count: int, generator: np.random.Generator) -> FloatArray:
        return generator.exponential(self.mean_tokens, count)


@dataclass(frozen=True, slots=True)
class LogNormal:
    """By mean and coefficient of variation: many short, a few long."""

    mean_tokens: float
    variation: float

    def draw(self, count: int, generator: np.random.Generator) -> FloatArray:
        sigma = math.sqrt(math.log1p(self.variation**2))
        return generator.lognormal(math.log(self.mean_tokens) - sigma**2 / 2, sigma, count)


@dataclass(frozen=True, slots=True)
class HeavyTail:
    """A log-normal body with a Pareto tail: ServeGen finds prompts so."""

    body: LogNormal
    tail_share: float
    tail_start_tokens: float
    tail_exponent: float = 2.5
    """Above 1, or there is no mean; the smaller, the heavier."""

    @property
    def mean_tokens(self) -> float:
        tail = self.tail_start_tokens * self.tail_exponent / (self.tail_exponent - 1)
        return (1 - self.tail_share) * self.body.mean_tokens + self.tail_share * tail

    def draw(self, count: int, generator: np.random.Generator) -> FloatArray:
        body = self.body.draw(count, generator)
        tail = self.tail_start_tokens * (1 + generator.pareto(self.tail_exponent, count))
        return np.where(generator.random(count) < self.tail_share, tail, body)


@dataclass(frozen=True, slots=True)
class Quantiles:
    """By points (share, tokens) of its distribution function, straight between the logarithms of the points."""

    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        shares, tokens = zip(*self.points, strict=True)
        if len(shares) < 2 or shares[0] != 0 or shares[-1] != 1 or list(shares) != sorted(set(shares)):
            raise ValueError(f"quantiles: shares must rise from 0 to 1, got {list(shares)}")
        if tokens[0] < 1 or list(tokens) != sorted(tokens):
            raise ValueError(f"quantiles: tokens must rise from at least 1, got {list(tokens)}")

    @property
    def mean_tokens(self) -> float:
        middles = (np.arange(4096) + 0.5) / 4096
        return float(self._at(middles).mean())

    def draw(self, count: int, generator: np.random.Generator) -> FloatArray:
        return self._at(generator.random(count))

    def _at(self, shares: FloatArray) -> FloatArray:
        known, tokens = zip(*self.points, strict=True)
        return np.exp(np.interp(shares, known, np.log(tokens)))


@dataclass(frozen=True, slots=True)
class Sampled:
    """Drawn from observed lengths, with repetition."""

    observed: tuple[int, ...]

    @property
    def mean_tokens(self) -> float:
        return float(np.mean(self.observed))

    def draw(self, count: int, generator: np.random.Generator) -> FloatArray:
        return generator.choice(np.asarray(self.observed, dtype=float), count)
