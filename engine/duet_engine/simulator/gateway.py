"""The gateway of a simulated fleet: requests wait here, leave by the dispatch policy, and come back answered.

Invariant: requests leave in order of arrival as far as the policy lets them, and each ends exactly once. A refused one
keeps its place in the queue and leaves whoever refused it alone for a moment; one whose worker died before its first
token is tried again.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

from duet_engine.policy.dispatch import LOOK_AHEAD_PROMPTS, Hold, Local, Pair
from duet_engine.policy.estimates import unloaded_ttft_seconds
from duet_engine.policy.fleet import Fleet, Prompt
from duet_engine.simulator.flight import Flight, Stage
from duet_engine.simulator.result import NO_WORKER
from duet_engine.simulator.running_batch import GapListener
from duet_engine.simulator.sight import DecodeSight, PrefillSight

if TYPE_CHECKING:
    from duet_engine.simulator.agenda import Agenda
    from duet_engine.simulator.ledger import Ledger
    from duet_engine.simulator.scenario import Scenario
    from duet_engine.simulator.workload import Request

REFUSED_FOR_SECONDS = 0.25


@dataclass(slots=True)
class Tally:
    """What happened since a planner was asked before."""

    arrived_input_tokens: list[int] = field(default_factory=list)
    ended: list[tuple[Flight, bool]] = field(default_factory=list)


class Gateway:
    """One queue for the whole fleet. It is what workers talk to (`worker.Outside`)."""

    def __init__(self, scenario: Scenario, agenda: Agenda, ledger: Ledger) -> None:
        self.agenda = agenda
        self.open_requests = 0
        self.waiting: deque[Flight] = deque()
        self.prefill: dict[str, PrefillSight] = {}
        self.decode: dict[str, DecodeSight] = {}
        self.tally: Tally | None = None
        """Kept where somebody takes it."""
        self.counters: Counter[str] = Counter()
        self.class_names: dict[str, int] = {}
        self.numbers: dict[str, int] = {}
        """Of workers, by name."""
        self._scenario, self._ledger = scenario, ledger
        self.gaps: GapListener = self._gaps_after_warm_up if scenario.warm_up_seconds else ledger.gaps
        self._policy = scenario.new_dispatch()
        self._limits, self._hop_seconds = scenario.gateway, scenario.network.hop_seconds
        self._look_planned = False
        self._unloaded: dict[int, float] = {}
        objectives = [scenario.objective, *scenario.class_objectives.values()]
        self.itl_limits = tuple(sorted({objective.itl_seconds for objective in objectives}))

    # --- requests ---

    def arrive(self, index: int, request: Request) -> None:
        """A client's request."""
        objective = self._scenario.objective_of(request.class_name)
        flight = Flight(
            index,
            arrival_seconds=request.arrival_seconds,
            class_index=self.class_names.setdefault(request.class_name, len(self.class_names)),
            limit_index=self.itl_limits.index(objective.itl_seconds),
            input_tokens=request.input_tokens,
            output_tokens=request.output_tokens,
            block_hashes=request.prefix_block_hashes,
        )
        if objective.ttft_unloaded_ratio is not None:
            flight.unloaded_ttft_seconds = self._unloaded_ttft(request.input_tokens)
        flight.ttft_objective_seconds = objective.ttft_objective_seconds(flight.unloaded_ttft_seconds)
        self.open_requests += 1
        if self.tally is not None:
            self.tally.arrived_input_tokens.append(request.input_tokens)
        self.waiting.append(flight)
        if len(self.waiting) == 1:
            self._look(None)

    def _unloaded_ttft(self, input_tokens: int) -> float:
        if not self._unloaded or input_tokens not in self._unloaded:
            prefill = [sight.view(self.agenda.now) for sight in list(self.prefill.values())[:1]]
            decode = [sight.view(self.agenda.now) for sight in list(self.decode.values())[:1]]
            seconds = unloaded_ttft_seconds(input_tokens, Fleet(tuple(prefill), tuple(decode)))
            if not seconds:
                return 0.0
            self._unloaded[input_tokens] = seconds
        return self._unloaded[input_tokens]

    # --- dispatch ---

    def fleet(self) -> Fleet:
        """Workers that may take new work, as the gateway knows them."""
        now = self.agenda.now
        return Fleet(
            tuple([sight.view(now) for sight in self.prefill.values()]),
            tuple([sight.view(now) for sight in self.decode.values()]),
        )

    def _look(self, _: object) -> None:
        """One pass over the queue, and the next one later if somebody stays."""
        self._look_planned = False
        while self.waiting:
            self.counters["passes"] += 1
            seen = list(islice(self.waiting, LOOK_AHEAD_PROMPTS))
            routes = self._policy.dispatch([self._prompt(flight) for flight in seen], self.fleet())
            if not self._send_off(seen, routes) or any(isinstance(route, Hold) for route in routes):
                break
        self._give_up()
        if self.waiting:
            self._plan_look()

    def _send_off(self, seen: list[Flight], routes: Sequence[Pair | Local | Hold]) -> bool:
        """Whether anybody left."""
        kept = []
        for flight, route in zip(seen, routes, strict=False):
            if isinstance(route, Hold):
                kept.append(flight)
            else:
                self._send(flight, route)
        left = len(routes) - len(kept)
        if left:
            for _ in routes:
                self.waiting.popleft()
            self.waiting.extendleft(reversed(kept))
        return left > 0

    def _plan_look(self) -> None:
        if not self._look_planned:
            self._look_planned = True
            self.agenda.at(self.agenda.now + self._limits.pass_interval_seconds, self._look)

    def _prompt(self, flight: Flight) -> Prompt:
        now = self.agenda.now
        excluded = (
            frozenset(name for name, until in flight.excluded.items() if until > now) if flight.excluded else _NONE
        )
        return Prompt(
            tokens=flight.input_tokens,
            waited_seconds=now - flight.arrival_seconds,
            ttft_objective_seconds=flight.ttft_objective_seconds,
            output_reserve_tokens=self._limits.output_reserve_tokens,
            excluded=excluded,
        )

    def _send(self, flight: Flight, route: Pair | Local) -> None:
        now = self.agenda.now
        arrives_at = now + self._hop_seconds
        flight.dispatched_at = now
        flight.local = isinstance(route, Local)
        decode = self.decode[route.decode]
        flight.decode = decode.worker
        decode.sent(flight, arrives_at=arrives_at, reserve_tokens=self._limits.output_reserve_tokens)
        if isinstance(route, Local):
            flight.chunk_bounds = route.chunks_tokens
        else:
            prefill = self.prefill[route.prefill]
            flight.prefill = prefill.worker
            pool = prefill.worker.pool
            seconds = pool.policy_steps.prompt_seconds(
                flight.input_tokens, chunk_tokens=pool.limits.chunked_prefill_tokens
            )
            prefill.sent(flight, arrives_at=arrives_at, reserve_tokens=0, seconds=seconds)
        self.agenda.at(arrives_at, self._deliver, flight)

    def _deliver(self, flight: Flight) -> None:
        prefill, decode = flight.prefill, flight.decode
        assert decode is not None
        if decode.gone_at is not None or (prefill is not None and prefill.gone_at is not None):
            self._try_again(flight)
            return
        if prefill is not None:
            prefill.submit(flight)
        decode.submit(flight)

    def _give_up(self) -> None:
        now, timeout = self.agenda.now, self._limits.queue_timeout_seconds
        while self.waiting and now - self.waiting[0].arrival_seconds > timeout:
            flight = self.waiting.popleft()
            flight.stage = Stage.OVER
            self.counters["timeouts"] += 1
            self._close(flight, succeeded=False)

    # --- what workers say ---

    def finished(self, flight: Flight) -> None:
        self._close(flight, succeeded=True)

    def failed(self, flight: Flight) -> None:
        """Its worker can't serve it."""
        if flight.prefill is not None:
            flight.prefill.abort(flight)
        self.counters["failures"] += 1
        self._close(flight, succeeded=False)

    def refused(self, flight: Flight, worker_name: str) -> None:
        self.counters["refusals"] += 1
        flight.excluded[worker_name] = self.agenda.now + REFUSED_FOR_SECONDS
        self._try_again(flight)

    def lost(self, flight: Flight) -> None:
        """A worker of it is gone."""
        for worker in (flight.prefill, flight.decode):
            if worker is not None:
                worker.abort(flight)
        if flight.generated_tokens:
            flight.stage = Stage.OVER
            self.counters["failures"] += 1
            self._close(flight, succeeded=False)
        else:
            self._try_again(flight)

    def _gaps_after_warm_up(self, gaps_seconds: list[float], requests: int) -> None:
        if self.agenda.now >= self._scenario.warm_up_seconds:
            self._ledger.gaps(gaps_seconds, requests)

    def _try_again(self, flight: Flight) -> None:
        flight.stage = Stage.OVER
        self.counters["retries"] += 1
        again = list(self.waiting)
        insort(again, flight.again(), key=lambda each: (each.arrival_seconds, each.index))
        self.waiting = deque(again)
        self._plan_look()

    def _close(self, flight: Flight, *, succeeded: bool) -> None:
        self.open_requests -= 1
        prefill, decode = flight.prefill, flight.decode
        self._ledger.close(
            flight,
            succeeded=succeeded,
            deflected=flight.local and decode is not None and not decode.unified,
            prefill_worker=self.numbers[prefill.name] if prefill else NO_WORKER,
            decode_worker=self.numbers[decode.name] if decode else NO_WORKER,
            hop_seconds=self._hop_seconds,
        )
        if self.tally is not None:
            self.tally.ended.append((flight, succeeded))


_NONE: frozenset[str] = frozenset()
