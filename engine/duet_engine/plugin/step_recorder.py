"""Writes the step log (`duet_engine.step_log`) of rank 0 where DUET_STEP_LOG names a file.

Invariant: a line is written after its step, and reaches the disk within a second or when the worker falls idle; a disk
that is full ends the log, not the worker.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duet_engine.protocol import Role, Work
from duet_engine.step_log import Joined, StepLogEntry, StepLogHead, entry_line, head_line

if TYPE_CHECKING:
    from duet_engine.plugin.facts import SchedulerFacts
    from duet_engine.plugin.scheduler_side import SchedulerSide
    from duet_engine.plugin.steps import Step

FLUSH_SECONDS = 1.0
PLACES = tuple(Work.model_fields)
LOGGED_ATTRIBUTE = "duet_logged"
"""Attribute of SGLang's request once a step with it has been logged."""

log = logging.getLogger(__name__)


class StepRecorder:
    """One open log."""

    def __init__(self, path: Path, head: StepLogHead) -> None:
        self._file = path.open("w")
        self._file.write(head_line(head))
        self._file.flush()
        self._flushed_at = time.monotonic()
        self._broken = False

    def record(self, step: Step) -> None:
        """One step that has ended."""
        if self._broken:
            return
        try:
            self._file.write(entry_line(entry_of(step)))
            if step.ended_at - self._flushed_at >= FLUSH_SECONDS:
                self._file.flush()
                self._flushed_at = step.ended_at
        except OSError as error:
            self._give_up(error)

    def flush(self) -> None:
        """Nothing runs: what there is may be read."""
        try:
            self._file.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        if not self._broken:
            log.error("the step log ends here: %s", error)
        self._broken = True


def entry_of(step: Step) -> StepLogEntry:
    """A step as the log has it."""
    return StepLogEntry(
        kind=step.kind,
        started_at_seconds=step.started_at,
        seconds=step.forward_seconds,
        decode_rows=step.decode_rows,
        decode_context_tokens=step.decode_context_tokens,
        prefill_rows=len(step.chunk_tokens),
        prefill_tokens=step.prefill_tokens,
        prefill_context_tokens=step.prefill_context_tokens,
        prefill_pairs=int(step.prefill_pairs),
        kv_used_tokens=step.kv_used_tokens,
        queues=step.queues,
        joined=step.joined,
    )


def queues_of(facts: SchedulerFacts) -> dict[str, int]:
    """Requests by place; empty places are left out."""
    return {place: int(value) for place in PLACES if (value := getattr(facts, place))}


def joined_in(batch: Any) -> tuple[Joined, ...]:  # noqa: ANN401
    """Requests of a batch that no step has had yet. SGLang's clock of requests is the machine's monotonic one."""
    new = [request for request in batch.reqs if not getattr(request, LOGGED_ATTRIBUTE, False)]
    for request in new:
        setattr(request, LOGGED_ATTRIBUTE, True)
    return tuple(
        Joined(
            rid=str(request.rid),
            input_tokens=len(request.origin_input_ids),
            received_at_seconds=float(request.time_stats.scheduler_recv_time),
            ready_at_seconds=float(request.time_stats.wait_queue_entry_time),
        )
        for request in new
    )


def head_of(side: SchedulerSide, *, worker: str, role: Role, model: str) -> StepLogHead:
    """Whose steps these are."""
    replica = side.model
    return StepLogHead(
        worker=worker,
        role=role,
        model=model,
        gpu=replica.gpu.name if replica.gpu.name != "cpu" else "",
        ranks=replica.ranks,
        kv_capacity_tokens=int(side.facts.kv_capacity_tokens),
        chunked_prefill_tokens=int(side.facts.chunked_prefill_tokens),
    )
