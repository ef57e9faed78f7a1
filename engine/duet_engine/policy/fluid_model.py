"""What Gate-and-Route's fluid plan is made from: classes of requests, a worker's pace, prices, service limits.

Symbols are those of arXiv 2602.02987, sections 3.1, 3.2 and 5.

Invariant: values that make no sense are refused by name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Self

from duet_engine.perf.interface import StepBatch, StepTimes


class Charging(StrEnum):
    """When a request earns: all of it with its last token, or each phase as it ends."""

    BUNDLED = "bundled"
    SEPARATE = "separate"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficClass:
    """Requests of one kind, as one worker's share of them."""

    name: str
    prompt_tokens: float
    output_tokens: float
    arrivals_per_second: float
    """Per worker: lambda, not n lambda."""
    impatience_per_second: float = 0.0
    """Theta: 1 / the mean time until someone who waits gives up. 0: nobody does, so everybody must be served."""

    def __post_init__(self) -> None:
        if not (self.prompt_tokens > 0 and self.output_tokens > 0):
            raise ValueError(f"class {self.name}: prompt_tokens and output_tokens must be positive")
        if not (self.arrivals_per_second >= 0 and self.impatience_per_second >= 0):
            raise ValueError(f"class {self.name}: arrivals_per_second and impatience_per_second must not be negative")

    def shared_by(self, workers: int) -> Self:
        """One worker's share of a class whose rate is the whole fleet's."""
        return replace(self, arrivals_per_second=self.arrivals_per_second / workers)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerPace:
    """The two step times between which a worker changes, and how much fits into a step (section 3.1)."""

    chunk_tokens: float
    """C: prompt tokens of a mixed step."""
    batch_slots: int
    """B: decodes without a prefill; one fewer beside one."""
    mixed_step_seconds: float
    """Tau."""
    solo_step_seconds: float
    """1 / gamma."""

    def __post_init__(self) -> None:
        if self.batch_slots < 2:
            raise ValueError(f"batch_slots: at least 2 are needed to decode beside a prefill, got {self.batch_slots}")
        if not (self.chunk_tokens > 0 and self.mixed_step_seconds > 0 and self.solo_step_seconds > 0):
            raise ValueError("chunk_tokens, mixed_step_seconds and solo_step_seconds must be positive")

    @classmethod
    def from_steps(cls, steps: StepTimes, *, chunk_tokens: int, batch_slots: int, mean_context_tokens: float) -> Self:
        """The pace of a worker with full batches whose requests are `mean_context_tokens` long at their middle."""
        beside = StepBatch.decode(batch_slots - 1, (batch_slots - 1) * mean_context_tokens)
        alone = StepBatch.decode(batch_slots, batch_slots * mean_context_tokens)
        return cls(
            chunk_tokens=chunk_tokens,
            batch_slots=batch_slots,
            mixed_step_seconds=steps.step_seconds(beside.with_chunks(chunk_tokens)),
            solo_step_seconds=steps.step_seconds(alone),
        )

    @property
    def solo_is_more_efficient(self) -> bool:
        """Proposition 3.2's condition, gamma tau >= (B - 1) / B: then some optimum has no decode queue."""
        ratio = self.mixed_step_seconds / self.solo_step_seconds
        return ratio >= (self.batch_slots - 1) / self.batch_slots

    def prefills_per_second(self, traffic: TrafficClass) -> float:
        return self.chunk_tokens / (traffic.prompt_tokens * self.mixed_step_seconds)

    def mixed_decodes_per_second(self, traffic: TrafficClass) -> float:
        return 1.0 / (traffic.output_tokens * self.mixed_step_seconds)

    def solo_decodes_per_second(self, traffic: TrafficClass) -> float:
        return 1.0 / (traffic.output_tokens * self.solo_step_seconds)

    def mean_tpot_seconds(self, mixed_share: float) -> float:
        """Over all decode slots when this share of the workers prefills."""
        slots = self.batch_slots
        mixed, solo = (slots - 1) * mixed_share, slots * (1.0 - mixed_share)
        return (self.mixed_step_seconds * mixed + self.solo_step_seconds * solo) / (mixed + solo)

    def mean_tpot_slope(self, mixed_share: float) -> float:
        """Its derivative, B (B-1) (tau - 1/gamma) / (B - X)^2: it never falls, so the mean TPOT is convex in X."""
        slots = self.batch_slots
        difference = self.mixed_step_seconds - self.solo_step_seconds
        return slots * (slots - 1) * difference / (slots - mixed_share) ** 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """What a token earns."""

    prompt_token: float = 0.1
    output_token: float = 0.2
    charging: Charging = Charging.BUNDLED

    def request(self, traffic: TrafficClass) -> float:
        """w = c_p P + c_d D."""
        return self.prompt_token * traffic.prompt_tokens + self.output_token * traffic.output_tokens


@dataclass(frozen=True, slots=True)
class Limit:
    """A hard bound (eta), a price for each unit (eta'), both or neither."""

    most: float = math.inf
    penalty: float = 0.0

    @property
    def active(self) -> bool:
        return self.most < math.inf or self.penalty > 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceLimits:
    """Section 5's service-level indicators; by default none is held."""

    prefill_spread: Limit = field(default_factory=Limit)
    """max (x_i - x_j)."""
    decode_spread: Limit = field(default_factory=Limit)
    """max (y_s,i - y_s,j)."""
    mean_tpot_seconds: Limit = field(default_factory=Limit)
