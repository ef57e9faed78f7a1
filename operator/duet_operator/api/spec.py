"""What a user asks for: the whole spec, and the rules between its parts.

Invariant: a spec that the API server admits leaves no prompt without a place and no bound that contradicts another.
"""

from __future__ import annotations

from typing import ClassVar

from duet_engine.protocol import Role
from duet_operator.api.base import ApiModel, NotSupportedYet, Rule
from duet_operator.api.gateway import GatewaySpec, SignalsSpec
from duet_operator.api.model import EngineSpec, ModelSpec, SloSpec
from duet_operator.api.policies import DeflectionSpec, MultiplexingSpec, RoutingSpec
from duet_operator.api.pools import PoolSpec, PoolsSpec
from duet_operator.api.scaling import DrainSpec, RolloutSpec, ScalingSpec


def _tensor_parallel_size(pool: str) -> str:
    own = f"self.pools.{pool}.tensorParallelSize"
    return f"(has({own}) ? {own} : self.engine.tensorParallelSize)"


def _least_replicas(pool: str) -> str:
    held = f"self.pools.{pool}.replicas"
    return f"(has({held}) ? {held} : self.pools.{pool}.minReplicas)"


def _scheduled_replicas(pool: str) -> str:
    return f"(has(entry.{pool}Min) ? entry.{pool}Min : self.pools.{pool}.minReplicas)"


def _rules_of_pool(pool: str) -> tuple[Rule, ...]:
    return (
        Rule(
            expression=f"!has(self.pools.{pool}.replicas) || self.scaling.mode == 'Manual'",
            message=(
                f"{{path}}.pools.{pool}.replicas needs {{path}}.scaling.mode Manual; set the mode or remove replicas"
            ),
            field=f".pools.{pool}.replicas",
        ),
        Rule(
            expression=f"self.pools.{pool}.gpu.sharing != 'MIG' || {_tensor_parallel_size(pool)} == 1",
            message=(
                f"{{path}}.pools.{pool}.tensorParallelSize must be 1 with sharing MIG, because slices can't work"
                " as one; set it to 1 or take a larger slice"
            ),
            field=f".pools.{pool}.tensorParallelSize",
        ),
        Rule(
            expression=(
                f"!has(self.scaling.schedule) || self.scaling.schedule.all(entry,"
                f" !has(entry.{pool}Min) || entry.{pool}Min <= self.pools.{pool}.maxReplicas)"
            ),
            message=(
                f"{{path}}.scaling.schedule[].{pool}Min must not exceed {{path}}.pools.{pool}.maxReplicas;"
                " lower it or raise maxReplicas"
            ),
            field=".scaling.schedule",
        ),
    )


