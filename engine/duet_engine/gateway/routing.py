"""The queue in which requests wait at the gateway, and their assignment to workers.

Invariant: requests leave in order of arrival, those that are late already behind the others (`policy.turns`), as far as
`policy.dispatch` lets them (`policy.queueing` is both); a retry keeps its place. Whoever
holds an assignment must release it; a cancelled wait leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import math
from bisect import insort
from collections import Counter
from collections.abc import Callable
from time import monotonic

from duet_engine.gateway.assignment import Assignment
from duet_engine.gateway.errors import GatewayError
from duet_engine.gateway.live_settings import LiveSettings, RoutingPolicy
from duet_engine.gateway.requests import ClientRequest
from duet_engine.gateway.settings import Limits
from duet_engine.gateway.waiting_room import Held, WaitingRoom
from duet_engine.gateway.workers import Worker, Workers
from duet_engine.policy.baselines import RoundRobin
from duet_engine.policy.class_gate import ClassGate, Underway
from duet_engine.policy.dispatch import LOOK_AHEAD_PROMPTS
from duet_engine.policy.fleet import Fleet
from duet_engine.policy.prefix_index import PrefixIndex, warm_tokens
from duet_engine.policy.queueing import QueuePolicy
from duet_engine.policy.routes import Hold, HoldReason, Local, Pair, Route
from duet_engine.protocol import Role
from duet_engine.slo import Objective

OUTPUT_RESERVE_TOKENS = 512
"""KV that SGLang itself promises to a new request's answer (`num_reserved_decode_tokens`)."""
LONGEST_PAUSE_SECONDS = 0.25
SHORTEST_PAUSE_SECONDS = 0.005
"""Between passes over a queue that stays: each costs milliseconds, and every worker's every state asks for one."""
_NOBODY = (HoldReason.NO_DECODE_WORKER, HoldReason.NO_PREFILL_WORKER, HoldReason.NO_PAIR)
_WORDS = {
    HoldReason.NO_DECODE_WORKER: "no decode worker is ready",
    HoldReason.NO_PREFILL_WORKER: "no prefill worker is ready and no decode worker takes prompts",
    HoldReason.DECODE_FULL: "the decode workers' KV caches or batches are full",
    HoldReason.ITL_UNSAFE: "no prefill worker is ready and the decode workers have no safe room for a prompt",
    HoldReason.PREFILL_BUSY: "all prefill workers are busy",
    HoldReason.LOCAL_PREFILL_BUSY: "the decode workers are busy with other prompts",
    HoldReason.NO_PAIR: "no prefill worker runs the same revision as a decode worker, and none of those takes prompts",
    HoldReason.TRIED_ALL: "every ready worker has refused or failed this request",
}


class _Waiter(Held):
    """A request that waits for its assignment."""

    __slots__ = ("future", "request")

    def __init__(
        self,
        request: ClientRequest,
        *,
        arrived_at: float,
        prompt_tokens: int,
        warm: dict[str, int],
        excluded_until: dict[str, float],
        future: asyncio.Future[Assignment],
        since: float,
    ) -> None:
        super().__init__(
            arrived_at=arrived_at,
            prompt_tokens=prompt_tokens,
            output_reserve_tokens=min(request.output_limit_tokens, OUTPUT_RESERVE_TOKENS),
            warm=warm,
            excluded_until=excluded_until,
            class_name=request.class_name,
        )
        self.request, self.future, self.since = request, future, since


