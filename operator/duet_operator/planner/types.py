"""What goes into a plan and what comes out.

Invariant: every value is immutable and in base units (seconds, tokens, requests, tokens per second). Absent
measurements are None, never zero: a planner must not take an outage for an idle hour.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from duet_engine.perf.interface import Basis, StepTimes
from duet_engine.perf.replica import replica_from_document
from duet_engine.protocol import Role

if TYPE_CHECKING:
    from collections.abc import Mapping

    from duet_engine.protocol import WorkerProfile
    from duet_engine.slo import Objective


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What users asked for over one window, summed over all gateways.

    Lengths are means over the window's requests; `input_tokens` counts whole prompts, `cached_tokens` the part of them
    that some worker already had.
    """

    window_seconds: float
    requests_per_second: float
    input_tokens_per_second: float
    cached_tokens_per_second: float
    output_tokens_per_second: float
    mean_input_tokens: float
    mean_output_tokens: float
    p95_input_tokens: float = 0.0
    deflected_requests_per_second: float = 0.0
    deflected_tokens_per_second: float = 0.0
    rejected_requests_per_second: float = 0.0
    waiting_requests: int = 0
    waiting_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Attainment:
    """How well the objectives were met over one window; None where no request ended."""

    window_seconds: float
    completed_requests: int
    met_both_share: float | None = None
    ttft_p95_seconds: float | None = None
    itl_p95_seconds: float | None = None
    capacity_misses: int = 0
    """Misses that more capacity would have prevented (queue, engine, gate)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolState:
    """One pool as the cluster shows it. `replicas` is the number last asked for; the others count pods by state.

    `ready + starting + draining + replacing + pending` may differ from `replicas` while the cluster catches up.
    """

    replicas: int
    ready: int = 0
    starting: int = 0
    draining: int = 0
    replacing: int = 0
    """Waiting for the GPU of its own predecessor: not lost capacity."""
    terminating: int = 0
    """Leaving for good but still on their nodes, where they hold their GPUs; not among `replicas` any more."""
    pending_too_long: int = 0
    """Unschedulable, refused by quota or crash-looping past the deadline: no capacity, and no more is asked for."""
    surge: int = 0
    """Pods beyond `replicas` that a rollout may add, and successors of workers that are to leave."""
    room: int | None = None
    """Most replicas that the cluster had a place for when more were asked for lately; None: no bound is known."""
    queued_prefill_tokens: int = 0
    running_requests: int = 0
    kv_used_tokens: int = 0
    headroom_tokens_per_second: float | None = None


@dataclass(frozen=True, slots=True)
class Counts:
    """Replicas of both pools, or GPUs or costs of one replica of each."""

    prefill: int
    decode: int

    def of(self, role: Role) -> int:
        """The count of that role's pool."""
        return self.prefill if role is Role.PREFILL else self.decode

    def distance(self, other: Counts) -> int:
        """Replicas that would start or leave between the two."""
        return abs(self.prefill - other.prefill) + abs(self.decode - other.decode)

    def at_least(self, other: Counts) -> Counts:
        """The greater count of each pool."""
        return Counts(max(self.prefill, other.prefill), max(self.decode, other.decode))

    def at_most(self, other: Counts) -> Counts:
        """The smaller count of each pool."""
        return Counts(min(self.prefill, other.prefill), min(self.decode, other.decode))


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """Everything that was seen in one pass.

    `demand` is None when no gateway answered in time; `complete` is False when some Ready gateway didn't: then demand
    is a lower bound, and nothing may be lowered.
    """

    now_seconds: float
    prefill: PoolState
    decode: PoolState
    demand: Demand | None = None
    attainment: Attainment | None = None
    complete: bool = True
    cold_start_p90_seconds: float | None = None
    rollout_in_progress: bool = False
    deflection_active: bool = False
    """A live decode worker reports that it takes deflected prompts."""

    @property
    def present(self) -> Counts:
        """The counts that were last asked for."""
        return Counts(self.prefill.replicas, self.decode.replicas)

    def pool(self, role: Role) -> PoolState:
        """The pool of that role."""
        return self.prefill if role is Role.PREFILL else self.decode


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerPerformance:
    """One replica of a pool: its step times and its memory, from the profile that the engine reports."""

    steps: StepTimes
    kv_capacity_tokens: int
    max_running_requests: int
    chunked_prefill_tokens: int
    gpus_per_replica: int = 1
    basis: Basis = Basis.ASSUMED
    """What the step times of its role rest on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Performance:
    """What one replica of each pool can do; None until a worker of that pool, or a known model, told."""

    prefill: WorkerPerformance | None
    decode: WorkerPerformance | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolBounds:
    """What the user allows for one pool."""

    min_replicas: int
    max_replicas: int
    gpus_per_replica: int = 1
    price_per_hour_milli: int | None = None
    manual_replicas: int | None = None
    """What the user holds the pool at in Manual mode; None keeps the present count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSpec:
    """The part of a DuetDeployment that planning reads, in base units."""

    objective: Objective
    """What workers are sized for."""
    attainment_goal: float
    prefill: PoolBounds
    decode: PoolBounds
    deflection_enabled: bool
    interval_seconds: float
    stabilization_seconds: float
    cold_start_guess_seconds: float
    max_gpus: int | None = None
    spare_replicas: int = 0
    idle_seconds: float = 600.0
    """How long nobody must have asked for anything before the last decode worker goes, where none need be there."""
    max_surge: int = 0
    """Workers that may exist beyond a pool's count during a rollout."""
    max_unavailable: int = 1
    """Workers of a pool that may be missing during a rollout."""
    classes: Mapping[str, Objective] = field(default_factory=dict)
    """Classes of requests that were promised something of their own."""

    def pool(self, role: Role) -> PoolBounds:
        """The bounds of that role's pool."""
        return self.prefill if role is Role.PREFILL else self.decode


