"""How long prompts wait for a pool, and how busy it may be for that.

Invariant: a larger pool may be at least as busy, a more patient traffic too, and more varied prompts never.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import erf, exp, pi, sqrt
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

FULL_WEIGHT_SHARE = 0.25
"""A prompt that may wait less than this share of its objective counts in proportion: with no room to wait it misses
whatever the number of workers, and must not cost GPUs."""
FULLY_JUDGED_SHARE = 0.1
LOWEST_UTILISATION, HIGHEST_UTILISATION = 0.4, 0.9
HALVINGS = 9


@dataclass(frozen=True, slots=True)
class Patience:
    """What one class of prompts may wait, of what objective."""

    slack_seconds: float
    objective_seconds: float


@dataclass(frozen=True)
class WaitLimit:
    """How long classes of prompts may wait, and the share of them that may wait longer."""

    slacks: tuple[tuple[float, float], ...]
    """Weight and seconds of each class that can wait at all; weights add up to 1 where all can wait long enough."""
    miss_share: float

    @cached_property
    def judged_share(self) -> float:
        """Weight of the prompts that can wait at all."""
        return sum(weight for weight, _ in self.slacks)

    def holds(self, *, waiting_share: float, rate: float) -> bool:
        """Whether few enough wait too long, where P(wait > t) = waiting_share · exp(-rate·t)."""
        late = sum(weight * exp(-rate * seconds) for weight, seconds in self.slacks)
        return waiting_share * late <= self.miss_share * self.judged_share


def wait_limit(patiences: Sequence[Patience], miss_share: float) -> WaitLimit:
    """The limit of equally frequent classes."""
    slacks = tuple(
        (
            min(each.slack_seconds / (FULL_WEIGHT_SHARE * each.objective_seconds), 1.0) / len(patiences),
            each.slack_seconds,
        )
        for each in patiences
        if each.slack_seconds > 0
    )
    return WaitLimit(slacks, miss_share)


def utilisation(*, servers: int, service_seconds: float, limit: WaitLimit, variation: float) -> float:
    """Highest share of time that the servers of one queue may be busy so that waits stay within the limit.

    M/G/c in heavy traffic: P(wait > t) ≈ P(wait) · exp(-2·c·(1-ρ)·t / (ρ·s·(1+v))); M/D/1 is c = 1, v = 0. Where hardly
    any prompt can wait and still be in time, more servers would help nobody, and they may be busy.
    """

    def holds(busy: float) -> bool:
        rate = 2 * servers * (1 - busy) / (busy * service_seconds * (1 + variation))
        return limit.holds(waiting_share=waiting_share(servers, busy), rate=rate)

    strict = HIGHEST_UTILISATION if holds(HIGHEST_UTILISATION) else _highest(holds)
    relevance = min(limit.judged_share / FULLY_JUDGED_SHARE, 1.0)
    return HIGHEST_UTILISATION - relevance * (HIGHEST_UTILISATION - strict)


def _highest(holds: Callable[[float], bool]) -> float:
    low, high = LOWEST_UTILISATION, HIGHEST_UTILISATION
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def waiting_share(servers: int, busy: float) -> float:
    """Share of arrivals that find all servers busy: Halfin and Whitt's limit of Erlang's C formula (Operations Research
    29(3), 1981, theorem 1), the reason why room for swings grows with the square root of a pool only."""
    room = (1 - busy) * sqrt(servers)
    below = (1 + erf(room / sqrt(2))) / 2
    density = exp(-(room**2) / 2) / sqrt(2 * pi)
    return density / (density + room * below) if density > 0 else 0.0
