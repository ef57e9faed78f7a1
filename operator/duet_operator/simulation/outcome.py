"""What one variant's run gave, as figures and as series over time: what every report is made of.

Invariant: a figure that no request tells is None, never zero, and every one has its unit in its name. Judgement is
`duet_engine.slo`'s, as the simulator applied it; requests of the warm-up are in no figure but in the series.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from duet_engine.protocol import Role

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from duet_engine.simulator.result import PlannerDecision, SimulationResult, WorkerLife

    FloatColumn = NDArray[np.float64]

WINDOWS = 120
SHORTEST_WINDOW_SECONDS = 5.0
CURVE_POINTS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What users saw after the warm-up, and what the whole run cost."""

    requests: int
    failed: int
    requests_per_second: float
    attainment: float | None
    ttft_attainment: float | None
    itl_attainment: float | None
    goodput_requests_per_second: float
    output_tokens_per_second: float
    ttft_p50_seconds: float | None
    ttft_p95_seconds: float | None
    ttft_p99_seconds: float | None
    tpot_p50_seconds: float | None
    tpot_p95_seconds: float | None
    itl_p95_seconds: float | None
    itl_p99_seconds: float | None
    deflected_share: float
    retractions: int
    retries: int
    gpu_hours: float
    peak_gpus: int
    mean_gpus: float
    utilisation: float
    scale_actions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSeries:
    """Workers of one pool over time, in steps: the values hold from their second on."""

    seconds: tuple[float, ...]
    ready: tuple[int, ...]
    starting: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowSeries:
    """Requests by the window in which they arrived."""

    end_seconds: tuple[float, ...]
    requests_per_second: tuple[float, ...]
    ttft_p50_seconds: tuple[float | None, ...]
    ttft_p95_seconds: tuple[float | None, ...]
    tpot_p95_seconds: tuple[float | None, ...]
    attainment: tuple[float | None, ...]


@dataclass(frozen=True)
class Outcome:
    """A variant's run."""

    name: str
    result: SimulationResult
    wall_seconds: float

    @property
    def scale_actions(self) -> tuple[PlannerDecision, ...]:
        """Decisions that changed a count."""
        return tuple(decision for decision in self.result.decisions if decision.changed)

    @cached_property
    def figures(self) -> Figures:
        result, rows = self.result, self.result.requests
        judged = result.judged
        count = int(judged.sum())
        gpus = gpu_series(result.workers, end_seconds=result.end_seconds)
        return Figures(
            requests=count,
            failed=int((judged & ~rows.succeeded).sum()),
            requests_per_second=count / result.judged_seconds,
            attainment=result.attainment,
            ttft_attainment=float(result.ttft_met[judged].mean()) if count else None,
            itl_attainment=float(result.itl_met[judged].mean()) if count else None,
            goodput_requests_per_second=result.goodput,
            output_tokens_per_second=result.output_tokens_per_second,
            ttft_p50_seconds=_known(result.ttft_percentile(50)),
            ttft_p95_seconds=_known(result.ttft_percentile(95)),
            ttft_p99_seconds=_known(result.ttft_percentile(99)),
            tpot_p50_seconds=_known(result.tpot_percentile(50)),
            tpot_p95_seconds=_known(result.tpot_percentile(95)),
            itl_p95_seconds=_known(result.itl_percentile(95)),
            itl_p99_seconds=_known(result.itl_percentile(99)),
            deflected_share=result.deflected_share,
            retractions=int(rows.retractions[judged].sum()),
            retries=int(rows.retries[judged].sum()),
            gpu_hours=result.gpu_hours,
            peak_gpus=max((held for _, held in gpus), default=0),
            mean_gpus=result.gpu_hours * 3600 / result.end_seconds if result.end_seconds else 0.0,
            utilisation=result.utilisation,
            scale_actions=len(self.scale_actions),
        )

    @cached_property
    def window_seconds(self) -> float:
        return max(self.last_arrival_seconds / WINDOWS, SHORTEST_WINDOW_SECONDS)

    @property
    def last_arrival_seconds(self) -> float:
        arrivals = self.result.requests.arrival_seconds
        return float(arrivals[-1]) if len(arrivals) else 0.0

    @cached_property
    def windows(self) -> WindowSeries:
        """What the requests of each window felt."""
        rows = self.result.requests
        width = self.window_seconds
        count = max(math.ceil(self.last_arrival_seconds / width), 1)
        edges = np.arange(count + 1) * width
        bounds = np.searchsorted(rows.arrival_seconds, edges)
        parts = [slice(first, last) for first, last in pairwise(bounds)]
        ttft = np.where(rows.succeeded, rows.ttft_seconds, np.nan)
        tpot = np.where(rows.succeeded & (rows.output_tokens > 1), rows.tpot_seconds, np.nan)
        return WindowSeries(
            end_seconds=tuple(edges[1:].tolist()),
            requests_per_second=tuple((np.diff(bounds) / width).tolist()),
            ttft_p50_seconds=tuple(_percentile(ttft[part], 50) for part in parts),
            ttft_p95_seconds=tuple(_percentile(ttft[part], 95) for part in parts),
            tpot_p95_seconds=tuple(_percentile(tpot[part], 95) for part in parts),
            attainment=tuple(float(met.mean()) if len(met := self.result.met[part]) else None for part in parts),
        )

    @cached_property
    def pools(self) -> dict[str, PoolSeries]:
        """Workers of each pool over time."""
        roles = [role for role in Role if any(worker.role is role for worker in self.result.workers)]
        return {
            str(role): _pool_series([worker for worker in self.result.workers if worker.role is role]) for role in roles
        }

    @cached_property
    def gpus(self) -> tuple[tuple[float, int], ...]:
        """GPUs that are paid for, from each second on."""
        return gpu_series(self.result.workers, end_seconds=self.result.end_seconds)

    def document(self) -> dict[str, Any]:
        """Every figure and series, as JSON values."""
        return {
            "name": self.name,
            "seed": self.result.seed,
            "digest": self.result.digest(),
            "wall_seconds": round(self.wall_seconds, 3),
            "end_seconds": self.result.end_seconds,
            "warm_up_seconds": self.result.warm_up_seconds,
            "figures": asdict(self.figures),
            "windows": {"window_seconds": self.window_seconds, **asdict(self.windows)},
            "pools": {name: asdict(series) for name, series in self.pools.items()},
            "gpus": [{"since_seconds": since, "gpus": held} for since, held in self.gpus],
            "scale_actions": [asdict(decision) for decision in self.scale_actions],
            "counters": dict(self.result.counters),
        }


