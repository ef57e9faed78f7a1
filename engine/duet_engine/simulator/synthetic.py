"""Made-up workloads: a rate over time, how irregular arrivals are, and how long requests are.

Arrivals are a renewal process with gamma gaps (variation 1: Poisson; above: bursty; below: regular), stretched by the
integral of the rate, so irregularity and rate are independent of each other. Many unequal clients together are
ServeGen's picture of a production workload (arXiv 2505.09999, section 4): few send most, each at its own burstiness
and with its own lengths.

Invariant: arrival times, prompts and outputs are drawn from generators of their own, so changing one leaves the others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Self

import numpy as np

from duet_engine.simulator.lengths import Exponential, HeavyTail, Lengths, LogNormal, whole
from duet_engine.simulator.workload import DEFAULT_CLASS, PREFIX_BLOCK_TOKENS, Request, merged

if TYPE_CHECKING:
    from duet_engine.simulator.lengths import FloatArray

BLOCK_REQUESTS = 1024
"""Drawn at once: vectorised, and still a stream."""
STEPS_A_PERIOD = 288
STEPS_A_LINE = 64


@dataclass(frozen=True, slots=True)
class Rate:
    """Requests per second over time, in steps: `requests_per_second[i]` holds from `edges_seconds[i]` on."""

    edges_seconds: tuple[float, ...]
    requests_per_second: tuple[float, ...]

    @classmethod
    def constant(cls, requests_per_second: float, *, seconds: float) -> Self:
        return cls((0.0, seconds), (requests_per_second,))

    @classmethod
    def bursts(
        cls, requests_per_second: float, *, seconds: float, factor: float, every_seconds: float, lasting_seconds: float
    ) -> Self:
        """`factor` times as much for `lasting_seconds` at the end of each `every_seconds`."""
        if not 0 < lasting_seconds < every_seconds:
            raise ValueError(f"lasting_seconds: must be between 0 and {every_seconds}, got {lasting_seconds}")
        edges, rates = [0.0], []
        for period in range(math.ceil(seconds / every_seconds)):
            end = (period + 1) * every_seconds
            edges += [end - lasting_seconds, end]
            rates += [requests_per_second, requests_per_second * factor]
        return cls(tuple(edges), tuple(rates))._until(seconds)

    @classmethod
    def diurnal(
        cls, requests_per_second: float, *, seconds: float, lowest_share: float, period_seconds: float = 86_400.0
    ) -> Self:
        """A sine around the mean rate, from its lowest point, `lowest_share` of the mean, on."""
        step = period_seconds / STEPS_A_PERIOD
        edges = np.arange(math.ceil(seconds / step) + 1) * step
        middles = edges[:-1] + step / 2
        rates = requests_per_second * (1 - (1 - lowest_share) * np.cos(2 * math.pi * middles / period_seconds))
        return cls(tuple(edges.tolist()), tuple(rates.tolist()))._until(seconds)

    @classmethod
    def through(cls, points: Sequence[tuple[float, float]]) -> Self:
        """Straight lines between points (seconds, requests per second); the first point is the start."""
        times, values = zip(*points, strict=True)
        if len(times) < 2 or times[0] != 0 or list(times) != sorted(set(times)):
            raise ValueError(f"points: times must rise from 0, got {list(times)}")
        marks = [np.linspace(*pair, STEPS_A_LINE, endpoint=False) for pair in pairwise(times)]
        edges = np.concatenate([*marks, times[-1:]])
        middles = (edges[:-1] + edges[1:]) / 2
        return cls(tuple(edges.tolist()), tuple(np.interp(middles, times, values).tolist()))

    @property
    def seconds(self) -> float:
        return self.edges_seconds[-1]

    @property
    def expected_requests(self) -> float:
        return float(self._expected()[-1])

    def scaled(self, factor: float) -> Self:
        """The same course, `factor` times as much."""
        return type(self)(self.edges_seconds, tuple(rate * factor for rate in self.requests_per_second))

    def times(self, expected: FloatArray) -> FloatArray:
        """When so many requests are expected to have come."""
        return np.interp(expected, self._expected(), self.edges_seconds)

    def _expected(self) -> FloatArray:
        return np.concatenate([[0.0], np.cumsum(np.diff(self.edges_seconds) * self.requests_per_second)])

    def _until(self, seconds: float) -> Self:
        steps = sum(edge < seconds for edge in self.edges_seconds)
        return type(self)((*self.edges_seconds[:steps], seconds), self.requests_per_second[:steps])


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedPrefix:
    """A prompt's beginning that requests of one group have in common, such as a system prompt."""

    blocks: int
    """Of 512 tokens, on top of the prompt's own length."""
    groups: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """One class of made-up requests."""

    rate: Rate
    input_tokens: Lengths
    output_tokens: Lengths
    variation: float = 1.0
    """Coefficient of variation of the gaps between arrivals."""
    prefix: SharedPrefix | None = None
    class_name: str = DEFAULT_CLASS

    def requests(self, seed: int | Sequence[int]) -> Iterator[Request]:
        """The stream; the same for the same seed."""
        gaps, inputs, outputs, groups = (
            np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(4)
        )
        hashes = self._hashes(seed)
        prefix_tokens = self.prefix.blocks * PREFIX_BLOCK_TOKENS if self.prefix else 0
        for times in self._times(gaps):
            count = len(times)
            input_tokens = whole(self.input_tokens.draw(count, inputs))
            output_tokens = whole(self.output_tokens.draw(count, outputs))
            chosen = groups.integers(len(hashes), size=count).tolist()
            for time, own, output, group in zip(times, input_tokens, output_tokens, chosen, strict=True):
                yield Request(time, prefix_tokens + own, output, hashes[group], self.class_name)

    def _times(self, generator: np.random.Generator) -> Iterator[list[float]]:
        """Arrival times, a block after the other."""
        shape, end, reached = self.variation**-2, self.rate.expected_requests, 0.0
        while reached < end:
            expected = reached + np.cumsum(generator.gamma(shape, 1 / shape, BLOCK_REQUESTS))
            reached = float(expected[-1])
            times: list[float] = self.rate.times(expected[expected < end]).tolist()
            yield times

    def _hashes(self, seed: int | Sequence[int]) -> list[tuple[int, ...]]:
        """The hashes of each group; of another seed, others."""
        if self.prefix is None:
            return [()]
        generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(4,)))
        blocks = generator.integers(2**48, size=(self.prefix.groups, self.prefix.blocks))
        return [tuple(group) for group in blocks.tolist()]


