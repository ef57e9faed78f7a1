"""The two pools of workers and the GPUs under them."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from duet_operator.api.base import ApiModel, NotSupportedYet, ObjectName, PatchObject, Rule, not_supported_yet

DEFAULT_GPU_RESOURCE = "nvidia.com/gpu"

Quantity = Annotated[str, Field(max_length=32, pattern=r"^[1-9][0-9]*(Ki|Mi|Gi|Ti|k|M|G|T)?$")]


class GpuSpec(ApiModel):
    """What one GPU of a pool is: whole, a MIG slice or an MPS share. Replicas, prices and budgets count these."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            expression=(
                "self.sharing != 'MIG' || has(self.migProfile) || has(self.resourceName) || has(self.claimTemplate)"
            ),
            message="{path}.migProfile is required with sharing MIG; set it, or resourceName or claimTemplate",
            field=".migProfile",
            reason="FieldValueRequired",
        ),
        Rule(
            expression="self.sharing == 'MIG' || !has(self.migProfile)",
            message="{path}.migProfile needs sharing MIG; set sharing to MIG or remove migProfile",
            field=".migProfile",
        ),
        Rule(
            expression="self.sharing != 'MPS' || has(self.mpsPercent)",
            message="{path}.mpsPercent is required with sharing MPS; set the share of the SMs",
            field=".mpsPercent",
            reason="FieldValueRequired",
        ),
        Rule(
            expression="self.sharing == 'MPS' || !has(self.mpsPercent)",
            message="{path}.mpsPercent needs sharing MPS; set sharing to MPS or remove mpsPercent",
            field=".mpsPercent",
        ),
        Rule(
            expression="self.sharing == 'MPS' || !has(self.mpsMemory)",
            message="{path}.mpsMemory needs sharing MPS; set sharing to MPS or remove mpsMemory",
            field=".mpsMemory",
        ),
        Rule(
            expression="!(has(self.resourceName) && has(self.claimTemplate))",
            message="{path} may have resourceName or claimTemplate, not both; remove one",
            field=".claimTemplate",
        ),
    )

    type: NotSupportedYet[
        Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$")] | None
    ] = None
    """GPU model, such as H100, for predictions before a first engine reports its own. Default: unknown until then. A
    change rolls pods."""
    sharing: Annotated[
        Literal["None", "MIG", "MPS"],
        not_supported_yet({"MIG": "None with resourceName", "MPS": "None"}),
    ] = "None"
    """How a physical GPU is shared. Default None: whole GPUs. MIG: hard slices, laid out by the cluster's operator.
    MPS: processes share one GPU without memory isolation. A change rolls pods."""
    mig_profile: NotSupportedYet[
        Annotated[str, Field(max_length=32, pattern=r"^([1-7]c\.)?[1-7]g\.[1-9][0-9]{0,2}gb([+.-][a-z.]+)?$")] | None
    ] = None
    """MIG slice that a worker runs on, such as 3g.40gb; only with sharing MIG. Default: none. Sets the resource name.
    A change rolls pods."""
    mps_percent: NotSupportedYet[Annotated[int, Field(ge=1, le=100)] | None] = None
    """Share of the SMs that a worker may use, in percent; required with sharing MPS and only there. Default: none. A
    change rolls pods."""
    mps_memory: NotSupportedYet[Quantity | None] = None
    """GPU memory that a worker may pin, such as 20Gi; only with sharing MPS. Default: the device plugin's equal
    share. A change rolls pods."""
    resource_name: (
        Annotated[
            str,
            Field(
                max_length=317,
                pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$",
            ),
        ]
        | None
    ) = None
    """Extended resource that engine pods request, such as nvidia.com/mig-3g.40gb. Default nvidia.com/gpu. A change
    rolls pods."""
    claim_template: NotSupportedYet[ObjectName | None] = None
    """ResourceClaimTemplate (dynamic resource allocation) that engine pods claim in place of an extended resource.
    Default: none. A change rolls pods."""
    price_per_hour_milli: NotSupportedYet[Annotated[int, Field(ge=0, le=1_000_000_000)] | None] = None
    """Price of one GPU of this pool per hour, in thousandths of a currency unit of your choice, the same for both
    pools. Default: none, and all GPUs count alike. Live."""

    @property
    def effective_resource_name(self) -> str:
        """The extended resource that engine pods request."""
        return self.resource_name or DEFAULT_GPU_RESOURCE


