"""The gate of one gateway while demand exceeds capacity: whose prompt is looked at next, and who is told to come back.

Order is by class, by the deficit of prompts in prefill, (X - n x*) / x* (Gate-and-Route, arXiv 2602.02987).
By the printed gate alone a class that the plan serves whole gets no more than its mean rate while others queue, so that
its own queue never empties. So classes that are shed in part wait behind those that are not, and get one in `SHED_TURN`
of the departures whatever happens. Within a class prompts that are late already wait behind the others.

Invariant: nobody starves: of the classes that wait each gets its turn. Only a class that the plan sheds is ever turned
away, and only when what waits of it already takes most of its TTFT objective.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from duet_engine.policy.gate import NEGLIGIBLE, PlanGate
from duet_engine.policy.pools_plan import PoolsPlan
from duet_engine.policy.turns import Turns
from duet_engine.protocol import ClassPlan

SHED_TURN = 16
ON_BELOW = 1.05
"""Times the demand that the fleet must be able to serve for the gate to stay off,"""
OFF_ABOVE = 1.2
"""and for it to go off again."""
LONGEST_RETRY_SECONDS = 60.0
SWING = 1.65
"""Standard deviations of the number of requests that aren't shed, for which slots are kept free."""
PATIENCE_SHARE = 0.7
"""Of a class's TTFT objective, which what waits of it may take as planned: the rest is for swings, and for prefill."""
SHED_SHARE = 0.01
"""Of a class's arrivals: less is the solver's rounding."""
DIGITS = 4

Waiting = TypeVar("Waiting")


@dataclass(slots=True)
class Underway:
    """What a gateway has sent and what hasn't ended yet."""

    prefilling: Counter[str] = field(default_factory=Counter)
    """Prompts on their way to their first token, by class."""
    requests: int = 0
    """All of them, those that decode included."""


@dataclass(frozen=True, slots=True)
class _Occupancies:
    prefilling: tuple[float, ...]
    prefill_queue: tuple[float, ...]
    decode_queue: tuple[float, ...]


def class_plans(plan: PoolsPlan) -> tuple[ClassPlan, ...]:
    """A plan as it is told to gateways."""
    return tuple(
        ClassPlan(
            name=share.name,
            prefill_occupancy=_rounded(share.prefilling),
            mixed_occupancy=_rounded(share.mixed),
            solo_occupancy=_rounded(share.solo),
            admitted_per_second=_rounded(share.admitted_per_second),
            shed_per_second=_rounded(share.shed_per_second)
            if share.shed_per_second > SHED_SHARE * share.admitted_per_second
            else 0.0,
        )
        for share in plan.shares
    )


def enough_for(*, on: bool, always: bool = False) -> float:
    """How often the fleet must be able to serve the demand for nobody to be told anything."""
    if always:
        return math.inf
    return OFF_ABOVE if on else ON_BELOW


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


