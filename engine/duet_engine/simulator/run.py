"""Run a scenario: `simulate(scenario, requests) -> SimulationResult`.

Invariant: the same scenario and requests give the same result to the last bit, on any machine and in any process; how
many steps a worker may leap at once changes nothing but the time that it takes.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING

from duet_engine.protocol import Role
from duet_engine.simulator.agenda import Agenda
from duet_engine.simulator.audit import check, check_ended
from duet_engine.simulator.decoding_worker import LONGEST_LEAP_STEPS
from duet_engine.simulator.fleet import ClockOf, PoolOfWorkers
from duet_engine.simulator.gateway import Gateway, Tally
from duet_engine.simulator.ledger import GAP_BOUNDS_SECONDS, Ledger
from duet_engine.simulator.result import PlannerDecision, SimulationResult
from duet_engine.simulator.scenario import EndedRequest, Observation, PoolView
from duet_engine.slo import Outcome, judge

if TYPE_CHECKING:
    from duet_engine.simulator.flight import Flight
    from duet_engine.simulator.scenario import Scenario, WorkerDeath
    from duet_engine.simulator.worker import Passage
    from duet_engine.simulator.workload import Request
    from duet_engine.step_log import StepLogEntry

_NO_POOL = PoolView(replicas=0, ready=0, starting=0, draining=0)
_AUDIT_EVERY = 50
_OBJECTS_BETWEEN_COLLECTIONS = 200_000


def simulate(
    scenario: Scenario,
    requests: Iterable[Request],
    *,
    audit: bool = False,
    progress: Callable[[float, int], None] | None = None,
) -> SimulationResult:
    """Run until the last request has ended.

    `requests` come in order of arrival and are read as they are needed. `audit` holds the conservation laws after every
    few events (for tests: slow). `progress` is told the moment and the number of ended requests every thousand events.

    Raises:
        ValueError: for a request that goes back in time or has no tokens.
    """
    return Simulation(scenario, audit=audit, progress=progress).run(requests)


class Simulation:
    """One run."""

    def __init__(
        self,
        scenario: Scenario,
        *,
        audit: bool = False,
        progress: Callable[[float, int], None] | None = None,
        clock_of: ClockOf | None = None,
        record: Callable[[str, StepLogEntry], None] | None = None,
        passage: Passage | None = None,
    ) -> None:
        """`record` hears of every step and whose it was; then nobody leaps. `passage` knows how long KV travelled."""
        self.scenario, self.agenda, self.ledger = scenario, Agenda(), Ledger()
        self.gateway = Gateway(scenario, self.agenda, self.ledger)
        numbers, leap = count(), 1 if record else LONGEST_LEAP_STEPS
        self.pools = {
            pool.role: PoolOfWorkers(
                pool,
                scenario=scenario,
                gateway=self.gateway,
                numbers=numbers,
                clock_of=clock_of,
                record=record,
                passage=passage,
                longest_leap=leap,
            )
            for pool in (scenario.prefill, scenario.decode)
            if pool is not None
        }
        self._audit, self._progress = audit, progress
        self._planner = scenario.planner() if scenario.planner else None
        self._decisions: list[PlannerDecision] = []
        self._observations: deque[Observation] = deque()
        self._output_tokens_before = 0
        for death in scenario.deaths:
            self.agenda.at(death.at_seconds, self._die, death)
        if self._planner is not None:
            self.gateway.tally = Tally()
            self.agenda.at(scenario.planner_interval_seconds, self._plan)

    def run(self, requests: Iterable[Request]) -> SimulationResult:
        """To the end of the last request."""
        agenda, gateway = self.agenda, self.gateway
        watch = self._watch if self._audit or self._progress is not None else None
        with _few_collections():
            for index, request in enumerate(_checked(requests)):
                agenda.before(request.arrival_seconds, watch)
                gateway.arrive(index, request)
            while gateway.open_requests:
                agenda.step()
                if watch is not None:
                    watch()
        if self._audit:
            check_ended(self)
        return self._result()

    def _watch(self) -> None:
        happened = self.agenda.happened
        if self._audit and happened % _AUDIT_EVERY == 0:
            check(self)
        if self._progress is not None and happened % 1000 == 0:
            self._progress(self.agenda.now, self.ledger.ended)

    def _die(self, death: WorkerDeath) -> None:
        if death.role in self.pools:
            self.pools[death.role].kill(death.index)

    # --- the planner ---

    def _plan(self, _: object) -> None:
        assert self._planner is not None
        scenario, now = self.scenario, self.agenda.now
        self.agenda.at(now + scenario.planner_interval_seconds, self._plan)
        self._observations.append(self._observe())
        seen = None
        while self._observations and self._observations[0].now_seconds <= now - scenario.planner_data_age_seconds:
            seen = self._observations.popleft()
        if seen is None:
            return
        wish = self._planner.plan(seen)
        counts = {Role.PREFILL: wish.prefill, scenario.decode.role: wish.decode}
        changed = [pool for role, pool in self.pools.items() if counts[role] != pool.wanted]
        self._decisions.append(
            PlannerDecision(
                at_seconds=now, prefill=wish.prefill, decode=wish.decode, reason=wish.reason, changed=bool(changed)
            )
        )
        for pool in changed:
            pool.scale(counts[pool.pool.role])

    def _observe(self) -> Observation:
        gateway, scenario = self.gateway, self.scenario
        tally, gateway.tally = gateway.tally, Tally()
        assert tally is not None
        output_tokens = sum(life.output_tokens for pool in self.pools.values() for life in pool.all_lives().values())
        before, self._output_tokens_before = self._output_tokens_before, output_tokens
        cold_starts = [seconds for pool in self.pools.values() for seconds in pool.cold_starts_seconds]
        for pool in self.pools.values():
            pool.cold_starts_seconds = []
        prefill = self.pools.get(Role.PREFILL)
        return Observation(
            now_seconds=self.agenda.now,
            window_seconds=scenario.planner_interval_seconds,
            arrived_input_tokens=tuple(tally.arrived_input_tokens),
            ended=tuple(self._ended(flight, succeeded) for flight, succeeded in tally.ended),
            output_tokens=output_tokens - before,
            waiting_requests=len(gateway.waiting),
            waiting_tokens=sum(flight.input_tokens for flight in gateway.waiting),
            prefill=prefill.view() if prefill else _NO_POOL,
            decode=self.pools[scenario.decode.role].view(),
            cold_starts_seconds=tuple(cold_starts),
        )

    def _ended(self, flight: Flight, succeeded: bool) -> EndedRequest:
        name = self._class_name(flight.class_index)
        outcome = Outcome(
            succeeded=succeeded,
            ttft_seconds=flight.first_token_at - flight.arrived_at,
            output_tokens=flight.generated_tokens,
            decode_seconds=flight.last_token_at - flight.first_token_at,
            gaps_over_objective=flight.gaps_over_objective,
            unloaded_ttft_seconds=flight.unloaded_ttft_seconds,
        )
        verdict = judge(outcome, self.scenario.objective_of(name))
        return EndedRequest(
            class_name=name,
            input_tokens=flight.input_tokens,
            cached_tokens=flight.cached_tokens,
            output_tokens=flight.generated_tokens,
            succeeded=succeeded,
            ttft_seconds=outcome.ttft_seconds,
            tpot_seconds=outcome.tpot_seconds,
            ttft_met=verdict.ttft_met,
            itl_met=verdict.itl_met,
            deflected=flight.local and flight.decode is not None and not flight.decode.unified,
        )

    def _class_name(self, index: int) -> str:
        return next(name for name, number in self.gateway.class_names.items() if number == index)

    # --- the end ---

    def _result(self) -> SimulationResult:
        scenario, names = self.scenario, tuple(self.gateway.class_names)
        lives = {number: life for pool in self.pools.values() for number, life in pool.all_lives().items()}
        steps = sum(life.steps for life in lives.values())
        return SimulationResult(
            requests=self.ledger.columns(),
            class_names=names,
            objectives={name: scenario.objective_of(name) for name in names},
            workers=tuple(lives[number] for number in sorted(lives)),
            decisions=tuple(self._decisions),
            gap_bounds_seconds=GAP_BOUNDS_SECONDS,
            gap_counts=self.ledger.gap_counts,
            seed=scenario.seed,
            warm_up_seconds=scenario.warm_up_seconds,
            end_seconds=self.agenda.now,
            counters={**self.gateway.counters, "events": self.agenda.happened, "steps": steps},
        )


@contextmanager
def _few_collections() -> Iterator[None]:
    """A run makes many objects and hardly a cycle: looking for cycles as often as usual takes a seventh of its time."""
    before = gc.get_threshold()
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _checked(requests: Iterable[Request]) -> Iterator[Request]:
    before = 0.0
    for number, request in enumerate(requests):
        if request.arrival_seconds < before:
            raise ValueError(
                f"requests[{number}].arrival_seconds: goes back from {before:g} to {request.arrival_seconds:g} s; "
                "sort the workload by arrival"
            )
        if request.input_tokens < 1 or request.output_tokens < 1:
            raise ValueError(f"requests[{number}]: needs at least one input and one output token, got {request}")
        before = request.arrival_seconds
        yield request
