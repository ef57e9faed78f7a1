"""Workloads as people write them, in YAML or JSON: a trace, one class of made-up requests, or a mix of several.

Invariant: a document either becomes a workload or is refused with the field that is wrong and what it may be; the same
document and seed give the same requests, as often as they are asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from duet_engine.simulator.lengths import Exponential, Fixed, Lengths, LogNormal, Quantiles
from duet_engine.simulator.synthetic import Clients, Rate, SharedPrefix, Traffic, client_traffic
from duet_engine.simulator.workload import (
    DEFAULT_CLASS,
    PREFIX_BLOCK_TOKENS,
    Request,
    SkippedLines,
    copied,
    from_trace,
    limited,
    merged,
    sped_up,
)

NORMAL_P95 = 1.645
DEFAULT_JITTER_SECONDS = 30.0

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Tokens = Annotated[float, Field(ge=1, le=1_000_000)]


class Document(BaseModel):
    """A part of a file that a person wrote: camelCase, and a field that isn't known is a typing error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, validate_by_name=True, validate_by_alias=True
    )


def problems(error: ValidationError) -> list[str]:
    """What is wrong, one line for each field, by its path as it stands in the file."""
    found = []
    for detail in error.errors(include_url=False):
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in detail["loc"]).lstrip(".")
        words = detail["msg"].removeprefix("Value error, ")
        if detail["type"] == "extra_forbidden":
            words = "isn't a field; look for a typing error"
        if detail["type"] == "missing":
            words = "is required"
        found.append(f"{path or 'document'}: {words}")
    return found


