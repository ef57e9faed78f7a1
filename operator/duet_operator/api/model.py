"""What is served and how well: the model, its objectives, and the engine that runs it."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from duet_operator.api.base import (
    ATOMIC,
    ApiModel,
    DnsLabel,
    ObjectName,
    PatchObject,
    Rule,
    list_map,
)

RESERVED_ENVIRONMENT = (
    "DUET_CONTEXT_LENGTH",
    "DUET_DRAIN_TIMEOUT_SECONDS",
    "DUET_ITL_MILLISECONDS",
    "DUET_LOCAL_TOKEN_FILE",
    "DUET_MODEL_ID",
    "DUET_MODEL_PATH",
    "DUET_MODEL_REVISION",
    "DUET_REVISION",
    "DUET_ROLE",
    "DUET_SERVED_NAME",
    "DUET_TENSOR_PARALLEL_SIZE",
    "DUET_TRANSFER_BACKEND",
    "DUET_TRUST_FILE",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "HF_TOKEN",
    "POD_IP",
    "POD_NAME",
    "POD_NAMESPACE",
)
"""Variables that the operator sets in engine containers, so `engine.env` may not."""

ModelName = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\s-]\S*$")]


class SecretKey(ApiModel):
    """One key of a Secret in the same namespace."""

    name: ObjectName
    """Name of the Secret."""
    key: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")] = "token"
    """Key in the Secret. Default token."""


Directory = Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^[^/\s][^\s]*$")]


def _stays_inside(whole: str) -> Rule:
    return Rule(
        expression="!has(self.path) || !self.path.split('/').exists(part, part == '..')",
        message=f"{{path}}.path must stay inside the {whole}; remove each ..",
        field=".path",
    )


class HuggingFaceSource(ApiModel):
    """Weights from the Hugging Face hub."""

    token_secret_ref: SecretKey | None = None
    """Secret with the access token of a gated or private model. Given to engine pods only; the operator never reads
    it. Default: no token. A token changed inside the Secret counts for pods that start after it."""
    cache_claim_name: ObjectName | None = None
    """PersistentVolumeClaim in the same namespace, mounted writable, in which engine pods keep what they downloaded;
    it must allow all of them at once (ReadWriteMany). Default: each pod downloads for itself."""


class VolumeSource(ApiModel):
    """Weights on a volume."""

    rules: ClassVar[tuple[Rule, ...]] = (_stays_inside("volume"),)

    claim_name: ObjectName
    """PersistentVolumeClaim in the same namespace, mounted read-only; it must allow all engine pods at once
    (ReadOnlyMany or ReadWriteMany). Required."""
    path: Directory | None = None
    """Directory of the model inside the volume. Default: the volume's root."""


class ImageSource(ApiModel):
    """Weights in a container image or OCI artifact, mounted read-only as an image volume (Kubernetes 1.35 and newer;
    1.33 and 1.34 with the feature gate ImageVolume)."""

    rules: ClassVar[tuple[Rule, ...]] = (_stays_inside("image"),)

    reference: Annotated[str, Field(min_length=1, max_length=512, pattern=r"^\S+$")]
    """Image that holds the model. Pulled with the pods' own pull secrets. Required."""
    path: Directory | None = None
    """Directory of the model inside the image. Default: the image's root."""
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """When a node pulls the image. Default IfNotPresent."""


class ModelSource(ApiModel):
    """Where engine pods get the weights: exactly one of the fields."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            expression=(
                "(has(self.huggingFace) ? 1 : 0) + (has(self.persistentVolumeClaim) ? 1 : 0)"
                " + (has(self.image) ? 1 : 0) == 1"
            ),
            message="{path} needs exactly one of huggingFace, persistentVolumeClaim and image; remove or add one",
        ),
    )

    hugging_face: HuggingFaceSource | None = None
    """Weights from the Hugging Face hub, with an access token or a shared cache."""
    persistent_volume_claim: VolumeSource | None = None
    """Weights on a volume: the quickest cold start where the storage is fast."""
    image: ImageSource | None = None
    """Weights in a container image, which nodes cache."""


class ModelSpec(ApiModel):
    """Which model is served."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            expression="!has(self.revision) || !has(self.source) || has(self.source.huggingFace)",
            message=(
                "{path}.revision is one of the Hugging Face hub, which {path}.source doesn't use;"
                " remove revision or take the weights from the hub"
            ),
            field=".revision",
        ),
        Rule(
            expression=(
                "!self.id.startsWith('/')"
                " || !has(self.revision) && (!has(self.source) || !has(self.source.huggingFace))"
            ),
            message=(
                "{path}.id is a path inside the engine's container, so nothing comes from the Hugging Face hub;"
                " remove {path}.revision and {path}.source.huggingFace or name a model of the hub"
            ),
            field=".id",
        ),
    )

    id: ModelName
    """Model to serve: a Hugging Face id or a path inside the engine's container. Required. Also the key under which
    its shape is looked up until a first engine reports it; with weights on a volume or in an image that is all it
    is. A change rolls pods."""
    served_name: ModelName | None = None
    """Model name in the OpenAI API. Default: the id. A change rolls pods."""
    context_length: int | None = Field(default=None, ge=1, le=16_777_216)
    """Longest prompt plus output that engines accept, in tokens. Default: the model's own. A smaller one leaves more
    KV cache for other requests. A change rolls pods."""
    revision: Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\s-]\S*$")] | None = None
    """Branch, tag or commit of the model on the Hugging Face hub. Default: its main branch, which may move under a
    restart: name a commit so that all workers serve the same weights. A change rolls pods."""
    source: ModelSource | None = None
    """Where engine pods get the weights. Default: the Hugging Face hub without a token, or the engine's own image where
    the id is a path. A change rolls pods."""

    @property
    def public_name(self) -> str:
        """The name that clients ask for."""
        return self.served_name or self.id


