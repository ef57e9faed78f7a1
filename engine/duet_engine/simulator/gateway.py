"""The gateway of a simulated fleet: requests wait here, leave by the dispatch policy, and come back answered.

Which prompt leaves next and where to is `policy.queueing`'s decision, the object that the live gateway decides by, or a
baseline's.

Invariant: each request ends exactly once. A refused one keeps its place in the queue and leaves whoever refused it
alone for a moment; one whose worker died before its first token is tried again.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

from duet_engine.policy.dispatch import LOOK_AHEAD_PROMPTS, Hold, Local, Pair
from duet_engine.policy.fleet import Fleet
from duet_engine.policy.prefix_index import PrefixIndex
from duet_engine.policy.queueing import COLD, QueuePolicy, Unloaded
from duet_engine.simulator.flight import Flight, Stage
from duet_engine.simulator.gate import SimulatedGate, Sizes
from duet_engine.simulator.kv import BLOCK_TOKENS
from duet_engine.simulator.result import NO_WORKER
from duet_engine.simulator.running_batch import GapListener
from duet_engine.simulator.sight import DecodeSight, PrefillSight

if TYPE_CHECKING:
    from duet_engine.simulator.agenda import Agenda
    from duet_engine.simulator.decoding_worker import DecodingWorker
    from duet_engine.simulator.ledger import Ledger
    from duet_engine.simulator.prefill_worker import PrefillWorker
    from duet_engine.simulator.scenario import Scenario
    from duet_engine.simulator.workload import Request
    from duet_engine.slo import Objective

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
        self._members = object()
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
        self._policy = QueuePolicy()
        self._unloaded = Unloaded()
        self._other_policy = scenario.dispatch() if scenario.dispatch else None
        self._prefixes = PrefixIndex()
        weights = scenario.gate_weights
        self._gate = None if weights is None else SimulatedGate(scenario, weights, Sizes(self.prefill, self.decode))
        self._limits, self._hop_seconds = scenario.gateway, scenario.network.hop_seconds
        self._look_planned = False
        self._objectives: list[Objective] = []
        """Of the classes that have come, by number."""
        objectives = [scenario.objective, *scenario.class_objectives.values()]
        self.itl_limits = tuple(sorted({objective.itl_seconds for objective in objectives}))

    # --- requests ---

    def arrive(self, index: int, request: Request) -> None:
        """A client's request."""
        number = self._class_number(request.class_name)
        blocks = request.prefix_block_hashes
        flight = Flight(
            index,
            arrived_at=request.arrival_seconds,
            output_reserve_tokens=self._limits.output_reserve_tokens,
            class_index=number,
            limit_index=self.itl_limits.index(self._objectives[number].itl_seconds),
            input_tokens=request.input_tokens,
            output_tokens=request.output_tokens,
            block_hashes=blocks,
            class_name=request.class_name,
            warm=self._warm(blocks) if blocks and self._limits.prefix_index else COLD,
        )
        self.open_requests += 1
        if self.tally is not None:
            self.tally.arrived_input_tokens.append(request.input_tokens)
        objective = self._objectives[number]
        if self._gate is not None and self._gate.turns_away(flight, self.agenda.now, self.waiting, objective):
            flight.stage = Stage.OVER
            self.counters["turned_away"] += 1
            self._close(flight, succeeded=False)
            return
        self.waiting.append(flight)
        if len(self.waiting) == 1:
            self._look(None)

    def _class_number(self, name: str) -> int:
        number = self.class_names.get(name)
        if number is None:
            number = self.class_names[name] = len(self._objectives)
            self._objectives.append(self._scenario.objective_of(name))
        return number

    def _warm(self, blocks: tuple[int, ...]) -> dict[str, int]:
        """Tokens of the prompt that workers likely hold."""
        return {worker: BLOCK_TOKENS * count for worker, count in self._prefixes.match(blocks).items()}

    # --- dispatch ---

    def fleet(self) -> Fleet:
        """Workers that may take new work, as the gateway knows them."""
        now = self.agenda.now
        return Fleet(
            tuple([sight.view(now) for sight in self.prefill.values()]),
            tuple([sight.view(now) if sight.due_at <= now else sight.current for sight in self.decode.values()]),
            self._members,
        )

    def show(self, name: str, sight: PrefillSight | DecodeSight) -> None:
        """A worker that may take work."""
        if isinstance(sight, PrefillSight):
            self.prefill[name] = sight
        else:
            self.decode[name] = sight
        self._members = object()

    def hide(self, name: str) -> None:
        """It takes nothing any more."""
        self.prefill.pop(name, None)
        self.decode.pop(name, None)
        self._members = object()

    def _look(self, _: object) -> None:
        """One pass over the queue after the other until nobody leaves, and the next one later if somebody stays."""
        self._look_planned = False
        while self.waiting:
            self.counters["passes"] += 1
            decided = self._decide()
            if not self._send_off(decided) or any(isinstance(route, Hold) for _, route in decided):
                break
        self._give_up()
        if self.waiting:
            self._plan_look()

    def _decide(self) -> Sequence[tuple[Flight, Pair | Local | Hold]]:
        """Who was looked at, and what becomes of each."""
        now, fleet = self.agenda.now, self.fleet()
        if self._other_policy is None:
            return self._policy(
                self.waiting,
                fleet,
                self._scenario.rule,
                window_seconds=self._limits.window_seconds,
                now=now,
                objective_of=self._objective_of,
                gate=None if self._gate is None else self._gate.current(now, self.waiting),
                underway=None if self._gate is None else self._gate.underway(),
            )
        seen = list(islice(self.waiting, LOOK_AHEAD_PROMPTS))
        unloaded = self._unloaded.of(fleet)
        prompts = [flight.look(self._objective_of(flight), unloaded, now) for flight in seen]
        return list(zip(seen, self._other_policy.dispatch(prompts, fleet), strict=False))

    def _objective_of(self, flight: Flight) -> Objective:
        return self._objectives[flight.class_index]

    def _send_off(self, decided: Sequence[tuple[Flight, Pair | Local | Hold]]) -> bool:
        """Whether anybody left."""
        left = False
        for flight, route in decided:
            if not isinstance(route, Hold):
                self.waiting.remove(flight)
                self._policy.left(flight, self.agenda.now)
                self._send(flight, route)
                left = True
        return left

    def _plan_look(self) -> None:
        if not self._look_planned:
            self._look_planned = True
            self.agenda.at(self.agenda.now + self._limits.pass_interval_seconds, self._look)

    def _send(self, flight: Flight, route: Pair | Local) -> None:
        now = self.agenda.now
        arrives_at = now + self._hop_seconds
        flight.dispatched_at = now
        flight.predicted_ttft_seconds = now - flight.arrived_at + route.ttft_seconds
        if self._gate is not None:
            self._gate.sent(flight)
        flight.local = isinstance(route, Local)
        decode = self.decode[route.decode]
        flight.decode = decode.worker
        reserve_tokens = flight.prompt.output_reserve_tokens
        if isinstance(route, Local):
            flight.chunk_bounds = route.chunks_tokens
            tokens = flight.prompt.at(route.decode).tokens
            decode.sent(tokens, arrives_at=arrives_at, reserve_tokens=reserve_tokens, local=True)
            self._expect_prefix(decode.worker, flight)
        else:
            decode.sent(flight.input_tokens, arrives_at=arrives_at, reserve_tokens=reserve_tokens)
            prefill = self.prefill[route.prefill]
            flight.prefill = prefill.worker
            prefill.sent(flight.prompt.at(route.prefill).tokens, arrives_at=arrives_at)
            self._expect_prefix(prefill.worker, flight)
        self.agenda.at(arrives_at, self._deliver, flight)

    def _expect_prefix(self, worker: PrefillWorker | DecodingWorker, flight: Flight) -> None:
        """What it computes now it will likely hold."""
        if flight.block_hashes and worker.pool.limits.prefix_cache:
            room_blocks = worker.pool.kv_capacity_tokens / BLOCK_TOKENS
            self._prefixes.add(worker.name, flight.block_hashes, room_blocks=room_blocks)

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
        while self.waiting and now - self.waiting[0].arrived_at > timeout:
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
        flight.excluded_until[worker_name] = self.agenda.now + REFUSED_FOR_SECONDS
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

    def forget(self, worker_name: str) -> None:
        """It is gone, and its cache with it."""
        self._prefixes.forget(worker_name)

    def _gaps_after_warm_up(self, gaps_seconds: list[float], requests: int) -> None:
        if self.agenda.now >= self._scenario.warm_up_seconds:
            self._ledger.gaps(gaps_seconds, requests)

    def _try_again(self, flight: Flight) -> None:
        flight.stage = Stage.OVER
        self.counters["retries"] += 1
        again = list(self.waiting)
        insort(again, flight.again(), key=lambda each: (each.arrived_at, each.index))
        self.waiting = deque(again)
        self._plan_look()

    def _close(self, flight: Flight, *, succeeded: bool) -> None:
        self.open_requests -= 1
        if self._gate is not None:
            self._gate.ended(flight, succeeded=succeeded)
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
