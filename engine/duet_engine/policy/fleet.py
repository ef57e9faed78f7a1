"""What a routing decision looks at: workers and prompts as plain values.

Invariant: a worker's load already includes what this gateway sent it and it hasn't confirmed yet; the policies never
ask how a number came about. Only workers that may take new work are listed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

from duet_engine.perf.interface import StepTimes
from duet_engine.policy.chunks import DecodeBatch

Value = TypeVar("Value")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def _value(cls: type[Value]) -> type[Value]:
    """A frozen dataclass to the type checker, which finds whoever sets a field.

    While it runs nothing guards the fields: the guard makes a new value three times as dear, and making these values
    anew was a seventh of a simulated request and much of a live decision.
    """
    return dataclass(slots=True, kw_only=True)(cls)


@_value
class PrefillWorker:
    """A worker of the prefill pool and the predicted seconds of work ahead of the next prompt."""

    key: str
    revision: str
    steps: StepTimes
    chunk_tokens: int
    ahead_seconds: float = 0.0
    queued_tokens: int = 0
    """Prompt tokens of that work; only Kairos' queue term as printed looks at them."""
    dispatches: int = 0
    """Prompts sent so far: equal workers take turns."""


@_value
class DecodeWorker:
    """A worker that decodes; `prefills` says whether it takes whole prompts too (deflection, or a unified worker)."""

    key: str
    revision: str
    steps: StepTimes
    chunk_tokens: int
    batch: DecodeBatch
    kv_capacity_tokens: int
    kv_free_tokens: int
    free_slots: int
    prefills: bool = False
    unified: bool = False
    local_prefill_tokens: int = 0
    """Prompt tokens that wait here for a local prefill."""
    dispatches: int = 0


@dataclass(frozen=True, slots=True)
class Fleet:
    """All workers that may take new work."""

    prefill: tuple[PrefillWorker, ...] = ()
    decode: tuple[DecodeWorker, ...] = ()
    members: object = None
    """The same object for as long as the same workers with the same step times are there; None: nobody keeps track."""


@_value
class Prompt:
    """A waiting request as routing sees it."""

    tokens: int
    """Uncached tokens: what a worker must compute."""
    cached_tokens: int = 0
    """Ahead of them, already in the worker's cache: attended to and sent, not computed."""
    waited_seconds: float
    ttft_objective_seconds: float
    output_reserve_tokens: int = 0
    """Room in the KV cache that the answer is expected to need."""
    excluded: frozenset[str] = frozenset()
    """Workers that refused or failed this request."""
    warm: Mapping[str, int] = field(default_factory=dict)
    """Tokens at the prompt's beginning that a worker's cache likely holds, by its key; then `tokens` is all of them."""

    def at(self, key: str) -> Prompt:
        """The prompt as this worker would compute it: at least one token is left."""
        if not self.warm:
            return self
        warm = self.warm.get(key, 0)
        if not warm:
            return self
        warm = min(warm, self.tokens - 1)
        return Prompt(  # `replace` takes three times as long, for each worker of a decision
            tokens=self.tokens - warm,
            cached_tokens=self.cached_tokens + warm,
            waited_seconds=self.waited_seconds,
            ttft_objective_seconds=self.ttft_objective_seconds,
            output_reserve_tokens=self.output_reserve_tokens,
            excluded=self.excluded,
            warm=self.warm,
        )
