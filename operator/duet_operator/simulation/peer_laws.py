"""How other systems size pools, as small pure functions of what a planner sees.

Each law is written from its project's own description or source, at the version named beside it; none of their code is
here. They take the facts that their users would have to find by measurement (what one worker holds) from the
performance model, so what is compared is the law.

Invariant: pure; a law returns the count it would like, before bounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSignals:
    """One pool as an autoscaler of its kind would measure it, over the law's own window."""

    replicas: int
    ready: int
    starting: int
    utilisation: float
    """Prefill: share of its token rate that is asked of it. Decode: share of its KV that is used."""
    waiting_requests: float
    """Requests that no worker of the pool has begun with."""
    inflight_requests: float
    """Requests that the pool works on, waiting ones included."""


def hpa(signals: PoolSignals, *, target: float = 0.6, tolerance: float = 0.1) -> int:
    """Kubernetes' HorizontalPodAutoscaler: ceil(n x current / target), nothing within a tenth of the target."""
    ratio = signals.utilisation / target
    if abs(ratio - 1) <= tolerance:
        return signals.replicas
    return ceil(signals.ready * ratio)


def keda_queue(signals: PoolSignals, *, threshold: float = 5.0) -> int:
    """KEDA on waiting requests, as vLLM's production stack sets it up (`num_requests_waiting`, threshold 5)."""
    return ceil(signals.waiting_requests / threshold)


def concurrency(signals: PoolSignals, *, target: float) -> int:
    """Knative's and KServe's concurrency, and KubeAI's: ceil(requests in flight / target)."""
    return ceil(signals.inflight_requests / target)


def aibrix_apa(signals: PoolSignals, *, target: float = 0.5, tolerance: float = 0.1) -> int:
    """AIBrix' APA (podautoscaler/algorithm/apa.go): in proportion outside the tolerance, at most twice or half."""
    ratio = signals.utilisation / target
    if ratio > 1 + tolerance:
        return min(ceil(signals.ready * ratio), 2 * signals.ready)
    if ratio < 1 - tolerance:
        return max(ceil(signals.ready * ratio), signals.ready // 2)
    return signals.replicas


def wva_saturation(signals: PoolSignals, *, scale_up: float = 0.85, scale_down: float = 0.7) -> int:
    """llm-d's workload-variant autoscaler, saturation analyser: demand over a share of the supply, pending included.

    Supply is in workers, demand in workers' worth of use; scale_down's value is ours, the text leaves it open.
    """
    demand, supply = signals.utilisation * signals.ready, signals.ready + signals.starting
    required = max(0.0, demand / scale_up - supply)
    spare = max(0.0, supply - demand / scale_down)
    return supply + ceil(required) if required > 0 else supply - int(spare)


def role_ratio(prefill: int, decode: int, *, lowest: float, highest: float) -> tuple[int, int]:
    """Kthena's RoleRatioConstraint on prefill over decode: the role that lacks is raised, none is lowered."""
    prefill, decode = max(prefill, 1), max(decode, 1)
    if prefill / decode < lowest:
        prefill = ceil(lowest * decode)
    if prefill / decode > highest:
        decode = ceil(prefill / highest)
    return prefill, decode


def dynamo_throughput(requests_per_second: float, *, per_worker: float) -> int:
    """NVIDIA Dynamo's planner, throughput loop (core/throughput_scaling.py): ceil(demand / what a worker does)."""
    return max(ceil(requests_per_second / per_worker), 1)


def dynamo_load(
    signals: PoolSignals, *, estimate: Callable[[float], float], objective: float, sensitivity: float = 0.8
) -> int:
    """Its load loop (core/load_scaling.py): one up while every worker is estimated above the objective, one down if
    all would stay under a share of it with one fewer; nothing while workers start.

    `estimate` gives the latency at a factor on the present load of each worker; pools are taken as evenly loaded.
    """
    count = signals.replicas
    if signals.starting or signals.ready < count:
        return count
    if estimate(1.0) > objective:
        return count + 1
    if count > 1 and estimate(count / (count - 1)) < sensitivity * objective:
        return count - 1
    return count
