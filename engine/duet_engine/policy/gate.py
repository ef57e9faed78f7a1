"""Whose prompt is prefilled next when a prefill slot is free: Gate-and-Route's gate (arXiv 2602.02987, section 4).

Of the classes with someone waiting the gate takes the one that is furthest below its planned occupancy,

    argmin xi_i,   xi_i = (X_i - n x_i*) / x_i*

and of equal ones the one whose queue exceeds its plan most, Q_i - n q_p,i*. The printed xi is undefined for a class
that the plan gives nothing (x_i* = 0): such a class goes last, or never. Prioritize-and-Route (section 4, charged by
phase) takes the class with the most output for its prompt, D_i / P_i.

Invariant: a gate only names a class in which someone waits. While no more decodes wait than are planned for it
names one whenever anybody whom it serves does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from duet_engine.policy.fluid_model import TrafficClass

NEGLIGIBLE = 1e-9
"""Shares and queues below it are the solver's rounding: a class with such a share would otherwise always go first."""


class Occupancies(Protocol):
    """What a gate needs of a plan: averages per worker, one entry for each class."""

    @property
    def prefilling(self) -> tuple[float, ...]: ...

    @property
    def prefill_queue(self) -> tuple[float, ...]: ...

    @property
    def decode_queue(self) -> tuple[float, ...]: ...


class Gate(Protocol):
    """Decides by the numbers of each class: no clock, nothing kept."""

    def admit(
        self,
        prefilling: Sequence[int],
        waiting: Sequence[int],
        *,
        heads_arrived: Sequence[float],
        decodes_waiting: int = 0,
    ) -> int | None:
        """The class whose head is prefilled next; None when nobody is to be.

        `heads_arrived` says when each class's first in line came; of an empty class it says nothing. `decodes_waiting`
        are prefilled and wait for a decode slot.
        """
        ...


class PlanGate:
    """Gate-and-Route's: keeps every class's prefills at its planned number."""

    __slots__ = ("_most_decodes", "_planned", "_queue_targets", "_shares", "_shed", "_unplanned", "_workers")

    def __init__(
        self, plan: Occupancies, *, workers: int, serve_unplanned: bool = True, back_pressure: bool = True
    ) -> None:
        """`serve_unplanned`: whether a slot that would stay idle takes classes that the plan gives nothing.

        The paper's theorem covers a gate that doesn't. But a plan is made for expected traffic, and such a class would
        starve for as long as the plan lasts.

        `back_pressure`: whether classes that the plan sheds in part (q_p* > 0) wait while more decodes do than it plans
        for (none, by default), even when a slot would stay idle. The printed gate never idles: a spare slot then goes
        to them, and short prompts can fill it with several times their planned prefills, whose decodes queue until
        clients give up. Asymptotically it makes no difference; with a hundred workers it is up to a fifth of the
        revenue. No theorem covers it.
        """
        shares = plan.prefilling
        self._planned = tuple(index for index, share in enumerate(shares) if share > NEGLIGIBLE)
        unplanned = tuple(index for index, share in enumerate(shares) if share <= NEGLIGIBLE)
        self._unplanned = unplanned if serve_unplanned else ()
        self._shares = shares
        self._queue_targets = tuple(workers * queue for queue in plan.prefill_queue)
        self._workers = workers
        self._shed = tuple(queue > NEGLIGIBLE for queue in plan.prefill_queue)
        self._most_decodes = workers * sum(plan.decode_queue) + NEGLIGIBLE if back_pressure else math.inf

    def admit(
        self,
        prefilling: Sequence[int],
        waiting: Sequence[int],
        *,
        heads_arrived: Sequence[float],  # noqa: ARG002 - order within a class is the queue's
        decodes_waiting: int = 0,
    ) -> int | None:
        pressed = decodes_waiting > self._most_decodes
        chosen, least, most_excess = None, 0.0, 0.0
        for index in self._planned:
            if waiting[index] <= 0 or (pressed and self._shed[index]):
                continue
            deviation = prefilling[index] / self._shares[index] - self._workers
            excess = waiting[index] - self._queue_targets[index]
            if chosen is None or deviation < least or (deviation == least and excess > most_excess):
                chosen, least, most_excess = index, deviation, excess
        if chosen is not None:
            return chosen
        served = () if pressed else self._unplanned
        return max((index for index in served if waiting[index] > 0), key=waiting.__getitem__, default=None)


class PriorityGate:
    """Prioritize-and-Route's: the class with the largest D / P first. It may build a lasting queue of decodes."""

    __slots__ = ("_order",)

    def __init__(self, classes: Sequence[TrafficClass]) -> None:
        self._order = sorted(
            range(len(classes)), key=lambda index: -classes[index].output_tokens / classes[index].prompt_tokens
        )

    def admit(
        self,
        prefilling: Sequence[int],  # noqa: ARG002 - occupancy doesn't matter to it
        waiting: Sequence[int],
        *,
        heads_arrived: Sequence[float],  # noqa: ARG002
        decodes_waiting: int = 0,  # noqa: ARG002
    ) -> int | None:
        return next((index for index in self._order if waiting[index] > 0), None)


class FirstComeGate:
    """First come, first served over all classes: the gate of the paper's baselines FI and FG."""

    __slots__ = ()

    def admit(
        self,
        prefilling: Sequence[int],  # noqa: ARG002 - occupancy doesn't matter to it
        waiting: Sequence[int],
        *,
        heads_arrived: Sequence[float],
        decodes_waiting: int = 0,  # noqa: ARG002
    ) -> int | None:
        served = (index for index, count in enumerate(waiting) if count > 0)
        return min(served, key=heads_arrived.__getitem__, default=None)
