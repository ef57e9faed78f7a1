"""What a run gave: a row for each request, the life of each worker, every decision of the planner.

Invariant: figures count requests that arrived after the warm-up, by the definitions of `duet_engine.slo`; a failed
request is in the attainment and in no latency. Equal runs have equal digests.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from duet_engine.protocol import Role
from duet_engine.slo import TOLERATED_GAP_SHARE, Objective

if TYPE_CHECKING:
    from numpy.typing import NDArray

    FloatColumn = NDArray[np.float64]
    IntColumn = NDArray[np.int64]
    FlagColumn = NDArray[np.bool_]

NO_WORKER = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestColumns:
    """One value a request, in order of arrival. Moments are in seconds of the run; NaN: it never came so far."""

    arrival_seconds: FloatColumn
    class_index: IntColumn
    input_tokens: IntColumn
    output_tokens: IntColumn
    """Those that came; what was asked for unless the request failed."""
    cached_tokens: IntColumn
    """Of the prompt, found in the cache of the worker that computed it."""
    dispatched_seconds: FloatColumn
    predicted_ttft_seconds: FloatColumn
    """By the policy that sent it, counted from its arrival."""
    prefill_started_seconds: FloatColumn
    prefill_ended_seconds: FloatColumn
    kv_arrived_seconds: FloatColumn
    """On the decode worker; the end of the prefill where no KV was sent."""
    first_token_seconds: FloatColumn
    last_token_seconds: FloatColumn
    gaps_over_objective: IntColumn
    unloaded_ttft_seconds: FloatColumn
    """By the model, on the best idle workers."""
    deflected: FlagColumn
    """Prefilled where it was decoded, by a decode worker."""
    retractions: IntColumn
    retries: IntColumn
    prefill_worker: IntColumn
    """Index in `SimulationResult.workers`; `NO_WORKER` where it had none."""
    decode_worker: IntColumn
    succeeded: FlagColumn

    def __len__(self) -> int:
        return len(self.arrival_seconds)

    @property
    def ttft_seconds(self) -> FloatColumn:
        """Arrival at the gateway to first token out."""
        return self.first_token_seconds - self.arrival_seconds

    @property
    def tpot_seconds(self) -> FloatColumn:
        """Mean gap between output tokens; 0 for a single token."""
        decode_seconds = self.last_token_seconds - self.first_token_seconds
        return np.where(self.output_tokens > 1, decode_seconds / np.maximum(self.output_tokens - 1, 1), 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLife:
    """One worker. It is paid for from scheduled to gone."""

    name: str
    role: Role
    gpus: int
    scheduled_seconds: float
    ready_seconds: float | None
    gone_seconds: float
    """The end of the run for those that were still there."""
    died: bool
    busy_seconds: float
    steps: int
    prefill_tokens: int
    output_tokens: int
    deflected_tokens: int
    retractions: int

    @property
    def gpu_seconds(self) -> float:
        return self.gpus * (self.gone_seconds - self.scheduled_seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannerDecision:
    """What a planner asked for."""

    at_seconds: float
    prefill: int
    decode: int
    reason: str
    changed: bool
    """Whether it asked for something else than before."""


@dataclass(frozen=True, kw_only=True)
class SimulationResult:
    """Everything that came out of one run."""

    requests: RequestColumns
    class_names: tuple[str, ...]
    objectives: Mapping[str, Objective]
    """By class name."""
    workers: tuple[WorkerLife, ...]
    decisions: tuple[PlannerDecision, ...]
    gap_bounds_seconds: tuple[float, ...]
    gap_counts: tuple[int, ...]
    """Gaps between tokens after the warm-up, up to each bound; the last count is of those beyond."""
    seed: int
    warm_up_seconds: float
    end_seconds: float
    """When the last request ended."""
    counters: Mapping[str, int] = field(default_factory=dict)
    """Of the run itself: events, passes, steps, refusals."""

    # --- who counts ---

    @cached_property
    def judged(self) -> FlagColumn:
        """Requests after the warm-up."""
        return self.requests.arrival_seconds >= self.warm_up_seconds

    @cached_property
    def ttft_met(self) -> FlagColumn:
        rows, met = self.requests, np.zeros(len(self.requests), dtype=bool)
        for index, name in enumerate(self.class_names):
            objective = self.objectives[name]
            allowed = np.full(len(rows), objective.ttft_seconds)
            if objective.ttft_unloaded_ratio is not None:
                allowed = np.maximum(allowed, objective.ttft_unloaded_ratio * rows.unloaded_ttft_seconds)
            met |= (rows.class_index == index) & (rows.ttft_seconds <= allowed)
        return met & rows.succeeded

    @cached_property
    def itl_met(self) -> FlagColumn:
        rows = self.requests
        limits = np.array([self.objectives[name].itl_seconds for name in self.class_names])
        tolerated = np.maximum(1, (TOLERATED_GAP_SHARE * (rows.output_tokens - 1)).astype(np.int64))
        within = rows.tpot_seconds <= limits[rows.class_index]
        return within & (rows.gaps_over_objective <= tolerated) & rows.succeeded

    @cached_property
    def met(self) -> FlagColumn:
        """All objectives."""
        return self.ttft_met & self.itl_met

    # --- figures ---

    @property
    def attainment(self) -> float | None:
        """Share of judged requests that met all their objectives; None where there is none."""
        return float(self.met[self.judged].mean()) if self.judged.any() else None

    @property
    def goodput(self) -> float:
        """Requests per second that met all their objectives."""
        return float((self.met & self.judged).sum()) / self.judged_seconds

    @property
    def judged_seconds(self) -> float:
        """From the end of the warm-up to the last arrival."""
        last = float(self.requests.arrival_seconds[-1]) if len(self.requests) else 0.0
        return max(last - self.warm_up_seconds, 1e-9)

    def ttft_percentile(self, percent: float) -> float:
        """TTFT of judged requests that succeeded; NaN where there is none."""
        return self._percentile(self.requests.ttft_seconds, self._timed, percent)

    def tpot_percentile(self, percent: float) -> float:
        """The same of TPOT, over requests with more than one token."""
        return self._percentile(self.requests.tpot_seconds, self._timed & (self.requests.output_tokens > 1), percent)

    def itl_percentile(self, percent: float) -> float:
        """Of all gaps between tokens: the upper bound of the bucket, 2 % wide; NaN where there is none."""
        counts = np.cumsum(self.gap_counts)
        if counts[-1] == 0:
            return float("nan")
        bucket = int(np.searchsorted(counts, percent / 100 * counts[-1]))
        return self.gap_bounds_seconds[min(bucket, len(self.gap_bounds_seconds) - 1)]

    @property
    def _timed(self) -> FlagColumn:
        return self.judged & self.requests.succeeded

    @staticmethod
    def _percentile(values: FloatColumn, chosen: FlagColumn, percent: float) -> float:
        return float(np.percentile(values[chosen], percent)) if chosen.any() else float("nan")

    @property
    def deflected_share(self) -> float:
        """Of judged requests."""
        return float(self.requests.deflected[self.judged].mean()) if self.judged.any() else 0.0

    @property
    def gpu_hours(self) -> float:
        """From scheduled to gone, all workers."""
        return sum(worker.gpu_seconds for worker in self.workers) / 3600

    @property
    def utilisation(self) -> float:
        """Share of the paid time in which steps ran."""
        paid = sum(worker.gpu_seconds for worker in self.workers)
        return sum(worker.gpus * worker.busy_seconds for worker in self.workers) / paid if paid else 0.0

    @property
    def output_tokens_per_second(self) -> float:
        """Of judged requests, over the time from the end of the warm-up to the end of the run."""
        seconds = max(self.end_seconds - self.warm_up_seconds, 1e-9)
        return float(self.requests.output_tokens[self.judged].sum()) / seconds

    def digest(self) -> str:
        """The same for the same run, to the last bit."""
        sha = hashlib.sha256()
        for name in RequestColumns.__slots__:
            sha.update(np.ascontiguousarray(getattr(self.requests, name)).tobytes())
        sha.update(repr((self.workers, self.decisions, self.gap_counts, self.end_seconds)).encode())
        return sha.hexdigest()