class LengthsDocument(Document):
    """How long prompts or answers are: a number, or a distribution by mean and spread, by percentiles, by quantiles."""

    mean: Tokens | None = None
    variation: Annotated[float, Field(ge=0, le=20)] | None = None
    """Standard deviation over mean; by default 1."""
    p50: Tokens | None = None
    p95: Tokens | None = None
    quantiles: tuple[tuple[float, float], ...] | None = None
    """Points of share and tokens, from share 0 to share 1."""
    distribution: Literal["lognormal", "exponential", "fixed"] = "lognormal"

    @model_validator(mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:  # noqa: ANN401 - whatever stands in the file
        return {"mean": value, "distribution": "fixed"} if isinstance(value, int | float) else value

    @model_validator(mode="after")
    def _complete(self) -> Self:
        given = {name for name in ("mean", "p50", "quantiles") if getattr(self, name) is not None}
        if len(given) != 1:
            raise ValueError("give one of mean (with variation or p95), p50 (with p95), and quantiles")
        if self.p50 is not None and (self.p95 is None or self.p95 < self.p50):
            raise ValueError("p50 needs a p95 that isn't below it")
        if self.mean is not None and self.p95 is not None and self.variation is not None:
            raise ValueError("give variation or p95, not both")
        self.lengths()
        return self

    def lengths(self) -> Lengths:
        """The distribution."""
        if self.quantiles is not None:
            return Quantiles(self.quantiles)
        if self.p50 is not None and self.p95 is not None:
            sigma = math.log(self.p95 / self.p50) / NORMAL_P95
            return LogNormal(self.p50 * math.exp(sigma**2 / 2), math.sqrt(math.expm1(sigma**2)))
        assert self.mean is not None
        if self.distribution == "exponential":
            return Exponential(self.mean)
        if self.distribution == "fixed" or self.variation == 0:
            return Fixed(self.mean)
        return LogNormal(self.mean, self._variation(self.mean))

    def _variation(self, mean: float) -> float:
        if self.p95 is None:
            return 1.0 if self.variation is None else self.variation
        ratio = math.log(self.p95 / mean)
        if not 0 <= ratio <= NORMAL_P95**2 / 2:
            raise ValueError(f"p95 must be from 1 to {math.exp(NORMAL_P95**2 / 2):.2f} times the mean")
        sigma = NORMAL_P95 - math.sqrt(NORMAL_P95**2 - 2 * ratio)
        return math.sqrt(math.expm1(sigma**2))


class BurstsDocument(Document):
    """More load now and then."""

    factor: Positive
    every_seconds: Positive
    lasting_seconds: Positive


class DayDocument(Document):
    """A sine around the mean rate, from its lowest point on."""

    lowest_share: Annotated[float, Field(ge=0, le=1)] = 0.3
    minutes: Positive = 1440.0


class PrefixDocument(Document):
    """A beginning that prompts have in common, on top of their own length."""

    tokens: Annotated[int, Field(ge=PREFIX_BLOCK_TOKENS, multiple_of=PREFIX_BLOCK_TOKENS)]
    groups: Annotated[int, Field(ge=1, le=100_000)] = 1


class TrafficDocument(Document):
    """One class of made-up requests."""

    name: str = DEFAULT_CLASS
    requests_per_second: Positive | None = None
    ramp: tuple[tuple[float, Annotated[float, Field(ge=0)]], ...] | None = None
    """Points of minute and requests per second, in place of `requests_per_second`."""
    bursts: BurstsDocument | None = None
    day: DayDocument | None = None
    variation: Positive = 1.0
    """Of the gaps between arrivals: 1 is Poisson, more is bursty."""
    input_tokens: LengthsDocument
    output_tokens: LengthsDocument
    shared_prefix: PrefixDocument | None = None
    clients: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """So many unequal clients, each with its own lengths, burstiness and prefix, in place of one even stream."""

    @model_validator(mode="after")
    def _one_course(self) -> Self:
        if (self.requests_per_second is None) == (self.ramp is None):
            raise ValueError("give requestsPerSecond or ramp")
        if sum(each is not None for each in (self.ramp, self.bursts, self.day)) > 1:
            raise ValueError("give at most one of ramp, bursts and day")
        if self.ramp is not None:
            self._rate(1.0)
        return self

    def requests(self, seconds: float, seed: list[int]) -> Iterator[Request]:
        """The stream."""
        rate = self._rate(seconds)
        blocks = self.shared_prefix.tokens // PREFIX_BLOCK_TOKENS if self.shared_prefix else 0
        if self.clients is not None:
            clients = Clients(
                rate=rate,
                count=self.clients,
                variation=self.variation,
                mean_input_tokens=self.input_tokens.lengths().mean_tokens,
                mean_output_tokens=self.output_tokens.lengths().mean_tokens,
                prefix_blocks=blocks,
                class_name=self.name,
            )
            each = client_traffic(clients, seed)
            return merged([traffic.requests([*seed, index]) for index, traffic in enumerate(each)])
        return Traffic(
            rate=rate,
            input_tokens=self.input_tokens.lengths(),
            output_tokens=self.output_tokens.lengths(),
            variation=self.variation,
            prefix=SharedPrefix(blocks=blocks, groups=self.shared_prefix.groups) if self.shared_prefix else None,
            class_name=self.name,
        ).requests(seed)

    def _rate(self, seconds: float) -> Rate:
        if self.ramp is not None:
            return Rate.through([(60 * minute, rate) for minute, rate in self.ramp])
        assert self.requests_per_second is not None
        if self.bursts is not None:
            return Rate.bursts(self.requests_per_second, seconds=seconds, **self.bursts.model_dump())
        if self.day is not None:
            return Rate.diurnal(
                self.requests_per_second,
                seconds=seconds,
                lowest_share=self.day.lowest_share,
                period_seconds=60 * self.day.minutes,
            )
        return Rate.constant(self.requests_per_second, seconds=seconds)


class WorkloadDocument(Document):
    """What users ask for: exactly one of `trace`, `traffic` and `classes`."""

    trace: str | None = None
    """An Azure CSV or a Mooncake JSONL, relative to the file that names it."""
    skip_bad_lines: bool = False
    traffic: TrafficDocument | None = None
    classes: tuple[TrafficDocument, ...] | None = None
    minutes: Positive | None = None
    """Of the workload's own clock, before `speed`. Made-up workloads: by default 10, or the ramp's end."""
    speed: Positive = 1.0
    copies: Annotated[int, Field(ge=1, le=10_000)] = 1
    jitter_seconds: Annotated[float, Field(ge=0)] = DEFAULT_JITTER_SECONDS
    """How much later than its original a copy may come."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if sum(each is not None for each in (self.trace, self.traffic, self.classes)) != 1:
            raise ValueError("give exactly one of trace, traffic and classes")
        return self

    @property
    def seconds(self) -> float | None:
        """How long it lasts after `speed`; None: until the trace ends."""
        if self.minutes is None and self.trace is not None:
            return None
        return self._own_seconds / self.speed

    @property
    def _own_seconds(self) -> float:
        """Before `speed`."""
        if self.minutes is not None:
            return 60 * self.minutes
        ramps = [each.ramp for each in self._traffic if each.ramp is not None]
        return max((60 * ramp[-1][0] for ramp in ramps), default=600.0)

    @property
    def _traffic(self) -> tuple[TrafficDocument, ...]:
        return (self.traffic,) if self.traffic is not None else self.classes or ()

    def workload(self, *, base: Path, seed: int) -> Workload:
        """The workload; traces are looked for beside `base`, the folder of the file that names them."""
        name = Path(self.trace).name if self.trace else " + ".join(each.name for each in self._traffic)
        return Workload(name=name, document=self, base=base, seed=seed)


@dataclass(frozen=True, slots=True)
class Workload:
    """A workload that can be run any number of times."""

    name: str
    document: WorkloadDocument
    base: Path
    seed: int

    @property
    def seconds(self) -> float | None:
        """How long it lasts; None: until the trace ends."""
        return self.document.seconds

    def requests(self, *, skipped: SkippedLines | None = None) -> Iterator[Request]:
        """A fresh stream; the bad lines of a trace are counted in `skipped`, where the document says so.

        Raises:
            TraceError: naming file, line and reason.
        """
        document = self.document
        stream = self._originals(skipped or SkippedLines())
        if document.minutes is not None:
            stream = limited(stream, 60 * document.minutes)
        if document.copies > 1:
            stream = copied(stream, document.copies, jitter_seconds=document.jitter_seconds, seed=self.seed)
        return stream if document.speed == 1.0 else sped_up(stream, document.speed)

    def _originals(self, skipped: SkippedLines) -> Iterator[Request]:
        document = self.document
        if document.trace is not None:
            path = self.base / document.trace
            return from_trace(path, skipped=skipped if document.skip_bad_lines else None)
        seconds = document._own_seconds
        parts = [each.requests(seconds, [self.seed, index]) for index, each in enumerate(document._traffic)]
        return merged(parts)
