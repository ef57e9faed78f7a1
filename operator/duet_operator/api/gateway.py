"""The gateway in front of the pools, and further sources of signals."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from duet_operator.api.base import ApiModel, DnsLabel, ObjectName, PatchObject, Rule


class ServiceSpec(ApiModel):
    """The Service in front of the gateway."""

    type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    """Type of the Service. Default ClusterIP: reachable inside the cluster. Live."""
    annotations: dict[str, Annotated[str, Field(max_length=4096)]] = Field(default_factory=dict, max_length=64)
    """Annotations of the Service, for load balancers and DNS. Default: none. Live."""


class SecretName(ApiModel):
    """A Secret in the same namespace."""

    secret_name: ObjectName
    """Name of the Secret, mounted into gateway pods and reloaded on change; the operator never reads it. Required."""


class HoldSpec(ApiModel):
    """How requests wait at the gateway."""

    max_requests: int = Field(default=1000, ge=1, le=1_000_000)
    """Most requests that wait at one gateway pod. Default 1000. Beyond it requests get 429 with Retry-After. Live."""
    max_bytes: int = Field(default=268_435_456, ge=1, le=1_099_511_627_776)
    """Most bytes of waiting requests at one gateway pod. Default 268435456 (256 MiB). Live."""
    timeout_seconds: int = Field(default=300, ge=1, le=3600)
    """Longest wait of a request while there is no worker at all, in seconds. Default 300; it should exceed a cold
    start. After it the request gets 503 with Retry-After. Live."""


class GatewaySpec(ApiModel):
    """The gateway that routes requests to workers."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            expression="self.enabled || !has(self.tls)",
            message="{path}.tls needs the gateway; set {path}.enabled to true or remove tls",
            field=".tls",
        ),
        Rule(
            expression="self.enabled || !has(self.apiKeys)",
            message="{path}.apiKeys needs the gateway; set {path}.enabled to true or remove apiKeys",
            field=".apiKeys",
        ),
    )

    enabled: bool = True
    """Whether Duet runs its own gateway. Default true. Without it any router may send requests to the pools, and
    there is no deflection, so prefill.minReplicas must be 1 or more. A change starts or removes gateway pods."""
    replicas: int = Field(default=2, ge=1, le=100)
    """Gateway pods. Default 2. Live."""
    service: ServiceSpec = ServiceSpec()
    """The Service that clients call, named as the object, port 80. Default: ClusterIP. Live."""
    tls: SecretName | None = None
    """Secret of type kubernetes.io/tls, with which the gateway serves HTTPS, at port 443 of the Service. Default:
    plain HTTP at port 80. A change rolls gateway pods; a change inside the Secret is live."""
    api_keys: SecretName | None = None
    """Secret with hashed API keys: each entry holds lines `sha256:HEX [CLASS]`. Default: no keys are asked for. A
    change rolls gateway pods; a change inside the Secret is live."""
    hold: HoldSpec = HoldSpec()
    """How requests wait at the gateway. Default: 1000 requests, 256 MiB, 300 seconds. Live."""
    template: PatchObject | None = None
    """Strategic merge patch for the gateway's pod template (a PodTemplateSpec; the container is named gateway).
    Default: none. A change rolls gateway pods."""


class SignalsSpec(ApiModel):
    """Further sources of signals."""

    prometheus: DnsLabel | None = None
    """Name of a Prometheus endpoint in the operator's settings; never an address, so that objects can't make the
    operator call arbitrary ones. Default: none. Live."""
