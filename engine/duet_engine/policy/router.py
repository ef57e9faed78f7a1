"""Which pool decodes a finished prefill: Gate-and-Route's routers (arXiv 2602.02987, sections 4 and 5).

Solo workers never prefill and decode faster; mixed ones keep a slot for prefill. The greedy router takes a free solo
slot, else a free mixed one, else the request waits in one buffer. The SLI-aware router sends each class to the solo
pool with probability p_s = mu_s y_s* / (mu_m y_m* + mu_s y_s*) and lets it wait for that pool, so that occupancies
approach the plan's class by class. Within a pool every free worker is equally likely.

Invariant: a request is only placed where a slot is free. Chance comes in as a number in [0, 1), so a seed gives the
same run again.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto
from typing import Protocol, TypeVar

from duet_engine.policy.fluid_plan import FluidPlan

Worker = TypeVar("Worker")


class Pool(Enum):
    """The two kinds of workers under a static plan."""

    SOLO = auto()
    MIXED = auto()


class Place(Enum):
    """Where a finished prefill goes: a worker of a pool, or a buffer to wait in."""

    SOLO = auto()
    MIXED = auto()
    BUFFER = auto()
    """One for both pools."""
    SOLO_BUFFER = auto()
    MIXED_BUFFER = auto()


class Router(Protocol):
    """Decides by the numbers of free slots: no clock, nothing kept."""

    def place(self, traffic_class: int, *, solo_free: int, mixed_free: int, draw: float) -> Place:
        """Where a request of this class decodes. `draw` is uniform in [0, 1)."""
        ...


class GreedyRouter:
    """Gate-and-Route's: solo if there's room, else mixed, else one buffer that either pool serves."""

    __slots__ = ()

    def place(
        self,
        traffic_class: int,  # noqa: ARG002 - all classes alike
        *,
        solo_free: int,
        mixed_free: int,
        draw: float,  # noqa: ARG002 - nothing is left to chance
    ) -> Place:
        if solo_free > 0:
            return Place.SOLO
        return Place.MIXED if mixed_free > 0 else Place.BUFFER


class ShareRouter:
    """The SLI-aware router: each class's planned share to each pool, and a buffer for each."""

    __slots__ = ("_probabilities", "_weights")

    def __init__(self, plan: FluidPlan) -> None:
        self._probabilities = plan.solo_probabilities()
        pace = plan.pace
        self._weights = {
            Pool.SOLO: tuple(
                pace.solo_decodes_per_second(one) * count
                for one, count in zip(plan.classes, plan.decoding_solo, strict=True)
            ),
            Pool.MIXED: tuple(
                pace.mixed_decodes_per_second(one) * count
                for one, count in zip(plan.classes, plan.decoding_mixed, strict=True)
            ),
        }

    def place(self, traffic_class: int, *, solo_free: int, mixed_free: int, draw: float) -> Place:
        if draw < self._probabilities[traffic_class]:
            return Place.SOLO if solo_free > 0 else Place.SOLO_BUFFER
        return Place.MIXED if mixed_free > 0 else Place.MIXED_BUFFER

    def next_class(self, pool: Pool, waiting: Sequence[int], draw: float) -> int | None:
        """Whom a freed slot of this pool takes where decode queues are planned for (electronic companion, 13).

        By chance, in proportion to the planned throughput of the classes that wait; evenly where none of them has any.
        """
        weights = [weight if waiting[index] > 0 else 0.0 for index, weight in enumerate(self._weights[pool])]
        if sum(weights) <= 0.0:
            weights = [1.0 if count > 0 else 0.0 for count in waiting]
        return weighted_index(weights, draw)


def weighted_index(weights: Sequence[float], draw: float) -> int | None:
    """An index by chance in proportion to its weight; None when all weights are 0."""
    left = draw * sum(weights)
    last = None
    for index, weight in enumerate(weights):
        if weight <= 0.0:
            continue
        last = index
        left -= weight
        if left < 0.0:
            return index
    return last


def uniform_choice(free: Sequence[Worker], draw: float) -> Worker:
    """One of the workers with a free slot, each as likely as the others."""
    return free[min(int(draw * len(free)), len(free) - 1)]
