"""The frame's hooks in scheduler processes: when the loop turns, a step begins or ends, settings change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from duet_engine.knobs import read_knobs
from duet_engine.plugin import scheduler_side
from duet_engine.plugin.facts import KNOBS_KEY
from duet_engine.plugin.hooks import Hook, Kind, Process
from duet_engine.plugin.scheduler_side import SchedulerSide

SCHEDULER = "managers.scheduler.Scheduler."


def _loop_starts(scheduler: Any) -> None:  # noqa: ANN401
    scheduler_side.start(scheduler)


def _loop_turned(_: list[Any], scheduler: Any, *__: Any, **___: Any) -> None:  # noqa: ANN401
    scheduler_side.observe(scheduler, SchedulerSide.loop_turned)


def _idles(scheduler: Any) -> None:  # noqa: ANN401
    scheduler_side.observe(scheduler, SchedulerSide.idles)


def _run_batch(original: Callable[..., Any], scheduler: Any, batch: Any, *more: Any, **options: Any) -> Any:  # noqa: ANN401
    scheduler_side.observe(scheduler, lambda side: side.step_begins(batch))
    result = original(scheduler, batch, *more, **options)
    scheduler_side.observe(scheduler, lambda side: side.timer.launched(batch))
    return result


def _process_batch_result(_: None, scheduler: Any, batch: Any, *__: Any, **___: Any) -> None:  # noqa: ANN401
    scheduler_side.observe(scheduler, lambda side: side.step_ended(batch))


def _update_handlers(handlers: dict[str, Any], controller: Any) -> dict[str, Any]:  # noqa: ANN401
    from sglang.srt.managers.scheduler_components.internal_state import UpdateRejected, _UpdateHandler

    side = scheduler_side.of(controller.scheduler)

    def validate(_: str, value: str) -> None:
        try:
            read_knobs(value.encode())
        except ValueError as error:
            raise UpdateRejected(str(error)) from error

    def apply(_: str, value: str) -> None:
        side.apply_knobs(read_knobs(value.encode()))

    return {**handlers, KNOBS_KEY: _UpdateHandler(validate, apply)}


def _hook(target: str, digest: str, function: Callable[..., Any], kind: Kind) -> Hook:
    return Hook(target=target, digest=digest, function=function, kind=kind, process=Process.SCHEDULER)


HOOKS = (
    _hook(SCHEDULER + "run_event_loop", "faae8efd0336", _loop_starts, Kind.BEFORE),
    _hook(SCHEDULER + "ingest_requests", "77f9e386bae1", _loop_turned, Kind.AFTER),
    _hook(SCHEDULER + "on_idle", "7b36d7bcce30", _idles, Kind.BEFORE),
    _hook(SCHEDULER + "run_batch", "4e9bb4d5e649", _run_batch, Kind.AROUND),
    _hook(SCHEDULER + "process_batch_result", "726305f46a97", _process_batch_result, Kind.AFTER),
    _hook(
        "managers.scheduler_components.internal_state.SchedulerInternalStateController._update_handlers",
        "4c829223260e",
        _update_handlers,
        Kind.AFTER,
    ),
)
