"""Duet in a scheduler process: what it observes of the loop and tells the server process.

Invariant: nothing here decides anything, and a step costs it some microseconds of CPU, counted in
`hook_seconds_total`. Clocks are read on every rank, so no rank may let them change what it schedules.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from duet_engine.perf.roofline import Roofline
from duet_engine.plugin import modules
from duet_engine.plugin.board import Numbers, pin_card
from duet_engine.plugin.facts import FACT_NAMES, STEP_KINDS, SchedulerFacts
from duet_engine.plugin.hooks import HookTable, Process
from duet_engine.plugin.profile import replica_model
from duet_engine.plugin.scheduler_counts import count_tokens, count_work
from duet_engine.plugin.settings import EngineSettings
from duet_engine.plugin.step_recorder import StepRecorder, head_of, joined_in, queues_of
from duet_engine.plugin.steps import Step, StepTimer
from duet_engine.protocol import HookStatus, Knobs, ProcessInfo, StepKind

log = logging.getLogger(__name__)

REFRESH_SECONDS = 0.05
"""How old queue lengths may get while steps are alike, and a decode step that is like the one before."""
SAMPLED = 16
"""One of so many steps is timed for what the plugin takes of it."""
KIND_NUMBERS = {kind: float(number) for number, kind in enumerate(STEP_KINDS)}


class SchedulerSide:
    """One scheduler process. `modules` of the plugin find it by `of(scheduler)`."""

    def __init__(self, scheduler: Any, numbers: Numbers, *, knobs: Knobs, model: Roofline) -> None:  # noqa: ANN401
        self.scheduler = scheduler
        self.facts = SchedulerFacts(
            kv_capacity_tokens=float(scheduler.max_total_num_tokens),
            max_running_requests=float(scheduler.max_running_requests),
            chunked_prefill_tokens=float(scheduler.chunked_prefill_size or scheduler.max_total_num_tokens),
        )
        self.knobs = knobs
        self.model = model
        """Predicted step times."""
        self.on_knobs: list[Callable[[Knobs], None]] = []
        """Modules that want to hear of new settings; called on every rank at the same place in the loop."""
        self.on_refresh: list[Callable[[SchedulerFacts], None]] = []
        """Modules that set facts of theirs before these are written."""
        self.on_step: list[Callable[[Step], None]] = []
        """Modules that want to see each step that has ended."""
        self.on_idle: list[Callable[[], None]] = []
        """Modules that have something to do when there is nothing to run."""
        self.timer = StepTimer(synchronous=scheduler.device == "cpu")
        self.logs_steps = False
        self._numbers = numbers
        self._refreshed_at = 0.0
        self._looks = 0
        self.failed = False
        """Whether observing went wrong once: it isn't tried again, and the worker is unready."""
        self._idle = True
        """Whether what is written down says so already."""

    def loop_turned(self) -> None:
        """The scheduler has taken in its requests once more."""
        now = time.monotonic()
        self.facts.heartbeat_at = now
        if now - self._refreshed_at >= REFRESH_SECONDS:
            self.refresh(now)

    def step_begins(self, batch: Any) -> None:  # noqa: ANN401
        """A batch is about to run."""
        began = self._look_at_the_clock()
        step = self.timer.begin(batch)
        if step is None:
            return
        facts = self.facts
        facts.step_started_at = step.started_at
        if self._goes_on(step):
            step.predicted_seconds = facts.step_predicted_seconds
        else:
            self._tell(step)
        if self.logs_steps:
            self._note(step, batch)
        self._count_own_time(began)

    def _note(self, step: Step, batch: Any) -> None:  # noqa: ANN401
        """For the step log: what the worker holds as this step begins, counted anew."""
        self.refresh(step.started_at)
        step.kv_used_tokens, step.queues = int(self.facts.kv_used_tokens), queues_of(self.facts)
        step.joined = joined_in(batch)

    def _goes_on(self, step: Step) -> bool:
        """Whether it is the decode step of a moment ago once more: what is written down still tells it."""
        facts = self.facts
        if step.kind is not StepKind.DECODE or step.decode_rows != facts.decode_requests:
            return False
        decoded = facts.step_kind == KIND_NUMBERS[StepKind.DECODE]
        return decoded and step.started_at - self._refreshed_at < REFRESH_SECONDS

    def _tell(self, step: Step) -> None:
        """Write down what runs now. What the worker holds is counted anew where that may be another matter."""
        facts, kind = self.facts, KIND_NUMBERS[step.kind]
        another_kind = kind != facts.step_kind
        step.predicted_seconds = facts.step_predicted_seconds = self.model.step_seconds(step.batch())
        facts.step_kind = kind
        facts.decode_requests = float(step.decode_rows)
        facts.decode_context_tokens = float(step.decode_context_tokens)
        if another_kind or step.started_at - self._refreshed_at >= REFRESH_SECONDS:
            self.refresh(step.started_at)
        else:
            self._numbers.write(facts.values())

    def step_ended(self, batch: Any) -> None:  # noqa: ANN401
        """A batch's results are there and processed."""
        began = self._look_at_the_clock()
        step = self.timer.end(batch)
        if step is None:
            return
        self._count(step)
        for observe in self.on_step:
            observe(step)
        self.facts.last_step_ended_at = step.ended_at
        self._idle = False
        self._count_own_time(began)

    def _look_at_the_clock(self) -> float:
        """CPU time of this thread, in one of sixteen steps: reading it costs as much as the rest."""
        self._looks += 1
        return time.thread_time() if self._looks // 2 % SAMPLED == 0 else 0.0

    def _count_own_time(self, began: float) -> None:
        if began:
            self.facts.hook_seconds_total += SAMPLED * (time.thread_time() - began)

    def idles(self) -> None:
        """The scheduler has found nothing to run; it may sleep for a second now."""
        if self._idle or self.timer.under_way:
            return
        facts = self.facts
        facts.step_kind = facts.step_started_at = facts.step_predicted_seconds = 0.0
        facts.decode_requests = facts.decode_context_tokens = 0.0
        self.refresh(time.monotonic())
        self._idle = True
        for tell in self.on_idle:
            tell()

    def apply_knobs(self, knobs: Knobs) -> None:
        """New settings are in force from here on."""
        self.knobs = knobs
        self.facts.knobs_generation = float(knobs.generation)
        for tell in self.on_knobs:
            tell(knobs)
        self.refresh(time.monotonic())

    def refresh(self, now: float) -> None:
        """Count what the scheduler holds, and write it down."""
        scheduler, facts = self.scheduler, self.facts
        self._refreshed_at = now
        count_work(scheduler, facts, rows_outside=self.timer.rows_outside(scheduler.running_batch))
        count_tokens(scheduler, facts, computing_tokens=self.timer.prefill_tokens)
        facts.paused = float(scheduler._engine_paused)
        for contribute in self.on_refresh:
            contribute(facts)
        if facts.runnable_work == 0:
            facts.runnable_since = 0.0
        elif facts.runnable_since == 0.0:
            facts.runnable_since = now
        self._numbers.write(facts.values())

    def _count(self, step: Step) -> None:
        facts, seconds = self.facts, step.seconds
        facts.busy_seconds_total += seconds
        facts.predicted_seconds_total += step.predicted_seconds
        facts.prefill_tokens_total += step.prefill_tokens
        facts.chunks_total += len(step.chunk_tokens)
        facts.output_tokens_total += step.output_tokens
        if step.kind is StepKind.PREFILL:
            facts.prefill_steps_total += 1
            facts.prefill_seconds_total += seconds
        elif step.kind is StepKind.DECODE:
            facts.decode_steps_total += 1
            facts.decode_seconds_total += seconds
        elif step.kind is StepKind.MIXED:
            facts.mixed_steps_total += 1
            facts.mixed_seconds_total += seconds
        else:
            facts.split_steps_total += 1
            facts.split_seconds_total += seconds