class DuetSpec(ApiModel):
    """What is served, how well, and within which bounds."""

    rules: ClassVar[tuple[Rule, ...]] = (
        *_rules_of_pool("prefill"),
        *_rules_of_pool("decode"),
        Rule(
            expression=(
                "self.pools.prefill.minReplicas >= 1 || (self.gateway.enabled && self.deflection.mode != 'Off')"
            ),
            message=(
                "{path}.pools.prefill.minReplicas must be 1 or more when {path}.deflection.mode is Off or"
                " {path}.gateway.enabled is false, because prompts would have no place; raise it"
            ),
            field=".pools.prefill.minReplicas",
        ),
        Rule(
            expression="self.pools.decode.minReplicas >= 1 || self.gateway.enabled",
            message=(
                "{path}.pools.decode.minReplicas must be 1 or more when {path}.gateway.enabled is false, because only"
                " the gateway can hold a request until a worker is there; raise it or enable the gateway"
            ),
            field=".pools.decode.minReplicas",
        ),
        Rule(
            expression=(
                "self.pools.decode.minReplicas >= 1 || !has(self.gateway.hold)"
                " || self.gateway.hold.timeoutSeconds >= self.scaling.coldStartSeconds"
            ),
            message=(
                "{path}.gateway.hold.timeoutSeconds must be at least {path}.scaling.coldStartSeconds when"
                " {path}.pools.decode.minReplicas is 0, because waking requests would time out; raise it"
            ),
            field=".gateway.hold",
        ),
        Rule(
            expression=(
                f"!has(self.scaling.maxGPUs) || {_least_replicas('prefill')} * {_tensor_parallel_size('prefill')}"
                f" + {_least_replicas('decode')} * {_tensor_parallel_size('decode')} <= self.scaling.maxGPUs"
            ),
            message=(
                "{path}.scaling.maxGPUs is less than the pools' least workers need (minReplicas, or replicas where set,"
                " times tensorParallelSize, over both pools); raise it or lower those"
            ),
            field=".scaling.maxGPUs",
        ),
        Rule(
            expression=(
                "!has(self.scaling.maxGPUs) || !has(self.scaling.schedule) || self.scaling.schedule.all(entry,"
                f" {_scheduled_replicas('prefill')} * {_tensor_parallel_size('prefill')}"
                f" + {_scheduled_replicas('decode')} * {_tensor_parallel_size('decode')} <= self.scaling.maxGPUs)"
            ),
            message=(
                "{path}.scaling.schedule needs more GPUs than {path}.scaling.maxGPUs in one of its entries;"
                " raise maxGPUs or lower prefillMin or decodeMin"
            ),
            field=".scaling.schedule",
        ),
        Rule(
            expression="self.scaling.spareReplicas < self.pools.decode.maxReplicas",
            message=(
                "{path}.scaling.spareReplicas must be less than {path}.pools.decode.maxReplicas, or no worker is left"
                " for the load; lower it or raise maxReplicas"
            ),
            field=".scaling.spareReplicas",
        ),
        Rule(
            expression="!has(self.slo.classes) || self.slo.classes.size() == 0 || has(self.gateway.apiKeys)",
            message=(
                "{path}.slo.classes needs {path}.gateway.apiKeys, whose keys say who is in which class;"
                " set apiKeys or remove the classes"
            ),
            field=".slo.classes",
        ),
        Rule(
            expression="self.drain.timeoutSeconds >= 2 * self.scaling.intervalSeconds",
            message=(
                "{path}.drain.timeoutSeconds must be at least twice {path}.scaling.intervalSeconds, because a finished"
                " drain is confirmed in the next pass; raise it or shorten the interval"
            ),
            field=".drain.timeoutSeconds",
        ),
    )

    model: ModelSpec
    """Model to serve. Required. A change rolls pods."""
    slo: SloSpec
    """Objectives to hold. Required. Live."""
    engine: EngineSpec = EngineSpec()
    """Set-up of SGLang in both pools. Default: the operator's image, one GPU a replica. A change rolls pods."""
    pools: PoolsSpec = PoolsSpec()
    """Bounds and GPUs of the prefill and the decode pool. Default: 0 to 8 and 1 to 8 workers on whole GPUs."""
    deflection: DeflectionSpec = DeflectionSpec()
    """Prefill on decode workers. Default: where it keeps the objectives at less cost. Live."""
    multiplexing: NotSupportedYet[MultiplexingSpec] = MultiplexingSpec()
    """Prefill and decode at once on disjoint SMs of a worker. Default: where a GPU passed its self-test. Live."""
    routing: RoutingSpec = RoutingSpec()
    """Choice of a worker for each request. Default: by least predicted TTFT, with a gate at saturation. Live."""
    scaling: ScalingSpec = ScalingSpec()
    """Control loop that sets the numbers of workers. Default: automatic, each 5 seconds. Live."""
    rollout: RolloutSpec = RolloutSpec()
    """Replacement of pods after a change that rolls them. Default: one by one, without surge. Live."""
    drain: DrainSpec = DrainSpec()
    """Departure of a worker without a lost request. Default: up to 600 seconds."""
    gateway: GatewaySpec = GatewaySpec()
    """Gateway in front of the pools. Default: two pods behind a ClusterIP Service."""
    signals: NotSupportedYet[SignalsSpec] = SignalsSpec()
    """Further sources of signals. Default: gateways and engines only. Live."""

    def pool(self, role: Role) -> PoolSpec:
        """The pool of that role."""
        return self.pools.prefill if role is Role.PREFILL else self.pools.decode

    def tensor_parallel_size(self, role: Role) -> int:
        """GPUs of one replica of the pool of that role."""
        return self.pool(role).tensor_parallel_size or self.engine.tensor_parallel_size

    @property
    def deflects(self) -> bool:
        """Whether decode workers may take prompts: someone must route them there."""
        return self.gateway.enabled and self.deflection.mode != "Off"