class ClassGate:
    """By one plan, for a gateway that has this share of all requests."""

    def __init__(self, plans: Iterable[ClassPlan], *, share: float = 1.0, printed: bool = False) -> None:
        """`printed`: Gate-and-Route's gate as it stands in the paper, which turns nobody away."""
        self._plans = tuple(plans)
        self._index = {plan.name: index for index, plan in enumerate(self._plans)}
        self._share = share
        self._printed = printed
        self._gate = PlanGate(
            _Occupancies(
                prefilling=tuple(share * plan.prefill_occupancy for plan in self._plans),
                prefill_queue=tuple(plan.shed_per_second for plan in self._plans),
                decode_queue=(0.0,) * len(self._plans),
            ),
            workers=1,
            back_pressure=False,
        )
        self._slots_for_shed = self._slots()
        self._shed = tuple(plan.shed_per_second > NEGLIGIBLE and not printed for plan in self._plans)

    def _slots(self) -> float:
        """Requests under way with which steps still are within the objective when those come who aren't shed.

        How many of them are there swings as a Poisson number does.
        """
        taken = [plan.prefill_occupancy + plan.mixed_occupancy + plan.solo_occupancy for plan in self._plans]
        whole = sum(slots for slots, plan in zip(taken, self._plans, strict=True) if not plan.shed_per_second)
        return self._share * sum(taken) - SWING * math.sqrt(self._share * whole)

    def retry_after_seconds(self, name: str, *, waiting: int, ttft_objective_seconds: float) -> float | None:
        """When to come back, for a request of this class behind so many others; None lets it in."""
        index = self._index.get(name)
        if index is None or not self._shed[index] or waiting == 0:
            return None
        rate = self._share * self._plans[index].admitted_per_second
        wait_seconds = (waiting + 1) / max(rate, NEGLIGIBLE)
        if wait_seconds <= PATIENCE_SHARE * ttft_objective_seconds:
            return None
        return min(max(wait_seconds, 1.0), LONGEST_RETRY_SECONDS)

    def order(
        self, queues: Mapping[str, Sequence[Waiting]], underway: Underway, *, most: int, whole_in_a_row: int
    ) -> list[Waiting]:
        """The first `most` in the order in which they should be looked at; each queue is in its own order.

        A class that the plan doesn't know has just begun to ask: it is served before all others until the next plan.
        Classes that are shed wait while the planned slots are taken: engines would let them in, and decode slower than
        anybody was promised.
        """
        unknown = [each for name, queue in queues.items() if name not in self._index for each in queue]
        ordered = unknown[:most]
        waiting = [len(queues.get(plan.name, ())) for plan in self._plans]
        in_prefill = [underway.prefilling[plan.name] for plan in self._plans]
        free = self._slots_for_shed - underway.requests - len(ordered)
        taken = [0] * len(self._plans)
        while len(ordered) < most:
            index = self._next(in_prefill, waiting, whole_in_a_row, free=free > 0)
            if index is None:
                break
            ordered.append(queues[self._plans[index].name][taken[index]])
            taken[index] += 1
            waiting[index] -= 1
            in_prefill[index] += 1
            free -= 1
            whole_in_a_row = 0 if self._shed[index] else whole_in_a_row + 1
        return ordered

    def sheds(self, name: str) -> bool:
        """Whether this class is served in part only."""
        index = self._index.get(name)
        return index is not None and self._shed[index]

    def _next(
        self, prefilling: Sequence[int], waiting: Sequence[int], whole_in_a_row: int, *, free: bool
    ) -> int | None:
        if self._printed:
            return self._gate.admit(prefilling, waiting, heads_arrived=())
        whole = [0 if shed else count for shed, count in zip(self._shed, waiting, strict=True)]
        shed = [count if shed else 0 for shed, count in zip(self._shed, waiting, strict=True)]
        turn_of_shed = any(shed) and ((free and not any(whole)) or whole_in_a_row >= SHED_TURN - 1)
        return self._gate.admit(prefilling, shed if turn_of_shed else whole, heads_arrived=())


class OfClass(Protocol):
    """Whoever waits."""

    @property
    def class_name(self) -> str: ...


AnyOfClass = TypeVar("AnyOfClass", bound=OfClass)


@dataclass(frozen=True, slots=True)
class Through:
    """One pass through a gate."""

    turns: Callable[[str], Turns]
    gate: ClassGate
    underway: Underway
    whole_in_a_row: int

    def first(
        self, waiting: Iterable[AnyOfClass], late: Callable[[AnyOfClass], bool], *, most: int
    ) -> list[AnyOfClass]:
        """The first `most` in the order in which they should be looked at; `waiting` is in order of arrival."""
        by_class: dict[str, list[AnyOfClass]] = {}
        for each in waiting:
            by_class.setdefault(each.class_name, []).append(each)
        queues = {name: self.turns(name).first(queue, late, most=most) for name, queue in by_class.items()}
        return self.gate.order(queues, self.underway, most=most, whole_in_a_row=self.whole_in_a_row)


class ClassTurns:
    """Whose turn it is while the gate is on: the part that outlives a plan."""

    def __init__(self) -> None:
        self._turns: dict[str, Turns] = {}
        self._whole_in_a_row = 0

    def through(self, gate: ClassGate, underway: Underway) -> Through:
        """One pass."""
        return Through(self._of, gate, underway, self._whole_in_a_row)

    def left(self, gate: ClassGate, name: str, *, late: bool) -> None:
        """A prompt of this class has left for its workers."""
        self._of(name).left(late=late)
        self._whole_in_a_row = 0 if gate.sheds(name) else self._whole_in_a_row + 1

    def _of(self, name: str) -> Turns:
        return self._turns.setdefault(name, Turns())
