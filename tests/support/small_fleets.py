"""Scenarios of a few workers with easy step times."""

from typing import Any

from tests.support.simple_steps import SimpleSteps

from duet_engine.policy.deflect import DeflectionRule
from duet_engine.protocol import Role
from duet_engine.simulator.scenario import (
    NO_NOISE,
    ColdStart,
    EngineLimits,
    GatewayLimits,
    LocalPrefill,
    Network,
    Pool,
    Scenario,
)
from duet_engine.slo import Objective

STEPS = SimpleSteps()
OBJECTIVE = Objective(ttft_seconds=1.0, itl_seconds=0.02)
RULE = DeflectionRule(itl_seconds=0.02, candidates_tokens=(256, 128, 64, 32))
PLAIN_LIMITS = EngineLimits(chunked_prefill_tokens=1000, graph_batch_sizes=())
AT_ONCE = GatewayLimits(
    state_interval_seconds=0.0, state_age_seconds=0.0, pass_interval_seconds=0.05, queue_timeout_seconds=60.0
)
NO_HOP = Network(hop_seconds=0.0)


def pool(role: Role, replicas: int, **changes: Any) -> Pool:
    """Workers without surprises: no padding, quick starts."""
    local = None if role is Role.PREFILL else LocalPrefill.SAFE if role is Role.DECODE else LocalPrefill.PROMPTS_FIRST
    values: dict[str, Any] = {
        "steps": STEPS,
        "kv_capacity_tokens": 100_000,
        "limits": PLAIN_LIMITS,
        "local_prefill": local,
        "cold_start": ColdStart(seconds=10.0, spread_seconds=1.0),
    }
    return Pool(role=role, replicas=replicas, **(values | changes))


def pairs(prefill: int = 1, decode: int = 1, **changes: Any) -> Scenario:
    """Separate pools, exact times, a gateway that knows everything at once."""
    return _scenario(prefill=pool(Role.PREFILL, prefill), decode=pool(Role.DECODE, decode), **changes)


def unified(replicas: int = 1, *, worker: dict[str, Any] | None = None, **changes: Any) -> Scenario:
    """The same without a prefill pool."""
    return _scenario(prefill=None, decode=pool(Role.UNIFIED, replicas, **(worker or {})), **changes)


def _scenario(**changes: Any) -> Scenario:
    values: dict[str, Any] = {
        "objective": OBJECTIVE,
        "rule": RULE,
        "noise": NO_NOISE,
        "network": NO_HOP,
        "gateway": AT_ONCE,
    }
    return Scenario(**(values | changes))
