"""The live gateway's gate in virtual time: the same plan, made each second from what this one gateway sees.

Invariant: policies are the live ones (`policy.demand_window`, `pools_plan`, `class_gate`); here stands only how they
come to know.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from math import isnan
from typing import TYPE_CHECKING, NamedTuple

from duet_engine.policy.class_gate import ClassGate, Underway, class_plans, enough_for
from duet_engine.policy.demand_window import Counted, DemandWindow
from duet_engine.policy.pools_plan import PoolWorkers, pools_plan
from duet_engine.simulator.flight import Flight, Stage

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence, Sized

    from duet_engine.protocol import ClassPlan
    from duet_engine.simulator.scenario import Pool, Scenario
    from duet_engine.slo import Objective

REPLAN_SECONDS = 1.0


class Sizes(NamedTuple):
    """Workers that may take work."""

    prefill: Sized
    decode: Sized


class SimulatedGate:
    """Of one gateway, for classes with these weights."""

    def __init__(self, scenario: Scenario, weights: Mapping[str, int], sizes: Sizes) -> None:
        self._scenario, self._weights, self._sizes = scenario, weights, sizes
        self._window = DemandWindow()
        self._counted: dict[str, Counted] = {}
        self._sent: list[Flight] = []
        self._plans: tuple[ClassPlan, ...] = ()
        self._gate: ClassGate | None = None
        self._planned_at = 0.0

    def turns_away(self, flight: Flight, now: float, waiting: Sequence[Flight], objective: Objective) -> bool:
        """Whether a new request is told to come back later; whoever is told doesn't."""
        self._arrived(flight)
        gate, name = self.current(now, waiting), flight.class_name
        if gate is None:
            return False
        alike = sum(each.class_name == name for each in waiting)
        told = gate.retry_after_seconds(name, waiting=alike, ttft_objective_seconds=objective.ttft_seconds)
        return told is not None

    def _arrived(self, flight: Flight) -> None:
        known = self._counted.get(flight.class_name, Counted())
        self._counted[flight.class_name] = replace(
            known, arrivals=known.arrivals + 1, prompt_tokens=known.prompt_tokens + flight.input_tokens
        )

    def sent(self, flight: Flight) -> None:
        self._sent.append(flight)

    def ended(self, flight: Flight, *, succeeded: bool) -> None:
        known = self._counted[flight.class_name]
        self._counted[flight.class_name] = replace(
            known,
            cached_tokens=known.cached_tokens + flight.cached_tokens,
            completed=known.completed + succeeded,
            output_tokens=known.output_tokens + (flight.output_tokens if succeeded else 0),
        )

    def underway(self) -> Underway:
        """What was sent and hasn't ended."""
        self._sent = [flight for flight in self._sent if flight.stage is not Stage.OVER]
        computing = Counter(flight.class_name for flight in self._sent if not _computed(flight))
        return Underway(computing, len(self._sent))

    def current(self, now: float, waiting: Iterable[Flight]) -> ClassGate | None:
        """The gate in force, planned anew when it is time."""
        printed = self._scenario.printed_gate
        if now - self._planned_at >= REPLAN_SECONDS:
            self._planned_at = now
            self._window.add(now, dict(self._counted))
            loads = self._window.loads(
                weight_of=lambda name: self._weights.get(name, 1),
                waiting=Counter(flight.class_name for flight in waiting),
            )
            plan = pools_plan(
                loads,
                _workers(self._scenario.prefill, len(self._sizes.prefill)),
                _workers(self._scenario.decode, len(self._sizes.decode)),
                step_budget_seconds=self._scenario.rule.step_budget_seconds,
                enough=enough_for(on=bool(self._plans), always=printed),
            )
            self._plans = class_plans(plan)
            self._gate = ClassGate(self._plans, printed=printed) if self._plans else None
        return self._gate


def _computed(flight: Flight) -> bool:
    return not isnan(flight.first_token_at if flight.local else flight.prefill_ended_at)


def _workers(pool: Pool | None, count: int) -> PoolWorkers | None:
    if pool is None or not count:
        return None
    return PoolWorkers(
        count=count,
        steps=pool.policy_steps,
        chunk_tokens=pool.limits.chunked_prefill_tokens,
        kv_capacity_tokens=pool.kv_capacity_tokens,
        most_requests=pool.limits.max_running_requests,
        prefills=pool.local_prefill is not None,
    )
