"""The bundled sample: a few minutes of made-up code and conversation requests, the same for the same seed.

Invariant: no request is copied from a trace. Lengths follow quantiles of the published Azure LLM inference traces
(Splitwise, ISCA'24; CC-BY 4.0), drawn evenly over each distribution so that even a few hundred requests have its mean
and its tail; arrival times are a Poisson process whose rate follows a day in small: a quiet start, a burst led by code
completion, a lull, and a moderate end.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from duet_engine.traces import Arrival

SEED = 20231116

type_points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of request: quantiles (share, tokens) of its lengths, and its rate over time (seconds, requests/s)."""

    input_tokens: type_points
    output_tokens: type_points
    requests_per_second: type_points


CODE = Kind(
    input_tokens=((0, 8), (0.05, 75), (0.25, 578), (0.5, 1469), (0.75, 2745), (0.9, 5187), (0.95, 7303), (1, 7437)),
    output_tokens=((0, 6), (0.05, 6), (0.25, 9), (0.5, 13), (0.75, 24), (0.9, 55), (0.95, 90), (0.99, 250), (1, 420)),
    requests_per_second=((0, 0.5), (30, 0.5), (60, 3.0), (95, 3.0), (105, 0.4), (155, 0.4), (170, 1.0), (200, 1.0)),
)
CONVERSATION = Kind(
    input_tokens=((0, 8), (0.05, 181), (0.25, 396), (0.5, 1020), (0.75, 1189), (0.9, 2735), (0.95, 4083), (1, 4142)),
    output_tokens=((0, 7), (0.05, 41), (0.25, 85), (0.5, 129), (0.75, 395), (0.9, 424), (0.95, 451), (1, 780)),
    requests_per_second=((0, 1.0), (30, 1.0), (60, 7.0), (95, 7.0), (105, 0.8), (155, 0.8), (170, 2.5), (200, 2.5)),
)
TINY = Kind(
    input_tokens=((0, 8), (0.5, 150), (0.9, 500), (1, 900)),
    output_tokens=((0, 40), (0.5, 100), (1, 200)),
    requests_per_second=((0, 0.5), (30, 0.5), (40, 2.0), (150, 2.0), (160, 0.3), (450, 0.3)),
)
"""For engines that run on this machine's own cores: a burst that outlasts a cold start of a minute, and a lull that
outlasts the two cold starts for which a single burst is remembered."""
KINDS = (CODE, CONVERSATION)


def bundled_sample(seed: int = SEED, kinds: Sequence[Kind] = KINDS) -> list[Arrival]:
    """All arrivals of the sample, in order of time."""
    source = random.Random(seed)
    arrivals = [arrival for kind in kinds for arrival in _arrivals(kind, source)]
    return sorted(arrivals, key=lambda arrival: arrival.time_seconds)


def _arrivals(kind: Kind, source: random.Random) -> list[Arrival]:
    times = list(_poisson_times(kind.requests_per_second, source))
    inputs = _spread(kind.input_tokens, len(times), source)
    outputs = _spread(kind.output_tokens, len(times), source)
    return [
        Arrival(round(time, 3), input_tokens, output_tokens)
        for time, input_tokens, output_tokens in zip(times, inputs, outputs, strict=True)
    ]


def _poisson_times(rate: type_points, source: random.Random) -> Iterator[float]:
    """Arrival times of a Poisson process with this rate: a unit process, stretched by the rate's integral."""
    areas = [(after[0] - before[0]) * (after[1] + before[1]) / 2 for before, after in pairwise(rate)]
    expected = [0.0, *accumulate(areas)]
    arrived = 0.0
    while (arrived := arrived - math.log(1.0 - source.random())) < expected[-1]:
        piece = max(index for index, value in enumerate(expected[:-1]) if value <= arrived)
        yield _time_of(arrived - expected[piece], rate[piece], rate[piece + 1])


def _time_of(area: float, before: tuple[float, float], after: tuple[float, float]) -> float:
    """When the integral of the line from `before` to `after` reaches `area`."""
    slope = (after[1] - before[1]) / (after[0] - before[0])
    return before[0] + 2 * area / (before[1] + math.sqrt(before[1] ** 2 + 2 * slope * area))


def _spread(quantiles: type_points, count: int, source: random.Random) -> list[int]:
    """`count` lengths, one from each equal slice of the distribution, shuffled.

    `sorted` by `random()` is the shuffle, because only `random()` is promised to stay the same between Pythons.
    """
    lengths = [_quantile(quantiles, (index + 0.5) / count) for index in range(count)]
    return sorted(lengths, key=lambda _: source.random())


def _quantile(quantiles: type_points, share: float) -> int:
    """The length below which `share` of the requests lie, by straight lines between the logarithms of the points."""
    for (low, shorter), (high, longer) in pairwise(quantiles):
        if share <= high:
            return round(shorter * math.pow(longer / shorter, (share - low) / (high - low)))
    return round(quantiles[-1][1])
