"""What a scheduler process tells of itself: numbers that it writes to the board, and how long each step took.

Invariant: everything here is a plain number, so that a reader in another process has it whole within microseconds.
Moments named `_at` are of the machine's monotonic clock, which all processes of an engine share.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from operator import attrgetter

from duet_engine.protocol import StepKind

STEP_KINDS = (StepKind.IDLE, StepKind.PREFILL, StepKind.DECODE, StepKind.MIXED, StepKind.SPLIT)
"""Their places here are their numbers on the board."""
BUSY_KINDS = STEP_KINDS[1:]
KNOBS_KEY = "duet_knobs"
"""The name of a `Knobs` document among the settings that SGLang hands to its schedulers."""


@dataclass(slots=True)
class SchedulerFacts:
    """One scheduler process now. Modules of the plugin set what is theirs; the frame sets the rest."""

    heartbeat_at: float = 0.0
    """When the scheduler's loop last came round."""
    step_kind: float = 0.0
    step_started_at: float = 0.0
    step_predicted_seconds: float = 0.0
    last_step_ended_at: float = 0.0
    runnable_since: float = 0.0
    """Since when there has been work that needs no other worker; 0 while there is none."""
    paused: float = 0.0
    role: float = 0.0
    """Place in `duet_engine.protocol.Role`: a role switch changes it."""
    # Work by place, as `protocol.Work` has it.
    running: float = 0.0
    queued: float = 0.0
    deflected: float = 0.0
    prefill_bootstrap: float = 0.0
    prefill_inflight: float = 0.0
    decode_prealloc: float = 0.0
    decode_transfer: float = 0.0
    # Tokens.
    queued_prefill_tokens: float = 0.0
    queued_deflected_tokens: float = 0.0
    decode_requests: float = 0.0
    decode_context_tokens: float = 0.0
    kv_used_tokens: float = 0.0
    kv_reserved_tokens: float = 0.0
    kv_capacity_tokens: float = 0.0
    max_running_requests: float = 0.0
    chunked_prefill_tokens: float = 0.0
    # What the deflection module says.
    deflection_active: float = 0.0
    headroom_tokens_per_second: float = 0.0
    knobs_generation: float = 0.0
    # Since the start.
    prefill_tokens_total: float = 0.0
    deflected_tokens_total: float = 0.0
    deflected_requests_total: float = 0.0
    output_tokens_total: float = 0.0
    busy_seconds_total: float = 0.0
    predicted_seconds_total: float = 0.0
    """Of the steps in `busy_seconds_total` that were predicted."""
    chunks_total: float = 0.0
    hook_seconds_total: float = 0.0
    """CPU time that the plugin itself took in this process's steps."""
    prefill_steps_total: float = 0.0
    decode_steps_total: float = 0.0
    mixed_steps_total: float = 0.0
    split_steps_total: float = 0.0
    prefill_seconds_total: float = 0.0
    decode_seconds_total: float = 0.0
    mixed_seconds_total: float = 0.0
    split_seconds_total: float = 0.0

    @property
    def steps_total(self) -> float:
        return self.prefill_steps_total + self.decode_steps_total + self.mixed_steps_total + self.split_steps_total

    @property
    def total_work(self) -> float:
        """Requests in this scheduler, wherever."""
        here = self.running + self.queued + self.deflected
        return here + self.prefill_bootstrap + self.prefill_inflight + self.decode_prealloc + self.decode_transfer

    @property
    def runnable_work(self) -> float:
        """Requests that wait for nobody but this scheduler. KV that a decode worker hasn't fetched yet may be what a
        waiting prompt lacks."""
        return self.running + self.deflected + (0.0 if self.prefill_inflight else self.queued)

    @property
    def kind(self) -> StepKind:
        return STEP_KINDS[int(self.step_kind)]

    def values(self) -> tuple[float, ...]:
        """In the order of `FACT_NAMES`."""
        values: tuple[float, ...] = _VALUES(self)
        return values


FACT_NAMES = tuple(field.name for field in fields(SchedulerFacts))
_VALUES = attrgetter(*FACT_NAMES)


def facts_from(values: tuple[float, ...]) -> SchedulerFacts:
    """What another process wrote."""
    return SchedulerFacts(*values)