def mixed(traffic: Sequence[Traffic], seed: int) -> Iterator[Request]:
    """Several classes as one workload."""
    return merged([each.requests([seed, index]) for index, each in enumerate(traffic)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Clients:
    """Many unequal clients: what `client_traffic` makes traffic from."""

    rate: Rate
    """Of all together."""
    count: int = 50
    skew: float = 1.5
    """The k-th client sends k^-skew as much as the first."""
    variation: float = 1.5
    """Typical burstiness of one client."""
    mean_input_tokens: float = 1500.0
    mean_output_tokens: float = 250.0
    spread: float = 0.6
    """Standard deviation of the logarithm of a client's own means and burstiness around these."""
    prefix_blocks: int = 0
    """System prompt of each client."""
    class_name: str = DEFAULT_CLASS


def client_traffic(clients: Clients, seed: int | Sequence[int]) -> list[Traffic]:
    """One class of requests for each client: prompts log-normal with a Pareto tail, outputs exponential."""
    weights = np.arange(1, clients.count + 1, dtype=float) ** -clients.skew
    shares = (weights / weights.sum()).tolist()
    generator = np.random.default_rng(seed)
    factors = np.exp(clients.spread * generator.standard_normal((clients.count, 3)))
    for column in (0, 1):  # so that the mean over all requests is the stated one
        factors[:, column] /= np.average(factors[:, column], weights=shares)
    prefix = SharedPrefix(blocks=clients.prefix_blocks) if clients.prefix_blocks else None
    return [
        Traffic(
            rate=clients.rate.scaled(share),
            input_tokens=_prompts(clients.mean_input_tokens * inputs),
            output_tokens=Exponential(clients.mean_output_tokens * outputs),
            variation=clients.variation * burstiness,
            prefix=prefix,
            class_name=clients.class_name,
        )
        for share, (inputs, outputs, burstiness) in zip(shares, factors.tolist(), strict=True)
    ]


def _prompts(mean_tokens: float) -> HeavyTail:
    """A twentieth of the prompts from four times the mean on; the body makes up for them."""
    share, start, exponent = 0.05, 4.0, 2.5
    body = (1 - share * start * exponent / (exponent - 1)) / (1 - share)
    return HeavyTail(LogNormal(body * mean_tokens, 1.0), share, start * mean_tokens, exponent)
