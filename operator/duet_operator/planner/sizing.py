"""The least-cost numbers of prefill and decode workers that carry a load.

Invariant: a feasible size carries the load by `capacity.Fleet`; no feasible size within the limits costs less; and a
greater load never gets a cheaper size. Among equally cheap sizes the one nearest the present counts wins, so that noise
doesn't trade one pool for the other, then the one that deflects fewer prompts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from duet_operator.planner.capacity import MOST_REPLICAS, fewest
from duet_operator.planner.types import Counts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from duet_operator.planner.capacity import Fleet
    from duet_operator.planner.load import Load


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a size may be. Costs are those of one replica, in any unit; `max_gpus` bounds both pools together."""

    lowest: Counts
    highest: Counts
    gpus: Counts
    cost: Counts
    max_gpus: int | None = None

    def gpus_of(self, counts: Counts) -> int:
        return counts.prefill * self.gpus.prefill + counts.decode * self.gpus.decode

    def cost_of(self, counts: Counts) -> int:
        return counts.prefill * self.cost.prefill + counts.decode * self.cost.decode

    def allow(self, counts: Counts) -> bool:
        return (
            self.lowest.prefill <= counts.prefill <= self.highest.prefill
            and self.lowest.decode <= counts.decode <= self.highest.decode
            and (self.max_gpus is None or self.gpus_of(counts) <= self.max_gpus)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizing:
    """A size, and whether it carries the load."""

    counts: Counts
    feasible: bool


def size(load: Load, *, fleet: Fleet, limits: Limits, present: Counts) -> Sizing:
    """The cheapest feasible size within the limits; where there is none, the most useful one within the bounds."""

    def rank(counts: Counts) -> tuple[int, int, float]:
        return limits.cost_of(counts), counts.distance(present), deflected_share(load, fleet, counts)

    best = min(_candidates(load, fleet, limits), key=rank, default=None)
    if best is None:
        return Sizing(counts=_best_effort(load, fleet, limits), feasible=False)
    return Sizing(counts=best, feasible=True)


def deflected_share(load: Load, fleet: Fleet, counts: Counts) -> float:
    """Share of prompts that the prefill pool leaves to the decode workers, as far as they can take them."""
    left = max(load.input_tokens - fleet.input_capacity(counts.prefill), 0.0)
    return min(left, fleet.deflectable(counts.decode, load)) / load.input_tokens if left > 0 else 0.0


def carries(load: Load, fleet: Fleet, counts: Counts) -> bool:
    """Whether this size carries the load."""
    if fleet.output_capacity(counts.decode) < load.output_tokens:
        return False
    left = load.input_tokens - fleet.input_capacity(counts.prefill)
    return left <= 0 or fleet.deflectable(counts.decode, load) >= left


def _candidates(load: Load, fleet: Fleet, limits: Limits) -> Iterator[Counts]:
    """For each useful number of decode workers the fewest prefill workers, where the limits allow both.

    More decode workers than their own work needs only help by taking deflected prompts, so the search ends where no
    prefill worker is left to save, or where the decode workers alone cost more than a size already found.
    """
    lowest, highest = limits.lowest, limits.highest
    best_cost: int | None = None
    for decode in range(_fewest_useful_decode(load, fleet, limits), highest.decode + 1):
        if best_cost is not None and limits.cost_of(Counts(lowest.prefill, decode)) > best_cost:
            return
        left = load.input_tokens - fleet.deflectable(decode, load)
        counts = Counts(max(_fewest_prefill(left, fleet), lowest.prefill), decode)
        if limits.allow(counts):
            best_cost = min(limits.cost_of(counts), best_cost or limits.cost_of(counts))
            yield counts
        if counts.prefill == lowest.prefill:
            return


def _fewest_useful_decode(load: Load, fleet: Fleet, limits: Limits) -> int:
    """Fewest decode workers that carry the load beside all the prefill workers there may be."""
    most = limits.highest.prefill
    needed = fewest(lambda replicas: carries(load, fleet, Counts(most, replicas)), most=limits.highest.decode)
    return max(needed, limits.lowest.decode)


def _fewest_prefill(input_tokens: float, fleet: Fleet) -> int:
    return fewest(lambda replicas: fleet.input_capacity(replicas) >= input_tokens, most=MOST_REPLICAS)


def _fewest_decode(load: Load, fleet: Fleet) -> int:
    return fewest(lambda replicas: fleet.output_capacity(replicas) >= load.output_tokens, most=MOST_REPLICAS)


def _best_effort(load: Load, fleet: Fleet, limits: Limits) -> Counts:
    """Each pool as large as its own work asks inside the bounds and the budget, and with the room that is left decode
    workers for the prompts that the prefill pool can't take."""
    wanted = Counts(_fewest_prefill(load.input_tokens, fleet), _fewest_decode(load, fleet))
    own = within_budget(wanted.at_least(limits.lowest).at_most(limits.highest), limits)
    most = limits.highest.decode
    if limits.max_gpus is not None:
        most = min(most, own.decode + max(limits.max_gpus - limits.gpus_of(own), 0) // limits.gpus.decode)
    taken = min(load.input_tokens - fleet.input_capacity(own.prefill), fleet.deflectable(most, load))
    helping = fewest(lambda replicas: fleet.deflectable(replicas, load) >= taken, most=most)
    return Counts(own.prefill, min(max(own.decode, helping), most))


def within_budget(counts: Counts, limits: Limits) -> Counts:
    """Both pools shrunk in proportion until they fit the GPU budget, never under their lowest counts."""
    budget = limits.max_gpus
    total = limits.gpus_of(counts)
    if budget is None or total <= budget:
        return counts
    lowest, gpus = limits.lowest, limits.gpus
    prefill = min(max(counts.prefill * budget // total, lowest.prefill), counts.prefill)
    room = (budget - prefill * gpus.prefill) // gpus.decode
    decode = min(max(room, lowest.decode), counts.decode)
    left = (budget - decode * gpus.decode) // gpus.prefill
    return Counts(min(max(left, lowest.prefill), counts.prefill), decode)
