"""What the operator reports of a DuetDeployment.

Invariant: everything here can be absent, because the operator may not have seen it yet; an absent number is unknown,
never zero. Only `summary` is made for people's eyes.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from duet_operator.api.base import ATOMIC, ApiModel, ObjectName, Quantities, Time, list_map

Message = Annotated[str, Field(max_length=32_768)]
ReasonWord = Annotated[str, Field(max_length=128, pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")]
ConditionStatus = Literal["True", "False", "Unknown"]
ConditionType = Literal[
    "Accepted",
    "Ready",
    "Progressing",
    "Reconciling",
    "Stalled",
    "ScalingActive",
    "ScalingLimited",
    "SLOMet",
    "SignalsFresh",
    "CapacityPending",
    "GatewaySaturated",
]
Count = Annotated[int, Field(ge=0)]


class Condition(ApiModel):
    """One aspect of the object's state, as kstatus and `kubectl wait` read it."""

    type: Annotated[str, Field(max_length=316, pattern=r"^[A-Za-z]([-A-Za-z0-9_.]*[A-Za-z0-9])?$")]
    """Aspect: Accepted, Ready, Progressing, Reconciling, Stalled, ScalingActive, ScalingLimited, SLOMet,
    SignalsFresh, CapacityPending or GatewaySaturated."""
    status: ConditionStatus
    """Whether it holds: True, False or Unknown."""
    reason: ReasonWord
    """One word for programs, from the documented list."""
    message: Message = ""
    """One sentence for people, with its numbers."""
    last_transition_time: Time
    """When status last changed."""
    observed_generation: Count | None = None
    """Generation of the object that this is about; an older one than metadata.generation is out of date."""


class PoolStatus(ApiModel):
    """Workers of one pool, by state."""

    replicas: Count | None = None
    """Workers that were last asked for."""
    ready: Count | None = None
    """Workers that take requests."""
    starting: Count | None = None
    """Workers on their way to ready."""
    draining: Count | None = None
    """Workers that finish their requests and leave."""
    replacing: Count | None = None
    """Workers that wait for the GPU of their own predecessor."""
    desired: Count | None = None
    """Workers that the last decision wants, guards applied."""
    recommended: Count | None = None
    """Workers that the last decision would want without guards, or in Recommend mode."""


class SloStatus(ApiModel):
    """How well the objectives were met."""

    ttft_p95_milliseconds: Count | None = None
    """95th percentile of TTFT over the last minutes, in milliseconds."""
    itl_p95_milliseconds: Count | None = None
    """95th percentile of ITL over the last minutes, in milliseconds."""
    attainment_basis_points: Annotated[int, Field(ge=0, le=10_000)] | None = None
    """Share of requests that met all their objectives over the last minutes, in hundredths of a percent."""
    burn_rate_5m_milli: Annotated[Count | None, Field(alias="burnRate5mMilli")] = None
    """How fast the error budget burns over 5 minutes, in thousandths: 1000 uses it up exactly."""
    burn_rate_1h_milli: Annotated[Count | None, Field(alias="burnRate1hMilli")] = None
    """How fast the error budget burns over an hour, in thousandths: 1000 uses it up exactly."""


class SummaryStatus(ApiModel):
    """Short texts for the columns of `kubectl get`."""

    prefill: Annotated[str, Field(max_length=32)] | None = None
    """Prefill workers, ready/desired."""
    decode: Annotated[str, Field(max_length=32)] | None = None
    """Decode workers, ready/desired."""
    attainment: Annotated[str, Field(max_length=32)] | None = None
    """Share of requests that met all their objectives."""
    deflected: Annotated[str, Field(max_length=32)] | None = None
    """Share of prompts that decode workers prefilled."""


class TrafficStatus(ApiModel):
    """What clients asked for."""

    requests_per_second_milli: Count | None = None
    """Arrivals, in thousandths of a request per second."""
    input_tokens_per_second: Count | None = None
    """Prompt tokens per second, cached ones included."""
    output_tokens_per_second: Count | None = None
    """Output tokens per second."""
    deflected_basis_points: Annotated[int, Field(ge=0, le=10_000)] | None = None
    """Share of prompts that decode workers prefilled, in hundredths of a percent."""


class DecisionStatus(ApiModel):
    """The last decision of the planner."""

    time: Time
    """When it was made."""
    reason: ReasonWord
    """What bound it, in one word."""
    message: Message = ""
    """What it is and why, in one sentence with its numbers."""
    limited_by: tuple[ReasonWord, ...] | None = Field(default=None, max_length=16, json_schema_extra=ATOMIC)
    """Guards that kept it from what demand needs, such as MaxReplicas or GPUBudget."""
    inputs: Quantities | None = None
    """Measurements that it was made from; names end with the unit."""
    capacity_per_replica: Quantities | None = None
    """What one worker of each pool holds at the objectives; names end with the unit."""
    capacity_basis: Literal["measured", "kernel-composed", "data-sheet", "assumed"] | None = None
    """What these capacities rest on: the weakest of the step times in them, deflected chunks included."""
    forecast: Quantities | None = None
    """Demand that is expected at the end of a cold start; names end with the unit."""


class ScaleAction(ApiModel):
    """One change of a pool's number of workers."""

    time: Time
    """When the number was changed."""
    pool: Literal["prefill", "decode", "gateway"]
    """Which pool."""
    from_replicas: Count
    """Number before."""
    to_replicas: Count
    """Number after."""
    reason: ReasonWord
    """Why, in one word."""
    message: Message = ""
    """Why, in one sentence."""


class ResolvedStatus(ApiModel):
    """Pod-template values that the operator derived, kept so that an upgrade of the operator rolls nothing."""

    operator_version: Annotated[str, Field(max_length=64)] | None = None
    """Version of the operator that derived them."""
    engine_image: Annotated[str, Field(max_length=512)] | None = None
    """Engine image in use where spec.engine.image is absent."""
    gateway_image: Annotated[str, Field(max_length=512)] | None = None
    """Gateway image in use."""
    image_pull_secrets: Annotated[tuple[ObjectName, ...], Field(max_length=16, json_schema_extra=ATOMIC)] | None = None
    """Secrets with which images are pulled."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    """When nodes pull images."""
    upgrade: Annotated[str, Field(max_length=1024)] | None = None
    """Value of the annotation duetserve.io/upgrade that was last carried out."""


class DuetStatus(ApiModel):
    """What the operator last saw and decided."""

    observed_generation: Count | None = None
    """Generation of spec that this status is about."""
    conditions: tuple[Condition, ...] = Field(default=(), max_length=32, json_schema_extra=list_map("type"))
    """State by aspect."""
    resolved: ResolvedStatus | None = None
    """Pod-template values that the operator derived and keeps."""
    prefill: PoolStatus | None = None
    """Prefill workers by state."""
    decode: PoolStatus | None = None
    """Decode workers by state."""
    slo: SloStatus | None = None
    """How well the objectives were met."""
    summary: SummaryStatus | None = None
    """Short texts for the columns of kubectl get."""
    traffic: TrafficStatus | None = None
    """What clients asked for."""
    decision: DecisionStatus | None = None
    """The last decision and its reason."""
    history: tuple[ScaleAction, ...] = Field(default=(), max_length=20, json_schema_extra=ATOMIC)
    """The last 20 changes of numbers, newest last."""

    def condition(self, type_: ConditionType) -> Condition | None:
        """The condition of that type, if the operator has reported it."""
        return next((condition for condition in self.conditions if condition.type == type_), None)
