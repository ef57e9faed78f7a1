"""Whether a size holds in a simulation, and whether a smaller one would: the law's answer, tried out.

Invariant: every trial runs the same requests with the same seed; the outcome is the cheapest size that was tried and
held the goal, and its neighbours with one worker less are among those that were tried, unless the trials ran out.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from duet_engine.simulator.run import simulate
from duet_engine.simulator.workload import limited, sped_up
from duet_operator.planner.types import Counts
from duet_operator.simulation.variants import ROUTINGS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from duet_engine.simulator.workload import Request
    from duet_operator.simulation.sizing import LoadSummary
    from duet_operator.simulation.study import Study

MOST_TRIALS = 14
LEAD_SECONDS = 30.0
"""Before the window, to fill the workers; not judged."""
LEAD_SHARE = 0.1
"""Of the window, where it is the workload's beginning."""
MOST_REQUESTS = 20_000
SPEEDS = (1.05, 1.1, 1.2, 1.35, 1.5, 2.0)
STEP_SHARE = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One simulated size."""

    counts: Counts
    speed: float
    attainment: float
    ttft_attainment: float
    itl_attainment: float
    ttft_p95_seconds: float
    tpot_p95_seconds: float
    requests: int


@dataclass(slots=True)
class Verifier:
    """Tries sizes of one study under one window of its workload."""

    study: Study
    summary: LoadSummary
    told: Callable[[Trial], None] = lambda _: None
    trials: list[Trial] = field(default_factory=list)

    def settle(self, counts: Counts) -> Trial | None:
        """From the law's answer to the smallest size that holds; None where none did within the trials."""
        trial = self._trial(counts)
        while not self._holds(trial):
            if len(self.trials) >= MOST_TRIALS // 2:
                return None
            trial = self._trial(self._grown(trial))
        improved = True
        while improved and len(self.trials) < MOST_TRIALS:
            improved = False
            for fewer in self._fewer(trial.counts):
                candidate = self._trial(fewer)
                if self._holds(candidate):
                    trial, improved = candidate, True
                    break
        return trial

    def headroom(self, counts: Counts) -> float:
        """How much more load these counts held in a simulation, as a share; 0 where not even 5 % more did."""
        held = 1.0
        for speed in SPEEDS:
            if not self._holds(self._trial(counts, speed=speed)):
                break
            held = speed
        return held - 1.0

    def _holds(self, trial: Trial) -> bool:
        return trial.attainment >= self.study.spec.attainment_goal

    def _grown(self, trial: Trial) -> Counts:
        """More of what misses: decode where tokens come too slowly, else prefill where there is such a pool."""
        counts = trial.counts
        if trial.itl_attainment < trial.ttft_attainment or self.study.prefill is None:
            return Counts(counts.prefill, counts.decode + _step(counts.decode))
        return Counts(counts.prefill + _step(counts.prefill), counts.decode)

    def _fewer(self, counts: Counts) -> list[Counts]:
        """Neighbours with less of one pool, the dearer worker first."""
        spec = self.study.spec
        fewer = []
        if counts.decode > 1:
            fewer.append((spec.decode.gpus_per_replica, Counts(counts.prefill, counts.decode - _step(counts.decode))))
        if counts.prefill > (0 if spec.deflection_enabled else 1):
            left = counts.prefill - _step(counts.prefill)
            fewer.append((spec.prefill.gpus_per_replica, Counts(left, counts.decode)))
        return [counts for _, counts in sorted(fewer, key=lambda each: -each[0])]

    def _trial(self, counts: Counts, *, speed: float = 1.0) -> Trial:
        known = next((trial for trial in self.trials if trial.counts == counts and trial.speed == speed), None)
        if known is not None:
            return known
        study = self.study.with_start(counts)
        warm_up_seconds = (self._judged_from_seconds - self._begin_seconds) / speed
        scenario = replace(study.scenario(ROUTINGS["duet"]), warm_up_seconds=warm_up_seconds)
        result = simulate(scenario, sped_up(self._requests(), speed))
        judged = result.judged
        trial = Trial(
            counts=counts,
            speed=speed,
            attainment=result.attainment or 0.0,
            ttft_attainment=float(result.ttft_met[judged].mean()),
            itl_attainment=float(result.itl_met[judged].mean()),
            ttft_p95_seconds=result.ttft_percentile(95),
            tpot_p95_seconds=result.tpot_percentile(95),
            requests=int(judged.sum()),
        )
        self.trials.append(trial)
        self.told(trial)
        return trial

    def _requests(self) -> Iterator[Request]:
        """The busiest window and what leads to it, from time 0 on."""
        summary, begin = self.summary, self._begin_seconds
        seconds = min(summary.window_seconds, MOST_REQUESTS / summary.requests_per_second)
        for request in limited(self.study.workload.requests(), summary.start_seconds + seconds):
            if request.arrival_seconds >= begin:
                yield replace(request, arrival_seconds=request.arrival_seconds - begin)

    @property
    def _begin_seconds(self) -> float:
        return max(self.summary.start_seconds - LEAD_SECONDS, 0.0)

    @property
    def _judged_from_seconds(self) -> float:
        """The window's start, or where nothing leads to it, a little later."""
        return max(self.summary.start_seconds, min(LEAD_SECONDS, LEAD_SHARE * self.summary.window_seconds))


def _step(count: int) -> int:
    return max(round(STEP_SHARE * count), 1)
