"""What can become of a waiting prompt, and why: the words of every routing policy.

Invariant: a route names workers by key and says what was predicted; a hold always has a reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class HoldReason(StrEnum):
    """Why a prompt waits."""

    NO_DECODE_WORKER = "no-decode-worker"
    NO_PREFILL_WORKER = "no-prefill-worker"
    DECODE_FULL = "decode-full"
    ITL_UNSAFE = "itl-unsafe"
    PREFILL_BUSY = "prefill-busy"
    LOCAL_PREFILL_BUSY = "local-prefill-busy"
    NO_PAIR = "no-pair-of-one-revision"
    TRIED_ALL = "all-workers-tried"


class DeflectReason(StrEnum):
    """Why a prompt is prefilled where it is decoded."""

    NO_PREFILL_WORKER = "no-prefill-worker"
    TTFT_ENDANGERED = "ttft-endangered"
    UNIFIED = "unified"
    SOONEST = "soonest"
    """By least TTFT."""
    SHORT_PROMPT = "short-prompt"
    """By prefix threshold."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Prefill on one worker, decode on another."""

    prefill: str
    decode: str
    ttft_seconds: float
    ahead_seconds: float


@dataclass(frozen=True, slots=True)
class Local:
    """Prefill where it is decoded."""

    decode: str
    chunks_tokens: tuple[int, ...]
    reason: DeflectReason
    ttft_seconds: float
    ahead_seconds: float


@dataclass(frozen=True, slots=True)
class Hold:
    """Not now."""

    reason: HoldReason


Route = Pair | Local | Hold
