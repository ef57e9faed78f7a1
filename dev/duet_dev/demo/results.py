"""The requests of a run, and the figures that follow from them over any window.

Invariant: requests are judged by `duet_engine.slo` alone, each by when it ended; every figure is None, never zero,
where no request tells it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from duet_dev.demo.records import Pulse, Record
from duet_engine.perf.replica import replica_from_document
from duet_engine.policy.estimates import unloaded_pair_seconds
from duet_engine.protocol import WorkerProfile
from duet_engine.slo import Objective, Verdict, attainment, judge


@dataclass(frozen=True, slots=True)
class UnloadedTtft:
    """TTFT of a prompt that meets an idle prefill and an idle decode worker, by the workers' own step model."""

    profile: WorkerProfile

    def seconds(self, input_tokens: int) -> float:
        steps = replica_from_document(self.profile.replica)
        return unloaded_pair_seconds(input_tokens, steps, chunk_tokens=self.profile.chunked_prefill_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What the users of a window saw."""

    requests: int
    failed: int
    requests_per_second: float
    output_tokens_per_second: float
    ttft_p50_seconds: float | None
    ttft_p95_seconds: float | None
    itl_p50_seconds: float | None
    itl_p95_seconds: float | None
    attainment: float | None
    ttft_attainment: float | None
    itl_attainment: float | None
    deflected_share: float | None


@dataclass(slots=True)
class Results:
    """Everything that the load generator has said so far; it tells requests in the order in which they end."""

    objective: Objective
    unloaded: UnloadedTtft
    records: list[Record] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    pulse: Pulse | None = None

    def add(self, line: Record | Pulse) -> None:
        if isinstance(line, Pulse):
            self.pulse = line
            return
        self.records.append(line)
        unloaded_seconds = self.unloaded.seconds(line.input_tokens)
        self.verdicts.append(judge(line.outcome(self.objective, unloaded_seconds), self.objective))

    @property
    def failed(self) -> list[Record]:
        return [record for record in self.records if record.failure is not None]

    def figures(self, start_seconds: float, end_seconds: float) -> Figures:
        """Requests that ended inside a window."""
        first, last = (bisect_left(self.records, moment, key=_ended_at) for moment in (start_seconds, end_seconds))
        records, verdicts = self.records[first:last], self.verdicts[first:last]
        good = [record for record in records if record.failure is None]
        ttfts = [record.ttft_seconds for record in good if record.ttft_seconds is not None]
        gaps = _gaps_seconds(good)
        width_seconds = max(end_seconds - start_seconds, 1e-9)
        return Figures(
            requests=len(records),
            failed=len(records) - len(good),
            requests_per_second=len(records) / width_seconds,
            output_tokens_per_second=sum(record.output_tokens for record in good) / width_seconds,
            ttft_p50_seconds=_quantile(ttfts, 0.5),
            ttft_p95_seconds=_quantile(ttfts, 0.95),
            itl_p50_seconds=_quantile(gaps, 0.5),
            itl_p95_seconds=_quantile(gaps, 0.95),
            attainment=attainment(verdicts),
            ttft_attainment=_share(verdict.ttft_met for verdict in verdicts),
            itl_attainment=_share(verdict.itl_met for verdict in verdicts),
            deflected_share=_share(record.deflected for record in good),
        )


def _ended_at(record: Record) -> float:
    return record.ended_at_seconds


def _gaps_seconds(records: Iterable[Record]) -> Sequence[float]:
    found = [np.asarray(record.gaps_milliseconds) for record in records if record.gaps_milliseconds]
    joined: list[float] = (np.concatenate(found) / 1000).tolist() if found else []
    return joined


def _quantile(values: Sequence[float], share: float) -> float | None:
    return float(np.quantile(values, share)) if values else None


def _share(values: Iterable[bool]) -> float | None:
    known = list(values)
    return sum(known) / len(known) if known else None