@dataclass(slots=True)
class _Here:
    """This process."""

    settings: EngineSettings
    board: Path
    hooks: HookTable
    side: SchedulerSide | None = None


_here: list[_Here] = []


def prepare(settings: EngineSettings, board: Path, hooks: HookTable) -> None:
    """Remember what the scheduler will need once it is there."""
    _here[:] = [_Here(settings, board, hooks)]


def start(scheduler: Any) -> SchedulerSide:  # noqa: ANN401
    """The scheduler's loop is about to begin: tell who this process is and which hooks are in force."""
    (here,) = _here
    rank = scheduler_rank()
    numbers = Numbers(here.board / f"scheduler-{rank}.numbers", FACT_NAMES, create=True)
    knobs = Knobs(generation=0, itl_milliseconds=here.settings.itl_milliseconds)
    here.side = side = SchedulerSide(scheduler, numbers, knobs=knobs, model=_replica(here.settings, scheduler))
    for module in modules.loaded():
        if module.scheduler_started is not None:
            module.scheduler_started(side)
    if here.settings.step_log is not None and rank == 0:
        head = head_of(
            side, worker=here.settings.worker, role=here.settings.role, model=model_of(here.settings, scheduler)
        )
        recorder = StepRecorder(here.settings.step_log, head)
        side.on_step.append(recorder.record)
        side.on_idle.append(recorder.flush)
        side.logs_steps = True
    side.refresh(time.monotonic())
    card = ProcessInfo(name=Process.SCHEDULER.value, rank=rank, pid=os.getpid(), hooks=here.hooks.statuses())
    pin_card(here.board, card)
    return side


def observe(scheduler: Any, look: Callable[[SchedulerSide], None]) -> None:  # noqa: ANN401
    """Look at something. A mistake in it must cost this worker its readiness, not its requests."""
    side = of(scheduler)
    if side.failed:
        return
    try:
        look(side)
    except Exception as error:
        side.failed = True
        log.exception("Duet's plugin failed in this scheduler; it observes nothing any more, and the worker is unready")
        (here,) = _here
        reason = f"failed while it ran: {type(error).__name__}: {error}"
        broken = HookStatus(target=__name__, active=False, reason=reason)
        rank = scheduler_rank()
        pin_card(here.board, ProcessInfo(name=Process.SCHEDULER.value, rank=rank, pid=os.getpid(), hooks=(broken,)))


def of(scheduler: Any) -> SchedulerSide:  # noqa: ANN401
    """The side of this process's scheduler."""
    side = _here[0].side
    assert side is not None
    assert side.scheduler is scheduler
    return side


def scheduler_rank() -> int:
    """Its place among all schedulers of this engine."""
    from sglang.srt.runtime_context import get_parallel

    parallel = get_parallel()
    return int(parallel.pp_rank * parallel.tp_size + parallel.tp_rank)


def _replica(settings: EngineSettings, scheduler: Any) -> Roofline:  # noqa: ANN401
    arguments = scheduler.server_args
    return replica_model(
        settings, model_path=arguments.model_path, ranks=int(arguments.tp_size) * int(arguments.pp_size)
    )


def model_of(settings: EngineSettings, scheduler: Any) -> str:  # noqa: ANN401
    """By what the performance model finds this model: its config.json where that is on disk."""
    config = Path(scheduler.server_args.model_path) / "config.json"
    return str(config) if config.is_file() else settings.model_id
