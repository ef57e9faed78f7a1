"""Runs the variants of a study, one after the other, on the same requests.

Invariant: each variant gets a fresh stream of the same workload, so differences come from the variants alone.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

from duet_engine.simulator.run import simulate
from duet_engine.traces import SkippedLines
from duet_operator.simulation.outcome import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from duet_operator.simulation.study import Study, Variant

    Progress = Callable[[float], None]


def run(study: Study, variant: Variant, *, progress: Progress | None = None) -> tuple[Outcome, SkippedLines]:
    """One variant; `progress` hears the second of the run that was reached.

    Raises:
        TraceError: for a bad line of the workload's trace.
    """
    started, skipped = perf_counter(), SkippedLines()

    def tell(reached_seconds: float, _: int) -> None:
        if progress is not None:
            progress(reached_seconds)

    result = simulate(study.scenario(variant), study.workload.requests(skipped=skipped), progress=tell)
    return Outcome(variant.name, result, perf_counter() - started), skipped
