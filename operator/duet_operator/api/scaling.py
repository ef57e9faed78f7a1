"""How pools are resized: control loop, roll-outs and drain."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from duet_operator.api.base import ATOMIC, ApiModel, NotSupportedYet, Rule


class ScaleDownSpec(ApiModel):
    """How pools shrink."""

    stabilization_seconds: int = Field(default=180, ge=0, le=3600)
    """How long a lower number must have been enough before a pool shrinks, in seconds. Default 180. A shorter one
    saves GPU-hours and risks a cold start when load returns; 0 shrinks at once. Live."""
    victims: Literal["Pack", "Spread"] = "Pack"
    """Which worker leaves, where several could. Default Pack: the one that empties a node soonest. Spread: the one
    on the node with most workers. Live."""


class ScheduleEntry(ApiModel):
    """A time of day at which pools must not be smaller."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            expression="has(self.prefillMin) || has(self.decodeMin)",
            message="{path} needs prefillMin or decodeMin; set one",
            reason="FieldValueRequired",
        ),
    )

    cron: Annotated[
        str,
        Field(
            max_length=128,
            pattern=r"^[0-9*/,-]+ [0-9*/,-]+ [0-9*/,-]+ [0-9A-Za-z*/,-]+ [0-9A-Za-z*/,-]+$",
        ),
    ]
    """When it begins: minute, hour, day of month, month and day of week, as in a CronJob. Required."""
    time_zone: Annotated[
        str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+){0,2}$")
    ]
    """Time zone of cron by its IANA name, such as Europe/Berlin. Required."""
    duration_seconds: int = Field(ge=60, le=604_800)
    """How long it lasts, in seconds. Required."""
    prefill_min: int | None = Field(default=None, ge=0, le=1000)
    """Fewest prefill workers meanwhile. Default: pools.prefill.minReplicas."""
    decode_min: int | None = Field(default=None, ge=0, le=1000)
    """Fewest decode workers meanwhile. Default: pools.decode.minReplicas."""


class ScalingSpec(ApiModel):
    """How the numbers of workers are decided. All of it is live."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            expression=(
                "self.scaleDown.stabilizationSeconds == 0"
                " || self.scaleDown.stabilizationSeconds >= self.intervalSeconds"
            ),
            message=(
                "{path}.scaleDown.stabilizationSeconds must be 0 or at least {path}.intervalSeconds;"
                " raise it or shorten the interval"
            ),
            field=".scaleDown.stabilizationSeconds",
        ),
    )

    mode: Literal["Auto", "Recommend", "Manual"] = "Auto"
    """Who sets the numbers of workers. Default Auto: Duet. Recommend: Duet decides and reports, and changes nothing.
    Manual: pools.prefill.replicas and pools.decode.replicas. A change of mode changes no number by itself. Live."""
    interval_seconds: int = Field(default=5, ge=1, le=300)
    """Time between two passes of the control loop, in seconds. Default 5. A longer one reacts later and costs less.
    Live."""
    max_gpus: int | None = Field(default=None, alias="maxGPUs", ge=1, le=100_000)
    """Most GPUs that both pools may have together, surge included; a MIG slice or an MPS share counts as one.
    Default: no budget. Live."""
    scale_down: ScaleDownSpec = ScaleDownSpec()
    """How pools shrink. Default: after 180 seconds."""
    idle_seconds: int = Field(default=600, ge=10, le=604_800)
    """How long without a request before decode goes to 0, in seconds; only with pools.decode.minReplicas 0. Default
    600. Live."""
    pending_deadline_seconds: int = Field(default=900, ge=10, le=86_400)
    """How long a pod may be unready (unschedulable, refused by a quota, crash-looping, still loading) before it counts
    as lost, in seconds. Default 900. After it CapacityPending says so, no more of the same are asked for, and those
    that found no place are taken back and asked for again later. Live."""
    spare_replicas: int = Field(default=0, ge=0, le=100)
    """Ready workers that each pool keeps beyond what the load needs of it, against bursts and losses that a cold start
    is too slow for. Default 0. Workers of minReplicas that the load doesn't need count; maxReplicas and maxGPUs go
    before; a prefill pool that the load needs nothing of keeps none, because spare decode workers take prompts too.
    Live."""
    cold_start_seconds: int = Field(default=120, ge=1, le=7200)
    """First guess of the time from a new pod to a ready worker, in seconds. Default 120. Decides how far ahead
    demand is forecast; replaced by the measured time of the object's own pods. Live."""
    schedule: NotSupportedYet[tuple[ScheduleEntry, ...]] = Field(default=(), max_length=32, json_schema_extra=ATOMIC)
    """Times at which pools must not be smaller. Default: none. Live."""


class RolloutSpec(ApiModel):
    """How a new pod template replaces the old one. All of it is live."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            expression="self.maxSurge + self.maxUnavailable >= 1",
            message="{path}.maxUnavailable must be 1 or more when {path}.maxSurge is 0; raise one of them",
            field=".maxUnavailable",
        ),
    )

    max_surge: int = Field(default=0, ge=0, le=100)
    """Workers of a pool that may exist beyond its number during a roll-out. Default 0, because GPUs are rarely free.
    They count against scaling.maxGPUs. Live."""
    max_unavailable: int = Field(default=1, ge=0, le=100)
    """Workers of a pool that may be missing during a roll-out. Default 1. A pool with one ready worker surges by one
    within the budget instead, and holds where it can't. Live."""


class DrainSpec(ApiModel):
    """How a worker leaves without losing a request."""

    timeout_seconds: int = Field(default=600, ge=1, le=86_400)
    """How long a worker may finish its requests, in seconds. Default 600. Also sets the pods' grace period (45
    seconds more), so a change rolls pods."""
    on_timeout: Literal["Keep", "Terminate"] = "Keep"
    """What happens to a worker that still has requests then. Default Keep: it serves on, and another one is chosen.
    Terminate: it leaves, and its requests fail. Live."""