class PoolSpec(ApiModel):
    """One pool of workers."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            expression="self.minReplicas <= self.maxReplicas",
            message="{path}.minReplicas must not exceed {path}.maxReplicas; lower minReplicas or raise maxReplicas",
            field=".minReplicas",
        ),
        Rule(
            expression="!has(self.replicas) || self.minReplicas <= self.replicas && self.replicas <= self.maxReplicas",
            message="{path}.replicas must lie between {path}.minReplicas and maxReplicas; change it or the bounds",
            field=".replicas",
        ),
    )

    min_replicas: int = Field(default=0, ge=0, le=1000)
    """Fewest workers."""
    max_replicas: int = Field(default=8, ge=0, le=1000)
    """Most workers. Default 8. Those that a roll-out or a move to another node adds for a while come on top. Demand
    beyond it waits, and ScalingLimited says so. Live."""
    replicas: int | None = Field(default=None, ge=0, le=1000)
    """Workers to hold, with scaling.mode Manual only. Default: the present number. Live."""
    gpu: GpuSpec = GpuSpec()
    """GPU under each worker. Default: whole GPUs by nvidia.com/gpu. A change rolls the pool's pods."""
    tensor_parallel_size: int | None = Field(default=None, ge=1, le=64)
    """GPUs of one replica of this pool. Default: engine.tensorParallelSize. Pools of different size work only for
    models whose KV cache SGLang can re-shard. A change rolls the pool's pods."""
    template: PatchObject | None = None
    """Strategic merge patch for this pool's pod template, applied after engine.template. Default: none. A change
    rolls the pool's pods."""


class PrefillPoolSpec(PoolSpec):
    """The pool that only prefills."""

    min_replicas: int = Field(default=0, ge=0, le=1000)
    """Fewest prefill workers. Default 0: when it's cheaper, decode workers take all prompts. At least 1 where they
    can't, which is with deflection Off or without the gateway. Live."""
    max_replicas: int = Field(default=8, ge=0, le=1000)
    """Most prefill workers. Default 8. Those that a roll-out or a move to another node adds for a while come on
    top. With 0 decode workers take all prompts, always. Live."""


class DecodePoolSpec(PoolSpec):
    """The pool that decodes, and prefills what is deflected to it."""

    min_replicas: int = Field(default=1, ge=0, le=1000)
    """Fewest decode workers. Default 1. 0: scale to zero after scaling.idleSeconds without a request; the next one
    waits at the gateway for a cold start. Live."""
    max_replicas: int = Field(default=8, ge=1, le=1000)
    """Most decode workers. Default 8. Those that a roll-out or a move to another node adds for a while come on
    top. Demand beyond it waits, and ScalingLimited says so. Live."""


class PoolsSpec(ApiModel):
    """The two pools."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            expression="has(self.prefill.gpu.pricePerHourMilli) == has(self.decode.gpu.pricePerHourMilli)",
            message=(
                "{path}.prefill.gpu.pricePerHourMilli and {path}.decode.gpu.pricePerHourMilli belong together;"
                " set both or remove both"
            ),
            field=".prefill.gpu.pricePerHourMilli",
        ),
    )

    prefill: PrefillPoolSpec = PrefillPoolSpec()
    """Workers that only prefill. Default: 0 to 8 workers."""
    decode: DecodePoolSpec = DecodePoolSpec()
    """Workers that decode, and prefill what is deflected to them. Default: 1 to 8 workers."""
