"""What is simulated: pools, engines, network, noise, objectives, policies, and the planner that moves the pools.

Invariant: a scenario holds values and factories, never anything that a run changes, so one scenario and one seed give
the same run any number of times. Everything is in seconds and tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from duet_engine.policy.baselines import Baseline, RoutingPolicy, baseline
from duet_engine.policy.deflect import DeflectionRule
from duet_engine.policy.dispatch import Hold, Local, Pair
from duet_engine.policy.partition import SplitRule
from duet_engine.protocol import Role
from duet_engine.slo import Objective

if TYPE_CHECKING:
    from duet_engine.perf.interface import StepTimes
    from duet_engine.policy.fleet import Fleet, Prompt

GRAPH_BATCH_SIZES = (1, 2, 4, 8, *range(16, 257, 8))
"""Decode batches that SGLang captures as CUDA graphs by default; a batch runs as the next larger one."""


class LocalPrefill(StrEnum):
    """How a worker that decodes computes prompts."""

    PROMPTS_FIRST = "prompts-first"
    """In steps of their own that residents wait for: SGLang's default."""
    MIXED = "mixed"
    """One step of decode tokens and a chunk that fills the token budget (chunked prefill)."""
    SAFE = "safe"
    """The largest chunk whose mixed step is predicted to keep the ITL budget: Duet's and Kairos' decode workers."""
    SPLIT = "split"
    """A mixed step while it keeps the budget, else the best split of the SMs (DuetServe)."""
    FIXED_SPLIT = "fixed-split"
    """Always a fixed share of the SMs for each phase."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """Settings of an engine, by what they bound."""

    max_running_requests: int = 256
    chunked_prefill_tokens: int = 8192
    reserved_decode_tokens: int = 512
    """KV promised to each request's coming tokens when it is admitted."""
    max_deflected_requests: int = 16
    deflected_wait_seconds: float = 2.0
    """A prompt without a safe chunk is refused after this long, or goes on with the smallest one if it has begun."""
    itl_unsafe_seconds: float = 0.5
    """No prompt is taken once no chunk has been safe for this long."""
    prefix_cache: bool = False
    """Whether prompts' blocks stay in the KV pool until their place is needed."""
    graph_batch_sizes: tuple[int, ...] = GRAPH_BATCH_SIZES
    """Decode batches are padded to the next of these; empty: never padded."""
    eager_step_seconds: float = 0.0
    """What launching a step without a CUDA graph takes at least: every step with a prompt, and larger batches."""
    decode_sm_share: float = 0.5
    """`FIXED_SPLIT`: the decode phase's share of the SMs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ColdStart:
    """From scheduled to ready: a normal distribution, cut off at half and at twice the mean."""

    seconds: float = 120.0
    spread_seconds: float = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Equal workers. `steps` is the truth of the run; `believed_steps`, where given, is what policies think instead."""

    role: Role
    steps: StepTimes
    kv_capacity_tokens: int
    replicas: int
    """Ready at the start; a planner changes it."""
    limits: EngineLimits = field(default_factory=EngineLimits)
    local_prefill: LocalPrefill | None = None
    """Decode and unified workers: how they compute prompts; None: they don't take any."""
    believed_steps: StepTimes | None = None
    cold_start: ColdStart = field(default_factory=ColdStart)
    gpus_per_replica: int = 1

    def __post_init__(self) -> None:
        if self.replicas < 0:
            raise ValueError(f"replicas: must not be negative, got {self.replicas}")
        if self.kv_capacity_tokens <= 0:
            raise ValueError(f"kv_capacity_tokens: must be positive, got {self.kv_capacity_tokens}")
        if self.role is Role.UNIFIED and self.local_prefill is None:
            raise ValueError("local_prefill: a unified worker must compute prompts; choose one of LocalPrefill")
        if self.role is Role.PREFILL and self.local_prefill is not None:
            raise ValueError("local_prefill: a prefill worker doesn't decode; leave it out")

    @property
    def policy_steps(self) -> StepTimes:
        """The step times that policies decide by."""
        return self.believed_steps or self.steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """Gateway to engine, and prefill to decode."""

    hop_seconds: float = 0.0005
    """From gateway to engine, and as long back for each token."""
    workers_per_link: int = 1
    """Workers of one pool that share a network adapter."""

    def __post_init__(self) -> None:
        if self.workers_per_link < 1:
            raise ValueError(f"workers_per_link: must be at least 1, got {self.workers_per_link}")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepNoise:
    """How far steps are off the model: a lognormal factor of mean 1, and now and then a stall."""

    relative_spread: float = 0.05
    stall_probability: float = 1e-4
    """Of each step."""
    stall_seconds: float = 0.1