def gpu_series(workers: tuple[WorkerLife, ...], *, end_seconds: float) -> tuple[tuple[float, int], ...]:
    """GPUs held from each second on, until the end."""
    changes = [(worker.scheduled_seconds, worker.gpus) for worker in workers]
    changes += [(worker.gone_seconds, -worker.gpus) for worker in workers if worker.gone_seconds < end_seconds]
    return tuple((moment, held) for moment, (held,) in _accumulated([(at, (change,)) for at, change in changes]))


def _pool_series(workers: list[WorkerLife]) -> PoolSeries:
    changes: list[tuple[float, tuple[int, ...]]] = []
    for worker in workers:
        ready = worker.ready_seconds
        changes.append((worker.scheduled_seconds, (0, 1)))
        if ready is not None and ready <= worker.gone_seconds:
            changes.append((ready, (1, -1)))
            changes.append((worker.gone_seconds, (-1, 0)))
        else:
            changes.append((worker.gone_seconds, (0, -1)))
    last = max((worker.gone_seconds for worker in workers), default=0.0)
    series = [(moment, held) for moment, held in _accumulated(changes) if moment < last]
    return PoolSeries(
        seconds=tuple(moment for moment, _ in series),
        ready=tuple(held[0] for _, held in series),
        starting=tuple(held[1] for _, held in series),
    )


def _accumulated(changes: list[tuple[float, tuple[int, ...]]]) -> list[tuple[float, tuple[int, ...]]]:
    """Sums of changes up to each moment, one entry a moment."""
    series: list[tuple[float, tuple[int, ...]]] = []
    for moment, change in sorted(changes, key=lambda each: each[0]):
        before = series[-1][1] if series else (0,) * len(change)
        after = tuple(held + more for held, more in zip(before, change, strict=True))
        if series and series[-1][0] == moment:
            series[-1] = (moment, after)
        else:
            series.append((moment, after))
    return series


def _percentile(values: FloatColumn, percent: float) -> float | None:
    values = values[~np.isnan(values)]
    return float(np.percentile(values, percent)) if len(values) else None


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