class Dispatcher:
    """One queue for one gateway process."""

    def __init__(
        self,
        workers: Workers,
        *,
        live: Callable[[], LiveSettings],
        limits: Limits,
        window_seconds: Callable[[], float],
        gate: Callable[[float], ClassGate | None] = lambda _: None,
        processes: int = 1,
    ) -> None:
        self._workers = workers
        self._live = live
        self._window_seconds = window_seconds
        self._gate = gate
        self._room = WaitingRoom(limits, live=live, gate=gate, processes=processes)
        self._underway = Underway()
        self._policy = QueuePolicy(workers.gateway_id)
        self._round_robin = RoundRobin()
        self._prefixes = PrefixIndex()
        self._waiting: list[_Waiter] = []
        self._pass_due = False
        self._rest_until = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    @property
    def waiting_requests(self) -> int:
        return len(self._waiting)

    @property
    def waiting_tokens(self) -> int:
        return sum(waiter.prompt.tokens for waiter in self._waiting)

    def waiting_by_class(self) -> Counter[str]:
        return Counter(waiter.class_name for waiter in self._waiting)

    async def assign(
        self, request: ClientRequest, *, prompt_tokens: int, arrived_at: float, excluded_until: dict[str, float]
    ) -> Assignment:
        """Wait for workers. With something to exclude it is a retry, which is never turned away for lack of room.

        Raises:
            GatewayError: 429 or 503 with the reason when the queue is full or the wait too long.
        """
        now = monotonic()
        if not excluded_until:
            self._room.check(request, self._waiting, now, why=self._current_reason)
        waiter = _Waiter(
            request,
            arrived_at=arrived_at,
            prompt_tokens=prompt_tokens,
            warm=self._warm(request, prompt_tokens),
            excluded_until=excluded_until,
            future=self._loop.create_future(),
            since=now,
        )
        insort(self._waiting, waiter, key=lambda each: each.arrived_at)
        self._room.entered(request)
        self.wake()
        try:
            return await waiter.future
        except asyncio.CancelledError:
            if waiter.future.done() and not waiter.future.cancelled() and waiter.future.exception() is None:
                waiter.future.result().release()
                self.wake()
            raise
        finally:
            self._room.left(request)
            if waiter in self._waiting:
                self._waiting.remove(waiter)

    def _warm(self, request: ClientRequest, prompt_tokens: int) -> dict[str, int]:
        """Tokens of the prompt that workers likely hold."""
        matched = self._prefixes.match(request.prefix_blocks)
        return warm_tokens(matched, blocks=len(request.prefix_blocks), prompt_tokens=prompt_tokens)

    def forget(self, worker: Worker) -> None:
        """It is gone, and its cache with it."""
        self._prefixes.forget(worker.key)

    def heard(self, worker: Worker) -> None:
        """It said how it is. What follows from that is worked out now, so that no decision waits for it."""
        if worker.member.role is not Role.PREFILL and worker.usable(monotonic()):
            self._policy.prepare(worker.decode_view(), self._live().deflection)
        self.wake()

    def wake(self) -> None:
        """Something changed: decide again, before the loop sleeps unless others were left waiting just now."""
        if self._waiting and not self._pass_due:
            self._pass_due = True
            self._loop.call_later(max(0.0, self._rest_until - monotonic()), self._run_pass)

    def _current_reason(self) -> str:
        now = monotonic()
        fleet = self._workers.fleet(now)
        return _WORDS[self._policy.hold_reason(self._waiting[0], fleet, self._live().deflection)]

    def _run_pass(self) -> None:
        self._pass_due = False
        now = monotonic()
        fleet = self._workers.fleet(now)
        window_seconds = self._window_seconds()
        decided = self._decided(fleet, now, window_seconds)
        for waiter, route in decided:
            if not isinstance(route, Hold) and not waiter.future.done():
                self._leave(waiter, route, now)
        first = decided[0][1] if decided else None
        self._expire(fleet, now, head_reason=first.reason if isinstance(first, Hold) else None)
        if len(decided) >= LOOK_AHEAD_PROMPTS and not any(isinstance(route, Hold) for _, route in decided):
            self._rest_until = 0.0
            self.wake()  # as many as are looked at have left: those behind them needn't wait for a change
            return
        self._rest_until = monotonic() + SHORTEST_PAUSE_SECONDS if self._waiting else 0.0
        self._plan_next_pass(fleet, window_seconds)

    def _decided(self, fleet: Fleet, now: float, window_seconds: float) -> list[tuple[_Waiter, Route]]:
        """One pass: who was looked at, and what becomes of each."""
        live = self._live()
        if live.routing is RoutingPolicy.ROUND_ROBIN:
            seen = self._waiting[:LOOK_AHEAD_PROMPTS]
            prompts = self._policy.prompts(
                seen, fleet, window_seconds=window_seconds, now=now, objective_of=self._objective_of
            )
            return [(each, self._round_robin.route(prompt, fleet)) for each, prompt in zip(seen, prompts, strict=True)]
        return self._policy(
            self._waiting,
            fleet,
            live.deflection,
            window_seconds=window_seconds,
            now=now,
            objective_of=self._objective_of,
            gate=self._gate(now),
            underway=self._underway,
        )

    def _objective_of(self, waiter: _Waiter) -> Objective:
        return self._live().objective_of(waiter.request.class_name)

    def _leave(self, waiter: _Waiter, route: Pair | Local, now: float) -> None:
        keys = (route.decode,) if isinstance(route, Local) else (route.prefill, route.decode)
        if not all(self._workers[key].breaker.allows(now) for key in keys):
            return  # an ejected worker's one probe left in this same pass
        self._waiting.remove(waiter)
        self._policy.left(waiter, now)
        decode = self._workers[route.decode]
        prefill = None if isinstance(route, Local) else self._workers[route.prefill]
        prompt, reserve_tokens = waiter.prompt, waiter.prompt.output_reserve_tokens
        decode_tokens = prompt.at(decode.key).tokens if prefill is None else prompt.tokens
        computing = prefill or decode
        if computing.keeps_prefixes:
            self._expect_prefix(computing, waiter)
        assignment = Assignment(
            route=route,
            decode=decode,
            decode_work=decode.send(
                prompt_tokens=decode_tokens, output_reserve_tokens=reserve_tokens, local=prefill is None
            ),
            prefill=prefill,
            prefill_work=prefill.send(prompt_tokens=prompt.at(prefill.key).tokens, output_reserve_tokens=0, local=False)
            if prefill
            else None,
            unloaded_ttft_seconds=waiter.unloaded_ttft_seconds,
            class_name=waiter.class_name,
            underway=self._underway,
        )
        waiter.future.set_result(assignment)

    def _expect_prefix(self, worker: Worker, waiter: _Waiter) -> None:
        """What it computes now it will likely hold."""
        blocks = waiter.request.prefix_blocks
        room_blocks = worker.kv_capacity_tokens * len(blocks) / max(waiter.prompt.tokens, 1)
        self._prefixes.add(worker.key, blocks, room_blocks=room_blocks or math.inf)

    def _expire(self, fleet: Fleet, now: float, *, head_reason: HoldReason | None) -> None:
        """`head_reason` is the pass's own, when it had one."""
        if not self._waiting:
            self._room.overdue((), now, nobody=False)
            return
        rule = self._live().deflection
        reason = head_reason or self._policy.hold_reason(self._waiting[0], fleet, rule)
        for waiter in self._room.overdue(self._waiting, now, nobody=reason in _NOBODY):
            own_reason = self._policy.hold_reason(waiter, fleet, rule)
            message = f"no worker could take the request within {now - waiter.since:.0f} s: {_WORDS[own_reason]}"
            self._waiting.remove(waiter)
            if not waiter.future.done():
                waiter.future.set_exception(GatewayError(503, message, retry_after_seconds=5.0))

    def _plan_next_pass(self, fleet: Fleet, window_seconds: float) -> None:
        """The next pass by time: when the first prefill worker's window should open, else now and then."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._waiting:
            return
        openings = [worker.ahead_seconds - window_seconds for worker in fleet.prefill]
        soonest = min((seconds for seconds in openings if seconds > 0), default=LONGEST_PAUSE_SECONDS)
        pause_seconds = min(max(soonest, SHORTEST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS)
        self._timer = self._loop.call_later(pause_seconds, self.wake)