NO_NOISE = StepNoise(relative_spread=0.0, stall_probability=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayLimits:
    """How the gateway learns and waits."""

    state_interval_seconds: float = 0.1
    """Between two lines of a worker's state stream; 0: a line with every change."""
    state_age_seconds: float = 0.002
    """From writing a line to deciding by it."""
    pass_interval_seconds: float = 0.02
    """Between two looks at a queue that stays."""
    queue_timeout_seconds: float = 600.0
    """A request that waits longer fails."""
    output_reserve_tokens: int = 512
    prefix_index: bool = True
    """Whether it remembers which worker computed the beginnings of prompts."""
    window_seconds: float = 0.15
    """A worker is open while the predicted work ahead of the next prompt is within it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerDeath:
    """A worker that disappears; its pool's controller starts another."""

    at_seconds: float
    role: Role
    index: int = 0
    """Which of the pool's ready workers, by age."""


class DispatchPolicy(Protocol):
    """Who of the waiting prompts leaves now, and where to, in place of the gateway's own policy."""

    def dispatch(self, waiting: Sequence[Prompt], fleet: Fleet) -> Sequence[Pair | Local | Hold]:
        """Routes for prompts from the head of the queue on. It is asked again until nobody leaves any more."""
        ...


@dataclass(frozen=True, slots=True)
class Immediate:
    """A baseline: the head of the queue leaves as soon as anybody may take it."""

    routing: RoutingPolicy

    def dispatch(self, waiting: Sequence[Prompt], fleet: Fleet) -> Sequence[Pair | Local | Hold]:
        return [self.routing.route(waiting[0], fleet)]


def baseline_dispatch(name: Baseline | str, *, threshold_tokens: int = 512) -> Callable[[], DispatchPolicy]:
    """A factory for a baseline by its name; see `policy.baselines`."""
    return lambda: Immediate(baseline(name, threshold_tokens=threshold_tokens))


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolView:
    """One pool as a planner sees it."""

    replicas: int
    """Last asked for."""
    ready: int
    starting: int
    draining: int
    running_requests: int = 0
    queued_prefill_tokens: int = 0
    kv_used_tokens: int = 0
    headroom_tokens_per_second: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedRequest:
    """What a planner may learn from one request that ended."""

    class_name: str
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    succeeded: bool
    ttft_seconds: float
    tpot_seconds: float
    ttft_met: bool
    itl_met: bool
    deflected: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What happened since the planner was asked before, and how things stand."""

    now_seconds: float
    window_seconds: float
    arrived_input_tokens: Sequence[int]
    """Prompt lengths of the requests that came, in order."""
    ended: Sequence[EndedRequest]
    output_tokens: int
    """Generated since then."""
    waiting_requests: int
    waiting_tokens: int
    prefill: PoolView
    decode: PoolView
    cold_starts_seconds: Sequence[float]
    """Those that ended since then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replicas:
    """What a planner asks for, and why."""

    prefill: int
    decode: int
    reason: str = ""


class Planner(Protocol):
    """Sizes both pools; may remember. The operator's planner is fitted to this by `duet_operator`."""

    def plan(self, observation: Observation) -> Replicas: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One fleet under one policy. `decode` holds the unified workers of a scenario without separate pools."""

    decode: Pool
    prefill: Pool | None = None
    objective: Objective
    class_objectives: Mapping[str, Objective] = field(default_factory=dict)
    """Of classes that were promised something else."""
    rule: DeflectionRule
    """Decode workers cut deflected prompts by its budget and candidates; the gateway's policy routes by it too."""
    split_rule: SplitRule | None = None
    """`LocalPrefill.SPLIT`; by default the rule's budget, with the scenario's SM curve believed."""
    dispatch: Callable[[], DispatchPolicy] | None = None
    """By default the live gateway's `policy.queueing`, with the rule."""
    gate_weights: Mapping[str, int] | None = None
    """Weights of classes for the gate; None: there is none, or only another dispatch's."""
    printed_gate: bool = False
    """Gate-and-Route's as its paper prints it, always on."""
    planner: Callable[[], Planner] | None = None
    planner_interval_seconds: float = 5.0
    planner_data_age_seconds: float = 0.0
    """How old what a planner sees is."""
    network: Network = field(default_factory=Network)
    noise: StepNoise = field(default_factory=StepNoise)
    gateway: GatewayLimits = field(default_factory=GatewayLimits)
    deaths: tuple[WorkerDeath, ...] = ()
    seed: int = 0
    warm_up_seconds: float = 0.0
    """Requests that arrive earlier aren't judged."""

    def __post_init__(self) -> None:
        if self.prefill is not None and self.prefill.role is not Role.PREFILL:
            raise ValueError(f"prefill: must be a pool of prefill workers, got {self.prefill.role}")
        if self.decode.role is Role.PREFILL:
            raise ValueError("decode: must be a pool of decode or unified workers")
        if self.prefill is None and self.decode.local_prefill is None:
            raise ValueError("prefill: without it the decode workers must compute prompts (decode.local_prefill)")

    def objective_of(self, class_name: str) -> Objective:
        """What this class of requests was promised."""
        return self.class_objectives.get(class_name, self.objective)

    @property
    def splitting(self) -> SplitRule:
        """The rule by which steps are split."""
        return self.split_rule or SplitRule(step_budget_seconds=self.rule.step_budget_seconds, believe_assumed=True)
