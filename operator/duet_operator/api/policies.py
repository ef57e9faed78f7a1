"""Where prefill work runs: deflection, SM multiplexing and routing."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from duet_operator.api.base import ApiModel


class DeflectionSpec(ApiModel):
    """Prefill on decode workers. All of it is live."""

    mode: Literal["Auto", "Paper", "Off"] = "Auto"
    """When a prompt is prefilled on a decode worker. Default Auto: only when the prefill path endangers its TTFT
    objective and the decode path is sooner. Paper: by the rule of Kairos, for comparison. Off: never;
    prefill.minReplicas must be 1 or more then. Quote "Off": a bare Off is a boolean in YAML. Live."""
    alpha_percent: int = Field(default=130, ge=100, le=1000)
    """How long the decode path may be predicted to take with mode Paper, in percent of the prefill path. Default 130:
    1.3 times as long. A larger one deflects more. Live."""
    beta_percent: Annotated[int, Field(ge=1, le=100)] | None = None
    """Part of the ITL objective that a step with a deflected chunk may take by the model, in percent. Default 85. A
    smaller one protects running requests more. Live."""


class MultiplexingSpec(ApiModel):
    """Prefill and decode at once on disjoint SMs of one GPU. All of it is live."""

    mode: Literal["Auto", "On", "Off"] = "Auto"
    """Whether a worker may split its SMs between prefill and decode. Default Auto: where the self-test at start
    passed on this GPU. On: a worker whose self-test fails stays unready. Off: mixed batches only. Quote "On" and
    "Off": bare they are booleans in YAML. Live."""
    max_look_ahead: int = Field(default=8, ge=1, le=64)
    """Most decode steps inside one prefill step. Default 8. More saves launches and delays new requests. Live."""


class RoutingSpec(ApiModel):
    """How the gateway chooses workers."""

    policy: Literal["Auto", "GateAndRoute", "LeastTTFT", "RoundRobin"] = "Auto"
    """How the gateway chooses among workers. Default Auto: the least predicted TTFT, and a gate that serves the highest
    weights first when demand exceeds capacity. LeastTTFT: the same without a gate. GateAndRoute: always with the gate
    as its paper prints it. RoundRobin: each worker in turn. The others than Auto are for comparison. Live."""
