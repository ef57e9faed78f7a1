"""The gate of one gateway while demand exceeds capacity: whose prompt is looked at next, and who is told to come back.

Order is by class, by the deficit of prompts in prefill, (X - n x*) / x* (Gate-and-Route, arXiv 2602.02987).
By the printed gate alone a class that the plan serves whole gets no more than its mean rate while others queue, so that
its own queue never empties. So classes that are shed in part wait behind those that are not, and get one in `SHED_TURN`
of the departures whatever happens. Within a class prompts that are late already wait behind the others.

Invariant: nobody starves: of the classes that wait each gets its turn. Only a class that the plan sheds is ever turned
away, and only when what waits of it already takes longer than its TTFT objective.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
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
SHED_SHARE = 0.01
"""Of a class's arrivals: less is the solver's rounding."""
DIGITS = 4

Waiting = TypeVar("Waiting")


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
        self._shed = tuple(plan.shed_per_second > NEGLIGIBLE and not printed for plan in self._plans)

    def retry_after_seconds(self, name: str, *, waiting: int, ttft_objective_seconds: float) -> float | None:
        """When to come back, for a request of this class behind so many others; None lets it in."""
        index = self._index.get(name)
        if index is None or not self._shed[index] or waiting == 0:
            return None
        rate = self._share * self._plans[index].admitted_per_second
        wait_seconds = (waiting + 1) / max(rate, NEGLIGIBLE)
        if wait_seconds <= ttft_objective_seconds:
            return None
        return min(max(wait_seconds, 1.0), LONGEST_RETRY_SECONDS)

    def order(
        self, queues: Mapping[str, Sequence[Waiting]], prefilling: Mapping[str, int], *, most: int, whole_in_a_row: int
    ) -> list[Waiting]:
        """The first `most` in the order in which they should be looked at; each queue is in its own order.

        A class that the plan doesn't know has just begun to ask: it is served before all others until the next plan.
        """
        unknown = [each for name, queue in queues.items() if name not in self._index for each in queue]
        ordered = unknown[:most]
        waiting = [len(queues.get(plan.name, ())) for plan in self._plans]
        in_prefill = [prefilling.get(plan.name, 0) for plan in self._plans]
        taken = [0] * len(self._plans)
        while len(ordered) < most:
            index = self._next(in_prefill, waiting, whole_in_a_row)
            if index is None:
                break
            ordered.append(queues[self._plans[index].name][taken[index]])
            taken[index] += 1
            waiting[index] -= 1
            in_prefill[index] += 1
            whole_in_a_row = 0 if self._shed[index] else whole_in_a_row + 1
        return ordered

    def sheds(self, name: str) -> bool:
        """Whether this class is served in part only."""
        index = self._index.get(name)
        return index is not None and self._shed[index]

    def _next(self, prefilling: Sequence[int], waiting: Sequence[int], whole_in_a_row: int) -> int | None:
        if self._printed:
            return self._gate.admit(prefilling, waiting, heads_arrived=())
        whole = [0 if shed else count for shed, count in zip(self._shed, waiting, strict=True)]
        shed = [count if shed else 0 for shed, count in zip(self._shed, waiting, strict=True)]
        turn_of_shed = any(shed) and (not any(whole) or whole_in_a_row >= SHED_TURN - 1)
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
    prefilling: Mapping[str, int]
    whole_in_a_row: int

    def first(
        self, waiting: Iterable[AnyOfClass], late: Callable[[AnyOfClass], bool], *, most: int
    ) -> list[AnyOfClass]:
        """The first `most` in the order in which they should be looked at; `waiting` is in order of arrival."""
        by_class: dict[str, list[AnyOfClass]] = {}
        for each in waiting:
            by_class.setdefault(each.class_name, []).append(each)
        queues = {name: self.turns(name).first(queue, late, most=most) for name, queue in by_class.items()}
        return self.gate.order(queues, self.prefilling, most=most, whole_in_a_row=self.whole_in_a_row)


class ClassTurns:
    """Whose turn it is while the gate is on: the part that outlives a plan."""

    def __init__(self) -> None:
        self._turns: dict[str, Turns] = {}
        self._whole_in_a_row = 0

    def through(self, gate: ClassGate, prefilling: Mapping[str, int]) -> Through:
        """One pass, with so many prompts of each class in prefill."""
        return Through(self._of, gate, prefilling, self._whole_in_a_row)

    def left(self, gate: ClassGate, name: str, *, late: bool) -> None:
        """A prompt of this class has left for its workers."""
        self._of(name).left(late=late)
        self._whole_in_a_row = 0 if gate.sheds(name) else self._whole_in_a_row + 1

    def _of(self, name: str) -> Turns:
        return self._turns.setdefault(name, Turns())
