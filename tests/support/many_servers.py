"""The stochastic model behind Gate-and-Route (arXiv 2602.02987, section 3), event by event, for its policies to run in.

n workers, each with at most one prefill in service and B decodes (B - 1 beside a prefill); Poisson arrivals,
exponential services and patience; decodes run at the mixed pace while their worker prefills, else at the solo pace.
Everything that is decided is decided by `duet_engine.policy`: the gate says whose prompt is next, the router where a
decode goes.

Invariant: a seed gives the same run again. Requests are conserved: arrived = completed + given up + present.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from duet_engine.policy.fluid_plan import FluidPlan
from duet_engine.policy.gate import Gate
from duet_engine.policy.router import Place, Router, uniform_choice


@dataclass(frozen=True)
class Scheme:
    """A policy of the paper: who is prefilled, where decodes go, whether roles are fixed by the plan."""

    name: str
    gate: Callable[[FluidPlan, int], Gate]
    router: Callable[[FluidPlan], Router] | None
    """None: a request is decoded where it was prefilled."""
    static_plan: bool


class Members:
    """A set with a uniform choice."""

    def __init__(self) -> None:
        self.items: list[int] = []
        self._places: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.items)

    def put(self, item: int, *, member: bool) -> None:
        """In or out."""
        place = self._places.get(item)
        if member and place is None:
            self._places[item] = len(self.items)
            self.items.append(item)
        elif not member and place is not None:
            last = self.items.pop()
            del self._places[item]
            if last != item:
                self.items[place] = last
                self._places[last] = place


@dataclass
class Measured:
    """Counts and integrals over time since the last reset."""

    seconds: float = 0.0
    revenue: float = 0.0
    completed: int = 0
    given_up: int = 0
    arrived: int = 0
    prefilling: list[float] = field(default_factory=list)
    decoding_solo: list[float] = field(default_factory=list)
    decoding_mixed: list[float] = field(default_factory=list)
    prefill_queue: list[float] = field(default_factory=list)
    decode_queue: float = 0.0

    @classmethod
    def of(cls, classes: int) -> Measured:
        return cls(
            prefilling=[0.0] * classes,
            decoding_solo=[0.0] * classes,
            decoding_mixed=[0.0] * classes,
            prefill_queue=[0.0] * classes,
        )


class ManyServers:
    """One run."""

    def __init__(self, plan: FluidPlan, *, workers: int, scheme: Scheme, prices: list[float], seed: int) -> None:
        self.plan, self.workers, self.scheme, self.prices = plan, workers, scheme, prices
        self.random = random.Random(seed)
        self.gate = scheme.gate(plan, workers)
        self.router = scheme.router(plan) if scheme.router else None
        self.slots = plan.pace.batch_slots
        self.mixed_workers = plan.mixed_workers(workers) if scheme.static_plan else workers
        size = len(plan.classes)
        self.classes = range(size)
        self.now = 0.0
        self.prefill_of = [-1] * workers
        self.decodes_of = [[0] * size for _ in range(workers)]
        self.total_of = [0] * workers
        self.waiting: list[list[float]] = [[] for _ in self.classes]
        self.waiting_counts, self.prefilling_counts = [0] * size, [0] * size
        self.prefillers = [Members() for _ in self.classes]
        self.decoding = [[0] * size, [0] * size]
        """Decodes at the solo pace and at the mixed one."""
        self.by_pace = [Members(), Members()]
        self.in_pool = [[0] * size, [0] * size]
        """Decodes on workers that never prefill and on the others."""
        self.buffers: dict[Place, list[int]] = {place: [] for place in BUFFERS}
        self.buffered = [0] * size
        self.idle, self.free_solo, self.free_mixed = Members(), Members(), Members()
        self.measured = Measured.of(size)
        for worker in range(workers):
            self.by_pace[0].put(worker, member=True)
            self._note(worker)
        pace = plan.pace
        self.arrival_rates = [workers * one.arrivals_per_second for one in plan.classes]
        self.prefill_rates = [pace.prefills_per_second(one) for one in plan.classes]
        self.decode_rates = [
            [pace.solo_decodes_per_second(one) for one in plan.classes],
            [pace.mixed_decodes_per_second(one) for one in plan.classes],
        ]
        self.impatience = [one.impatience_per_second for one in plan.classes]

    def run(self, seconds: float, *, after: Callable[[], None] = lambda: None) -> None:
        """Go on for so long; `after` sees the state after each event."""
        until = self.now + seconds
        chance, happenings = self.random.random, self._happenings()
        while True:
            rates = self._rates()
            total = sum(rates)
            pause = self.random.expovariate(total)
            if self.now + pause >= until:
                self._measure(until - self.now)
                self.now = until
                return
            self._measure(pause)
            self.now += pause
            left = chance() * total
            event = 0
            while (left := left - rates[event]) >= 0.0 and event < len(rates) - 1:
                event += 1
            happen, one = happenings[event]
            happen(one)
            after()

    def reset(self) -> None:
        """Measure from now on."""
        self.measured = Measured.of(len(self.classes))

    def present(self) -> int:
        """Requests in the system."""
        decoding = sum(map(sum, self.decoding))
        return sum(self.waiting_counts) + sum(self.prefilling_counts) + decoding + sum(self.buffered)

    # --- what can happen ---

    def _rates(self) -> list[float]:
        """Of all events, in the order of `_happenings`."""
        rates: list[float] = []
        solo, mixed = self.decoding
        for one in self.classes:
            impatience = self.impatience[one]
            rates += (
                self.arrival_rates[one],
                self.prefill_rates[one] * self.prefilling_counts[one],
                self.decode_rates[0][one] * solo[one],
                self.decode_rates[1][one] * mixed[one],
                impatience * self.waiting_counts[one],
                impatience * self.buffered[one],
            )
        return rates

    def _happenings(self) -> list[tuple[Callable[[int], None], int]]:
        return [
            (happens, one)
            for one in self.classes
            for happens in (
                self._arrive,
                self._end_prefill,
                self._end_solo_decode,
                self._end_mixed_decode,
                self._give_up_prefill,
                self._give_up_decode,
            )
        ]

    def _arrive(self, one: int) -> None:
        self.measured.arrived += 1
        self.waiting[one].append(self.now)
        self.waiting_counts[one] += 1
        self._admit()

    def _give_up_prefill(self, one: int) -> None:
        self.waiting[one].pop(self.random.randrange(self.waiting_counts[one]))
        self.waiting_counts[one] -= 1
        self.measured.given_up += 1

    def _give_up_decode(self, one: int) -> None:
        place = self.random.choices(list(self.buffers), [buffer.count(one) for buffer in self.buffers.values()])[0]
        buffer = self.buffers[place]
        buffer.pop(self.random.choice([index for index, other in enumerate(buffer) if other == one]))
        self.buffered[one] -= 1
        self.measured.given_up += 1
        self._admit()

    def _end_prefill(self, one: int) -> None:
        worker = self.random.choice(self.prefillers[one].items)
        self.prefillers[one].put(worker, member=False)
        self.prefilling_counts[one] -= 1
        self.prefill_of[worker] = -1
        self._change_pace(worker, mixed=False)
        if self.router is None:
            self._decode_on(worker, one)
        else:
            self._place(one)
        self._admit()

    def _end_solo_decode(self, one: int) -> None:
        self._end_decode(one, pace=0)

    def _end_mixed_decode(self, one: int) -> None:
        self._end_decode(one, pace=1)

    def _end_decode(self, one: int, *, pace: int) -> None:
        workers = self.by_pace[pace].items
        while True:  # a worker in proportion to its decodes of this class
            worker = self.random.choice(workers)
            if self.random.random() * self.slots < self.decodes_of[worker][one]:
                break
        self.decodes_of[worker][one] -= 1
        self.total_of[worker] -= 1
        self.decoding[pace][one] -= 1
        self.in_pool[worker < self.mixed_workers][one] -= 1
        self._note(worker)
        self.measured.completed += 1
        self.measured.revenue += self.prices[one]
        self._pull(worker)
        self._admit()

    # --- what is decided ---

    def _admit(self) -> None:
        while self.idle and any(self.waiting_counts):
            heads = [queue[0] if queue else 0.0 for queue in self.waiting]
            one = self.gate.admit(
                self.prefilling_counts,
                self.waiting_counts,
                heads_arrived=heads,
                decodes_waiting=sum(self.buffered),
            )
            if one is None:
                return
            self.waiting[one].pop(0)
            self.waiting_counts[one] -= 1
            worker = self.random.choice(self.idle.items)
            self.prefill_of[worker] = one
            self.prefillers[one].put(worker, member=True)
            self.prefilling_counts[one] += 1
            self._change_pace(worker, mixed=True)

    def _place(self, one: int) -> None:
        assert self.router is not None
        place = self.router.place(
            one, solo_free=len(self.free_solo), mixed_free=len(self.free_mixed), draw=self.random.random()
        )
        if place is Place.SOLO:
            self._decode_on(uniform_choice(self.free_solo.items, self.random.random()), one)
        elif place is Place.MIXED:
            self._decode_on(uniform_choice(self.free_mixed.items, self.random.random()), one)
        else:
            self.buffers[place].append(one)
            self.buffered[one] += 1

    def _pull(self, worker: int) -> None:
        """First come, first served from the buffer that this worker's slot is for."""
        own = Place.MIXED_BUFFER if worker < self.mixed_workers else Place.SOLO_BUFFER
        for buffer in (self.buffers[Place.BUFFER], self.buffers[own]):
            if buffer:
                one = buffer.pop(0)
                self.buffered[one] -= 1
                self._decode_on(worker, one)
                return

    # --- what follows ---

    def _decode_on(self, worker: int, one: int) -> None:
        self.decodes_of[worker][one] += 1
        self.total_of[worker] += 1
        self.decoding[self.prefill_of[worker] >= 0][one] += 1
        self.in_pool[worker < self.mixed_workers][one] += 1
        self._note(worker)

    def _change_pace(self, worker: int, *, mixed: bool) -> None:
        for one, count in enumerate(self.decodes_of[worker]):
            self.decoding[mixed][one] += count
            self.decoding[not mixed][one] -= count
        self.by_pace[mixed].put(worker, member=True)
        self.by_pace[not mixed].put(worker, member=False)
        self._note(worker)

    def _note(self, worker: int) -> None:
        """Which slots of this worker are open."""
        prefills, total = self.prefill_of[worker] >= 0, self.total_of[worker]
        if self.scheme.static_plan:
            mixed = worker < self.mixed_workers
            self.idle.put(worker, member=mixed and not prefills)
        else:
            mixed = prefills
            self.idle.put(worker, member=not prefills and total < self.slots)
        self.free_solo.put(worker, member=not mixed and total < self.slots)
        self.free_mixed.put(worker, member=mixed and total < self.slots - 1)

    def _measure(self, seconds: float) -> None:
        measured = self.measured
        measured.seconds += seconds
        for one in self.classes:
            measured.prefilling[one] += seconds * self.prefilling_counts[one]
            measured.decoding_solo[one] += seconds * self.in_pool[0][one]
            measured.decoding_mixed[one] += seconds * self.in_pool[1][one]
            measured.prefill_queue[one] += seconds * self.waiting_counts[one]
        measured.decode_queue += seconds * sum(self.buffered)


BUFFERS = (Place.BUFFER, Place.SOLO_BUFFER, Place.MIXED_BUFFER)