@dataclass(frozen=True, slots=True)
class DemandSample:
    """One window in the planner's memory."""

    time_seconds: float
    requests_per_second: float
    uncached_input_tokens_per_second: float
    output_tokens_per_second: float
    p95_input_tokens: float = 0.0


@dataclass(frozen=True, slots=True)
class Need:
    """What a pass found necessary, kept for stabilization: a pool shrinks only to the largest need of the window."""

    time_seconds: float
    prefill: int
    decode: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannerMemory:
    """What a plan remembers from earlier ones; small, and worth keeping over a restart."""

    samples: tuple[DemandSample, ...] = ()
    needs: tuple[Need, ...] = ()
    found: Need | None = None
    """The counts that were there when this memory began."""
    correction: float = 1.0
    """Slow factor on demand, from measured attainment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolDecision:
    """The count for one pool and the reason that bound it."""

    replicas: int
    recommended: int
    """Before guards."""
    reason: str
    limited_by: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The counts to hold from now on, why, and what to remember.

    `reason` is one CamelCase word from a closed list (see `duet_operator.planner.explain`), `message` one sentence with
    numbers for the person on call.
    """

    prefill: PoolDecision
    decode: PoolDecision
    deflected_share: float
    reason: str
    message: str
    memory: PlannerMemory
    held: bool = False
    """True: something needed for a decision was missing, so the counts are the present ones."""
    limited_by: tuple[str, ...] = ()
    inputs: Mapping[str, float] = field(default_factory=dict)
    capacity_per_replica: Mapping[str, float] = field(default_factory=dict)
    capacity_basis: Basis | None = None
    """What these capacities rest on; None where none was worked out."""
    forecast: Mapping[str, float] = field(default_factory=dict)


class Planner(Protocol):
    """The signature that the control loop and the simulator call."""

    def __call__(
        self, observation: Observation, memory: PlannerMemory, spec: PlanSpec, performance: Performance
    ) -> Decision: ...


def worker_performance(profile: WorkerProfile) -> WorkerPerformance:
    """A replica as its engine describes it."""
    return WorkerPerformance(
        steps=replica_from_document(profile.replica),
        kv_capacity_tokens=profile.kv_capacity_tokens,
        max_running_requests=profile.max_running_requests,
        chunked_prefill_tokens=profile.chunked_prefill_tokens,
        gpus_per_replica=profile.gpus_per_replica,
        basis=Basis(profile.basis),
    )
