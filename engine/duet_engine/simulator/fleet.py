"""The pools of a simulated fleet: cold starts, drains, deaths, and who is paid for since when.

Invariant: a worker is paid for from scheduled to gone. One that leaves by a planner's wish takes nothing new and is
gone when it is empty; if it is wanted again before, it serves on. A dead one is replaced through a whole cold start.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

import numpy as np

from duet_engine.policy.chunks import DecodeBatch, headroom_tokens_per_second
from duet_engine.policy.deflect import candidates_for
from duet_engine.protocol import Role
from duet_engine.simulator.decoding_worker import LONGEST_LEAP_STEPS, DecodingWorker
from duet_engine.simulator.local_prefill import Rules
from duet_engine.simulator.network import Link
from duet_engine.simulator.noise import NoiseStream, StepClock
from duet_engine.simulator.pace import Pace, Remembered
from duet_engine.simulator.prefill_worker import PrefillWorker
from duet_engine.simulator.result import WorkerLife
from duet_engine.simulator.scenario import LocalPrefill, PoolView
from duet_engine.simulator.sight import DecodeSight, PrefillSight
from duet_engine.simulator.worker import Place

if TYPE_CHECKING:
    from duet_engine.simulator.gateway import Gateway
    from duet_engine.simulator.scenario import Pool, Scenario
    from duet_engine.simulator.worker import Passage
    from duet_engine.step_log import StepLogEntry

ClockOf = Callable[[str, int], StepClock]
"""The step clock of a worker by its name and number."""


class PoolOfWorkers:
    """One pool: its workers, and how many are wanted."""

    def __init__(
        self,
        pool: Pool,
        *,
        scenario: Scenario,
        gateway: Gateway,
        numbers: count[int],
        clock_of: ClockOf | None = None,
        record: Callable[[str, StepLogEntry], None] | None = None,
        passage: Passage | None = None,
        longest_leap: int = LONGEST_LEAP_STEPS,
    ) -> None:
        self.pool = replace(pool, believed_steps=Remembered(pool.policy_steps))
        self.wanted = pool.replicas
        self.workers: list[PrefillWorker | DecodingWorker] = []
        """All that are paid for, oldest first."""
        self.lives: dict[int, WorkerLife] = {}
        """Of those that are gone, by number."""
        self.cold_starts_seconds: list[float] = []
        fixed = pool.local_prefill is LocalPrefill.FIXED_SPLIT
        self._pace = Pace(pool.steps, pool.limits, decode_sm_share=pool.limits.decode_sm_share if fixed else 1.0)
        self._scenario, self._gateway, self._agenda = scenario, gateway, gateway.agenda
        self._rules = Rules(scenario.rule, scenario.splitting, gateway.itl_limits)
        self._longest_leap, self._clock_of, self._record = longest_leap, clock_of, record
        self._passage = passage
        self._numbers, self._started = numbers, 0
        self._links: list[Link] = []
        self._random = np.random.Generator(np.random.PCG64([scenario.seed, 1 << 20, pool.role is Role.PREFILL]))
        for _ in range(pool.replicas):
            self._ready(self._schedule())

    # --- size ---

    def scale(self, wanted: int) -> None:
        """Hold so many from now on."""
        self.wanted = wanted
        staying = [worker for worker in self.workers if not worker.draining]
        for worker in reversed([worker for worker in self.workers if worker.draining]):
            if len(staying) < wanted:
                worker.draining = False
                staying.append(worker)
                self._show(worker)
        for _ in range(wanted - len(staying)):
            self._start()
        staying.sort(key=lambda worker: (worker.ready_at is not None, len(worker.flights), -worker.scheduled_at))
        for worker in staying[: max(len(staying) - wanted, 0)]:
            self._drain(worker)

    def kill(self, index: int) -> None:
        """A ready worker disappears with everything that it holds."""
        ready = [worker for worker in self.workers if worker.ready_at is not None]
        if not ready:
            return
        worker = ready[index % len(ready)]
        worker.dead = True
        held = list(worker.flights)
        self._gone(worker)
        for flight in held:
            self._gateway.lost(flight)
        if not worker.draining:
            self._start()

    def _start(self) -> None:
        worker, cold_start = self._schedule(), self.pool.cold_start
        drawn = self._random.normal(cold_start.seconds, cold_start.spread_seconds)
        seconds = float(np.clip(drawn, cold_start.seconds / 2, cold_start.seconds * 2))
        self._agenda.at(self._agenda.now + seconds, self._started_up, worker)

    def _started_up(self, worker: PrefillWorker | DecodingWorker) -> None:
        if worker.gone_at is None:
            self.cold_starts_seconds.append(self._agenda.now - worker.scheduled_at)
            self._ready(worker)

    def _schedule(self) -> PrefillWorker | DecodingWorker:
        number, index = next(self._numbers), self._started
        self._started += 1
        name = f"{self.pool.role}-{index:04}"
        scenario = self._scenario
        if index % scenario.network.workers_per_link == 0:
            self._links.append(Link())
        clock = (
            self._clock_of(name, number)
            if self._clock_of
            else NoiseStream(scenario.noise, seed=scenario.seed, worker=number)
        )
        place = Place(
            outside=self._gateway,
            pool=self.pool,
            pace=self._pace,
            clock=clock,
            link=self._links[-1],
            name=name,
            passage=self._passage,
        )
        worker: PrefillWorker | DecodingWorker
        if self.pool.role is Role.PREFILL:
            worker = PrefillWorker(place)
        else:
            worker = DecodingWorker(place, rules=self._rules, longest_leap=self._longest_leap)
        worker.scheduled_at = self._agenda.now
        if self._record is not None:
            worker.record = partial(self._record, name)
        worker.emptied = lambda: self._gone(worker) if worker.draining else None
        self._gateway.numbers[name] = number
        self.workers.append(worker)
        return worker

    def _ready(self, worker: PrefillWorker | DecodingWorker) -> None:
        worker.ready_at = self._agenda.now
        if not worker.draining:
            self._show(worker)

    def _show(self, worker: PrefillWorker | DecodingWorker) -> None:
        """To the gateway, if it may take work."""
        if worker.ready_at is None:
            return
        limits, phase = self._scenario.gateway, (self._gateway.numbers[worker.name] * 0.618034) % 1.0
        if isinstance(worker, PrefillWorker):
            self._gateway.show(worker.name, PrefillSight(worker, phase=phase, limits=limits))
        else:
            self._gateway.show(worker.name, DecodeSight(worker, phase=phase, limits=limits))

    def _drain(self, worker: PrefillWorker | DecodingWorker) -> None:
        worker.draining = True
        self._hide(worker)
        if not worker.flights:
            self._gone(worker)

    def _hide(self, worker: PrefillWorker | DecodingWorker) -> None:
        self._gateway.hide(worker.name)

    def _gone(self, worker: PrefillWorker | DecodingWorker) -> None:
        if worker.gone_at is None:
            self._hide(worker)
            self._gateway.forget(worker.name)
            worker.gone_at = self._agenda.now
            self.workers.remove(worker)
            self.lives[self._gateway.numbers[worker.name]] = self.life(worker)

    # --- what is told ---

    def life(self, worker: PrefillWorker | DecodingWorker) -> WorkerLife:
        """A worker's record up to now."""
        return WorkerLife(
            name=worker.name,
            role=self.pool.role,
            gpus=self.pool.gpus_per_replica,
            scheduled_seconds=worker.scheduled_at,
            ready_seconds=worker.ready_at,
            gone_seconds=self._agenda.now if worker.gone_at is None else worker.gone_at,
            died=worker.dead,
            busy_seconds=worker.busy_seconds,
            steps=worker.steps,
            prefill_tokens=worker.prefill_tokens,
            output_tokens=worker.output_tokens,
            deflected_tokens=worker.deflected_tokens,
            retractions=worker.retractions,
        )

    def all_lives(self) -> dict[int, WorkerLife]:
        """Of everybody who ever was, by number."""
        return self.lives | {self._gateway.numbers[worker.name]: self.life(worker) for worker in self.workers}

    def view(self) -> PoolView:
        """As a planner sees it."""
        serving = [worker for worker in self.workers if worker.ready_at is not None and not worker.draining]
        decoding = [worker for worker in serving if isinstance(worker, DecodingWorker)]
        prefilling = [worker for worker in serving if isinstance(worker, PrefillWorker)]
        return PoolView(
            replicas=self.wanted,
            ready=len(serving),
            starting=sum(worker.ready_at is None for worker in self.workers),
            draining=sum(worker.draining for worker in self.workers),
            running_requests=sum(len(worker.batch) for worker in decoding),
            queued_prefill_tokens=sum(worker.queued_tokens for worker in prefilling)
            + sum(worker.local_prefill_tokens for worker in decoding),
            kv_used_tokens=sum(worker.kv.used_tokens for worker in serving),
            headroom_tokens_per_second=sum(map(self._headroom, decoding)),
        )

    def _headroom(self, worker: DecodingWorker) -> float:
        if self.pool.local_prefill is None:
            return 0.0
        view = self._gateway.decode[worker.name].view(self._agenda.now)
        return headroom_tokens_per_second(
            self.pool.policy_steps,
            DecodeBatch(len(worker.batch), worker.batch.context_tokens),
            candidates_tokens=candidates_for(view, self._scenario.rule),
            step_budget_seconds=self._scenario.rule.step_budget_seconds,
            full_chunk_tokens=self.pool.limits.chunked_prefill_tokens,
        )
