"""One finished run of the demo, and what follows from it: the bill, the criteria and the exit status.

Invariant: pure. Everything is taken over the load's own window, from the first request sent to the last answer, so
neither start-up nor tidying up is billed or forgiven. A run whose clock can't be trusted (a loop that lagged) is
neither passed nor failed but invalid.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum

from duet_dev.demo.observations import (
    Lease,
    PoolCounts,
    Sample,
    ScaleAction,
    fell,
    gpu_seconds,
    gpus_over_time,
    rose_and_fell,
)
from duet_dev.demo.results import Figures, Results

HIGHEST_GPU_HOURS_RATIO = 0.8
SECONDS_PER_HOUR = 3600.0


class ExitStatus(IntEnum):
    """What the demo tells the shell."""

    PASSED = 0
    FAILED = 1
    INVALID = 3


@dataclass(frozen=True, slots=True)
class Criterion:
    """One thing that a run is judged by, with its numbers in words. Only required ones decide the exit status."""

    name: str
    passed: bool
    text: str
    required: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Everything that a run left behind."""

    results: Results
    samples: Sequence[Sample]
    actions: Sequence[ScaleAction]
    leases: Sequence[Lease]
    attainment_goal: float
    bundled: bool
    """Whether the arrivals were the bundled sample, whose outcome is known to be possible."""
    planned_requests: int
    gateway_lag_seconds: float
    """P99 of the lateness of the slower gateway's event loop, over its life."""
    highest_loop_lag_seconds: float = 0.020
    """Beyond it the clocks of gateway and load generator aren't trusted."""

    @property
    def start_seconds(self) -> float:
        return min(record.sent_at_seconds for record in self.results.records)

    @property
    def end_seconds(self) -> float:
        return max(record.ended_at_seconds for record in self.results.records)

    @property
    def duration_seconds(self) -> float:
        return self.end_seconds - self.start_seconds

    @property
    def loaded_samples(self) -> list[Sample]:
        return [sample for sample in self.samples if self.start_seconds <= sample.time_seconds <= self.end_seconds]

    @property
    def loaded_actions(self) -> list[ScaleAction]:
        return [action for action in self.actions if self.start_seconds <= action.time_seconds <= self.end_seconds]

    @property
    def figures(self) -> Figures:
        return self.results.figures(self.start_seconds, self.end_seconds + 1e-3)

    @property
    def gpu_hours(self) -> float:
        return gpu_seconds(self.leases, self.start_seconds, self.end_seconds) / SECONDS_PER_HOUR

    @property
    def gpu_steps(self) -> list[tuple[float, int]]:
        return gpus_over_time(self.leases, self.start_seconds, self.end_seconds)

    @property
    def peak_gpus(self) -> int:
        return max(held for _, held in self.gpu_steps)

    @property
    def peak_gpu_hours(self) -> float:
        """The bill of a fleet that is always as large as this one was at its largest."""
        return self.peak_gpus * self.duration_seconds / SECONDS_PER_HOUR

    @property
    def gpu_hours_ratio(self) -> float:
        return self.gpu_hours / self.peak_gpu_hours if self.peak_gpu_hours else 1.0

    @property
    def generator_lag_seconds(self) -> float:
        return self.results.pulse.loop_lag_p99_seconds if self.results.pulse else 0.0

    def criteria(self) -> list[Criterion]:
        """In the order of a reader's questions."""
        optional = self.bundled
        return [
            self._complete(),
            self._attained(required=optional),
            self._resized(),
            self._cheaper(required=optional),
        ]

    def exit_status(self) -> ExitStatus:
        if not self.clock().passed:
            return ExitStatus.INVALID
        missed = any(criterion.required and not criterion.passed for criterion in self.criteria())
        return ExitStatus.FAILED if missed else ExitStatus.PASSED

    def clock(self) -> Criterion:
        """Whether times that were measured here mean anything."""
        worst = max(self.generator_lag_seconds, self.gateway_lag_seconds)
        return Criterion(
            "trustworthy clock",
            worst <= self.highest_loop_lag_seconds,
            f"loop lag P99: load generator {1000 * self.generator_lag_seconds:.1f} ms, "
            f"gateways {1000 * self.gateway_lag_seconds:.1f} ms "
            f"(at most {1000 * self.highest_loop_lag_seconds:.0f} ms)",
        )

    def _complete(self) -> Criterion:
        failed = len(self.results.failed)
        ended = len(self.results.records)
        return Criterion(
            "no request failed",
            failed == 0 and ended == self.planned_requests,
            f"{failed} of {self.planned_requests} requests failed"
            + (f", {self.planned_requests - ended} never ended" if ended < self.planned_requests else ""),
        )

    def _attained(self, *, required: bool) -> Criterion:
        attained = self.figures.attainment or 0.0
        return Criterion(
            "attainment",
            attained >= self.attainment_goal,
            f"{attained:.2%} of the requests met TTFT and ITL (goal {self.attainment_goal:.2%})",
            required,
        )

    def _resized(self) -> Criterion:
        prefill, decode = self._pool("prefill"), self._pool("decode")
        text = f"ready workers: prefill {_course(prefill)}, decode {_course(decode)}"
        if not self.bundled:
            # A pool that merely lost a worker is no scale-down: somebody must have decided it.
            decided = any(action.to_replicas < action.from_replicas for action in self.loaded_actions)
            return Criterion("a pool shrank", decided and (fell(prefill) or fell(decode)), text)
        split = [one / max(one + other, 1) for one, other in zip(prefill, decode, strict=True)]
        moved = rose_and_fell(split) or (rose_and_fell(prefill) and rose_and_fell(decode))
        return Criterion("both pools or their split rose and fell", moved, text)

    def _cheaper(self, *, required: bool) -> Criterion:
        return Criterion(
            "GPU-hours",
            self.gpu_hours_ratio <= HIGHEST_GPU_HOURS_RATIO,
            f"{self.gpu_hours:.3f} GPU-hours billed, {self.gpu_hours_ratio:.2f} x the {self.peak_gpu_hours:.3f} of "
            f"{self.peak_gpus} held all the time (at most {HIGHEST_GPU_HOURS_RATIO:.2f} x)",
            required,
        )

    def _pool(self, name: str) -> list[int]:
        counts: Iterable[PoolCounts] = (getattr(sample, name) for sample in self.loaded_samples)
        return [pool.ready for pool in counts]


def _course(counts: Sequence[int]) -> str:
    """The turning points of a pool's size: `1→4→2`."""
    if not counts:
        return "unknown"
    course = [counts[0]]
    for count in counts[1:]:
        if count == course[-1]:
            continue
        if len(course) > 1 and (course[-1] > course[-2]) == (count > course[-1]):
            course[-1] = count
        else:
            course.append(count)
    return "→".join(map(str, course))