class RequestClass(ApiModel):
    """Requests with objectives of their own."""

    name: DnsLabel
    """Name of the class, unique in the list; the keys of gateway.apiKeys refer to it. Keys that name none are in class
    default, which has slo's objectives and weight 1 unless it is in the list. Required."""
    ttft_milliseconds: int | None = Field(default=None, ge=1, le=600_000)
    """TTFT objective of this class, in milliseconds. Default: slo.ttftMilliseconds. Live."""
    itl_milliseconds: int | None = Field(default=None, ge=1, le=60_000)
    """ITL objective of this class, in milliseconds. Default: slo.itlMilliseconds. Live."""
    weight: int = Field(ge=1, le=1000)
    """Worth of a token of this class against one of the others. Required. When demand exceeds capacity the lowest
    weight waits first and is refused first. Live."""


class SloSpec(ApiModel):
    """What is promised for each request."""

    ttft_milliseconds: int = Field(ge=1, le=600_000)
    """TTFT objective, in milliseconds from arrival at the gateway to the first token out. Required. A smaller one
    costs GPUs for prefill. Live."""
    ttft_unloaded_percent: int | None = Field(default=None, ge=100, le=10_000)
    """Objective of long prompts, in percent of the time that the prompt takes on an idle worker: the TTFT objective
    of a request is ttftMilliseconds or this share, whichever is longer. Default: none, so a prompt that takes longer
    than ttftMilliseconds by itself always misses. Live."""
    itl_milliseconds: int = Field(ge=1, le=60_000)
    """ITL objective, in milliseconds between two output tokens. Required. Also the limit for prompts that are
    prefilled beside running requests. A smaller one costs GPUs for decode. Live."""
    attainment_basis_points: int = Field(default=9900, ge=5000, le=9999)
    """Share of requests that must meet all their objectives, in hundredths of a percent. Default 9900 (99 %). 10000
    would leave no error budget, so 9999 is the most. Live."""
    classes: tuple[RequestClass, ...] = Field(default=(), max_length=16, json_schema_extra=list_map("name"))
    """Classes of requests with objectives of their own, bound to API keys; a header may only choose a class of lower
    weight. Workers are sized for the strictest objectives among the classes that are in use. Default: one class for
    all. Live."""


class EnvironmentVariable(ApiModel):
    """A variable of the engine's container."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            expression="!(has(self.value) && has(self.valueFrom))",
            message="{path} may have value or valueFrom, not both; remove one",
            field=".valueFrom",
        ),
        Rule(
            expression=f"!(self.name in [{', '.join(repr(name) for name in RESERVED_ENVIRONMENT)}])",
            message="{path}.name is a variable that the operator sets itself; change the field of spec it stands for",
            field=".name",
            reason="FieldValueForbidden",
        ),
    )

    name: Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[-._a-zA-Z][-._a-zA-Z0-9]*$")]
    """Name of the variable, unique in the list. Required."""
    value: Annotated[str, Field(max_length=32_768)] | None = None
    """Value of the variable. Default: empty."""
    value_from: PatchObject | None = None
    """Source of the value (secretKeyRef, configMapKeyRef, fieldRef), as in any container."""


class EngineSpec(ApiModel):
    """How SGLang runs in both pools."""

    image: Annotated[str, Field(min_length=1, max_length=512, pattern=r"^\S+$")] | None = None
    """Container image of the engine. Default: the one that the operator is set up with. A change rolls pods."""
    args: tuple[Annotated[str, Field(max_length=4096)], ...] = Field(
        default=(), max_length=256, json_schema_extra=ATOMIC
    )
    """Further SGLang arguments, after those that the engine's launcher sets itself; it refuses to start with one that
    contradicts them. Default: none. A change rolls pods."""
    env: tuple[EnvironmentVariable, ...] = Field(default=(), max_length=256, json_schema_extra=list_map("name"))
    """Further environment variables of the engine's container. Default: none. A change rolls pods."""
    tensor_parallel_size: int = Field(default=1, ge=1, le=64)
    """GPUs of one replica, over which SGLang splits the model. Default 1. A pool may have its own. A change rolls
    pods."""
    transfer_backend: Literal["mooncake", "nixl", "mooncake_tcp"] = "mooncake"
    """How KV caches travel from prefill to decode workers. Default mooncake (RDMA); mooncake_tcp needs no RDMA and is
    slower. Both pools use the same. A change rolls pods."""
    template: PatchObject | None = None
    """Strategic merge patch for the pod template of both pools (a PodTemplateSpec; the engine's container is named
    engine). Default: none. A pool's own template is applied after it. A change rolls pods."""
