"""DuetDeployment, version v1alpha1: the object as the operator reads it.

Invariant: `parse` accepts every object that the API server admits, and names the field of every other one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationError
from pydantic_core import ErrorDetails

from duet_operator.api.base import ApiModel, Rule, Time
from duet_operator.api.gateway import GatewaySpec, HoldSpec, SecretName, ServiceSpec, SignalsSpec
from duet_operator.api.model import (
    EngineSpec,
    EnvironmentVariable,
    HuggingFaceSource,
    ImageSource,
    ModelSource,
    ModelSpec,
    RequestClass,
    SecretKey,
    SloSpec,
    VolumeSource,
)
from duet_operator.api.policies import DeflectionSpec, MultiplexingSpec, RoutingSpec
from duet_operator.api.pools import DecodePoolSpec, GpuSpec, PoolSpec, PoolsSpec, PrefillPoolSpec
from duet_operator.api.scaling import DrainSpec, RolloutSpec, ScaleDownSpec, ScalingSpec, ScheduleEntry
from duet_operator.api.spec import DuetSpec
from duet_operator.api.status import (
    Condition,
    ConditionStatus,
    ConditionType,
    DecisionStatus,
    DuetStatus,
    PoolStatus,
    ResolvedStatus,
    ScaleAction,
    SloStatus,
    SummaryStatus,
    TrafficStatus,
)

__all__ = [
    "API_VERSION",
    "GROUP",
    "KIND",
    "PLURAL",
    "SHORT_NAME",
    "VERSION",
    "ApiModel",
    "Condition",
    "ConditionStatus",
    "ConditionType",
    "DecisionStatus",
    "DecodePoolSpec",
    "DeflectionSpec",
    "DrainSpec",
    "DuetDeployment",
    "DuetSpec",
    "DuetStatus",
    "EngineSpec",
    "EnvironmentVariable",
    "GatewaySpec",
    "GpuSpec",
    "HoldSpec",
    "HuggingFaceSource",
    "ImageSource",
    "InvalidObjectError",
    "ModelSource",
    "ModelSpec",
    "MultiplexingSpec",
    "ObjectMeta",
    "PoolSpec",
    "PoolStatus",
    "PoolsSpec",
    "PrefillPoolSpec",
    "RequestClass",
    "ResolvedStatus",
    "RolloutSpec",
    "RoutingSpec",
    "ScaleAction",
    "ScaleDownSpec",
    "ScalingSpec",
    "ScheduleEntry",
    "SecretKey",
    "SecretName",
    "ServiceSpec",
    "SignalsSpec",
    "SloSpec",
    "SloStatus",
    "SummaryStatus",
    "TrafficStatus",
    "VolumeSource",
    "parse",
]

GROUP = "duetserve.io"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "DuetDeployment"
PLURAL = "duetdeployments"
SHORT_NAME = "duet"
LONGEST_NAME = 63
"""The Service that clients call bears the object's name, and that is the limit of a Service's."""

SHOWN_ERRORS = 5


class InvalidObjectError(ValueError):
    """A manifest that isn't a valid DuetDeployment; the message names the object and each bad field."""


class ObjectMeta(ApiModel):
    """The part of an object's metadata that Duet reads."""

    name: Annotated[str, Field(min_length=1)]
    namespace: str = "default"
    uid: str = ""
    generation: int = 0
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    creation_timestamp: Time | None = None
    deletion_timestamp: Time | None = None


class DuetDeployment(ApiModel):
    """A model served by prefill and decode pools of SGLang that hold latency objectives with the fewest GPUs."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            expression=(
                f"self.metadata.name.size() <= {LONGEST_NAME} && self.metadata.name.matches('^[a-z][-a-z0-9]*$')"
            ),
            message=(
                f"metadata.name must have at most {LONGEST_NAME} characters, begin with a letter and hold only"
                " lower-case letters, digits and -, because the Service that clients call bears it; rename the object"
            ),
        ),
    )

    api_version: Literal["duetserve.io/v1alpha1"] = "duetserve.io/v1alpha1"
    kind: Literal["DuetDeployment"] = "DuetDeployment"
    metadata: ObjectMeta
    spec: DuetSpec
    """What is served, how well, and within which bounds."""
    status: DuetStatus = DuetStatus()
    """What the operator last saw and decided."""


def parse(document: Mapping[str, Any]) -> DuetDeployment:
    """Read an object as the API server or a file gives it; unknown fields are ignored.

    Raises:
        InvalidObjectError: naming the object and each bad field by its path.
    """
    try:
        # JSON mode is strict about types as the API server is, and takes arrays and times in their JSON form
        return DuetDeployment.model_validate_json(json.dumps(dict(document), default=dict), strict=True)
    except ValidationError as error:
        problems = [_problem(detail) for detail in error.errors(include_url=False)]
        shown = "; ".join(problems[:SHOWN_ERRORS])
        more = f"; and {len(problems) - SHOWN_ERRORS} more" if len(problems) > SHOWN_ERRORS else ""
        raise InvalidObjectError(f"{_title(document)}: {shown}{more}") from error


def _title(document: Mapping[str, Any]) -> str:
    metadata = document.get("metadata")
    name = metadata.get("name") if isinstance(metadata, Mapping) else None
    namespace = metadata.get("namespace") if isinstance(metadata, Mapping) else None
    return " ".join(filter(None, (KIND, "/".join(filter(None, (namespace, name))))))


def _problem(detail: ErrorDetails) -> str:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in detail["loc"]).lstrip(".")
    hint = ""
    if detail["type"] == "literal_error" and isinstance(detail["input"], bool):
        hint = " (YAML reads a bare On or Off as a boolean; write it in quotes)"
    return f"{path or 'document'}: {detail['msg']}{hint}"
