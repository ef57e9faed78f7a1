"""Whether demand exceeds capacity, and the gate that is in force while it does.

The operator's plan goes first: it knows all gateways. Where none is in force, as without an operator, this process
makes its own from what it sees itself, each `REPLAN_SECONDS` and only while somebody waits.

Invariant: asked in each pass and for each arrival, it only looks whether there is another plan; the linear programme
runs in a thread.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from time import monotonic

from duet_engine.gateway.demand import Demand
from duet_engine.gateway.live_settings import LiveSettings, RoutingPolicy
from duet_engine.gateway.plan import PlanHolder
from duet_engine.gateway.record import End
from duet_engine.gateway.workers import Worker, Workers
from duet_engine.policy.class_gate import ClassGate, class_plans, enough_for
from duet_engine.policy.demand_window import Counted, DemandWindow
from duet_engine.policy.pools_plan import PoolWorkers, pools_plan
from duet_engine.protocol import ClassPlan, Role

log = logging.getLogger(__name__)

REPLAN_SECONDS = 1.0


@dataclass(slots=True, kw_only=True)
class Gate:
    """One gateway process's."""

    plan: PlanHolder
    live: Callable[[], LiveSettings]
    demand: Demand
    workers: Workers
    processes: int = 1
    waiting: Callable[[], Counter[str]] = Counter
    """How many wait, by class."""
    _window: DemandWindow = field(default_factory=DemandWindow)
    _own: tuple[ClassPlan, ...] = ()
    _source: object = None
    _gate: ClassGate | None = None
    _last_share: float = 1.0
    """This pod's of all requests, as the last plan said."""

    def current(self, now: float) -> ClassGate | None:
        """The gate in force; None while there is enough for all, or nobody wants it."""
        if not self._wanted():
            return None
        told = self.plan.current(now)
        source: object = told or self._own
        if source is not self._source:
            self._source = source
            classes = self._own
            if told is not None:
                self._last_share = told.dispatch_share
                classes = told.classes if told.saturated else ()
            printed = self.live().routing is RoutingPolicy.GATE_AND_ROUTE
            self._gate = self._made(classes, own=told is None, printed=printed)
        return self._gate

    def _wanted(self) -> bool:
        """Without classes there is nobody to put in order."""
        live = self.live()
        return live.routing is RoutingPolicy.GATE_AND_ROUTE or (
            live.routing is RoutingPolicy.AUTO and bool(live.classes)
        )

    def _made(self, classes: tuple[ClassPlan, ...], *, own: bool, printed: bool) -> ClassGate | None:
        """Its own plan is for its own part of the fleet already."""
        share = 1.0 if own else self._last_share / self.processes
        return ClassGate(classes, share=share, printed=printed) if classes else None

    async def run(self) -> None:
        """Count each second, and plan where nobody else does."""
        while True:
            await asyncio.sleep(REPLAN_SECONDS)
            now = monotonic()
            self._window.add(now, self._counted())
            waiting = self.waiting()
            if self.plan.current(now) is None and self._wanted() and (waiting or self._own):
                try:
                    self._own = await self._planned(waiting)
                except ArithmeticError as error:
                    log.warning("no gate: %s", error)
                    self._own = ()
            else:
                self._own = ()

    async def _planned(self, waiting: Counter[str]) -> tuple[ClassPlan, ...]:
        live = self.live()
        loads = self._window.loads(weight_of=live.weight_of, waiting=waiting)
        usable = [worker for worker in self.workers if worker.usable(monotonic())]
        prefill = self._pool(worker for worker in usable if worker.member.role is Role.PREFILL)
        decode = self._pool(worker for worker in usable if worker.member.role is not Role.PREFILL)
        share = self._last_share / self.processes
        found = await asyncio.to_thread(
            pools_plan,
            loads,
            prefill,
            decode,
            step_budget_seconds=live.deflection.step_budget_seconds,
            enough=enough_for(on=bool(self._own), always=live.routing is RoutingPolicy.GATE_AND_ROUTE),
            share=share,
        )
        return class_plans(found)

    def _pool(self, workers: Iterable[Worker]) -> PoolWorkers | None:
        """As many as there are, each taken for like the first."""
        members = list(workers)
        if not members:
            return None
        first = members[0]
        assert first.steps is not None and first.profile is not None
        return PoolWorkers(
            count=len(members),
            steps=first.steps,
            chunk_tokens=first.profile.chunked_prefill_tokens,
            kv_capacity_tokens=first.profile.kv_capacity_tokens,
            most_requests=first.profile.max_running_requests,
            prefills=any(worker.decode_view().prefills for worker in members if worker.member.role is not Role.PREFILL),
        )

    def _counted(self) -> dict[str, Counted]:
        return {
            each.name: Counted(
                arrivals=each.arrivals,
                prompt_tokens=each.input_tokens_total,
                cached_tokens=each.cached_tokens_total,
                completed=each.ends[End.COMPLETED],
                output_tokens=each.output_tokens.sum,
            )
            for each in self.demand.classes()
        }
