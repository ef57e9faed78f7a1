"""The closed list of reasons for a decision, each with what it means and what a person on call may do.

Invariant: every reason that a decision, a status or an Event names stands here.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType


class Reason(StrEnum):
    """Why a pool has the count that it has."""

    LOAD_RISING = "LoadRising"
    BACKLOG = "Backlog"
    LOAD_FALLING = "LoadFalling"
    REBALANCED = "Rebalanced"
    SUFFICIENT = "Sufficient"
    MIN_REPLICAS = "MinReplicas"
    MAX_REPLICAS = "MaxReplicas"
    MAX_GPUS = "MaxGPUs"
    STABILIZATION = "Stabilization"
    PENDING_PODS = "PendingPods"
    ROLLOUT = "Rollout"
    STALE_SIGNALS = "StaleSignals"
    MODEL_UNKNOWN = "ModelUnknown"
    DEFLECTION_INACTIVE = "DeflectionInactive"
    ITL_UNMEETABLE = "ITLUnmeetable"
    TTFT_UNMEETABLE = "TTFTUnmeetable"


CEILINGS = frozenset({Reason.MAX_REPLICAS, Reason.MAX_GPUS, Reason.PENDING_PODS})
"""Reasons for which a pool is smaller than demand asks for."""

MEANINGS: Mapping[Reason, str] = MappingProxyType(
    {
        Reason.LOAD_RISING: "The expected load needs more replicas. Nothing to do.",
        Reason.BACKLOG: "Requests wait that the present replicas can't clear in time. Nothing to do.",
        Reason.LOAD_FALLING: "Fewer replicas were enough for the whole stabilization window. Nothing to do.",
        Reason.REBALANCED: "The load's mix of prompts and answers changed; one pool grows and the other shrinks.",
        Reason.SUFFICIENT: "The present replicas hold the expected load. Nothing to do.",
        Reason.MIN_REPLICAS: "The load needs fewer replicas than minReplicas; lower it to save GPUs.",
        Reason.MAX_REPLICAS: "The load needs more replicas than maxReplicas; raise it, or accept missed objectives.",
        Reason.MAX_GPUS: "The load needs more GPUs than scaling.maxGPUs, leaving pods included; raise it, or accept"
        " missed objectives.",
        Reason.STABILIZATION: "Fewer replicas would do now, but not for the whole stabilization window yet. Wait.",
        Reason.PENDING_PODS: "Pods are past the pending deadline, so no more are asked for; look at their events for"
        " missing GPUs, quota or crashes.",
        Reason.ROLLOUT: "Fewer replicas would do, but nothing shrinks during a rollout. Wait for it or mend it.",
        Reason.STALE_SIGNALS: "A gateway didn't answer, so nothing shrinks; look at the gateway's pods.",
        Reason.MODEL_UNKNOWN: "No worker has told what it can do and the model isn't a known one; the first ready"
        " worker tells. Look at the engine's pods if that takes longer than a cold start.",
        Reason.DEFLECTION_INACTIVE: "No live decode worker takes prompts, so one prefill worker stays. Look at the"
        " decode workers' plugin if it lasts.",
        Reason.ITL_UNMEETABLE: "One request alone on a decode worker misses slo.itlMilliseconds; raise it, or take a"
        " faster GPU or more tensor parallelism.",
        Reason.TTFT_UNMEETABLE: "The mean prompt alone on a prefill worker misses slo.ttftMilliseconds; raise it or set"
        " ttftUnloadedPercent, or take a faster GPU.",
    }
)
