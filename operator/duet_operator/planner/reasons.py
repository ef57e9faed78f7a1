"""The closed lists of reasons for a decision and for a change of a count; `docs/scaling.md` says of each what to do.

Invariant: every reason that a decision or the history names stands here.
"""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Why a pool has the count that it has."""

    LOAD_RISING = "LoadRising"
    BACKLOG = "Backlog"
    LOAD_FALLING = "LoadFalling"
    REBALANCED = "Rebalanced"
    BURSTS = "Bursts"
    SUFFICIENT = "Sufficient"
    SPARE_REPLICAS = "SpareReplicas"
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


class ActionReason(StrEnum):
    """Why a count changed where it wasn't for what the planner decided."""

    MANUAL_MODE = "ManualMode"
    NODE_LEAVING = "NodeLeaving"
    BY_HAND = "ByHand"
