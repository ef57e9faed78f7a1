"""How many workers a load needs, by the law that the live planner sizes with.

Invariant: pure. The same capacities as in the operator (`planner.capacity`, `planner.sizing`), for one load that lasts;
what a simulation of the answer says is `verification`'s.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from duet_engine.perf.interface import Basis, weakest
from duet_engine.protocol import Role
from duet_operator.planner.capacity import MOST_REPLICAS, Fleet
from duet_operator.planner.lengths import Lengths
from duet_operator.planner.load import Load
from duet_operator.planner.sizing import Limits, carries, deflected_share, size
from duet_operator.planner.types import Counts

if TYPE_CHECKING:
    from collections.abc import Iterable

    from duet_engine.simulator.workload import Request
    from duet_operator.simulation.study import Study

HIGHEST_HEADROOM = 16.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSummary:
    """The busiest window of a workload, which a size must carry."""

    start_seconds: float
    window_seconds: float
    requests_per_second: float
    mean_requests_per_second: float
    """Over the whole workload."""
    mean_input_tokens: float
    p95_input_tokens: float
    mean_output_tokens: float

    def load(self, factor: float = 1.0) -> Load:
        """As the planner takes it; nothing counts as cached."""
        rate = self.requests_per_second * factor
        return Load(
            requests=rate,
            input_tokens=rate * self.mean_input_tokens,
            output_tokens=rate * self.mean_output_tokens,
        )

    @property
    def lengths(self) -> Lengths:
        return Lengths(
            input_tokens=self.mean_input_tokens,
            cached_tokens=0.0,
            output_tokens=self.mean_output_tokens,
            p95_input_tokens=self.p95_input_tokens,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the law says of one load on one kind of workers."""

    counts: Counts
    gpus: int
    feasible: bool
    misses: str
    """The objective that not even one request alone meets; empty where there is none."""
    headroom: float
    """So many times the load would still be carried, less one."""
    deflected_share: float
    input_capacity: float
    """Tokens per second of one prefill worker within TTFT."""
    output_capacity: float
    """Tokens per second of one decode worker within ITL."""
    basis: Basis


def summarise(requests: Iterable[Request], *, window_seconds: float) -> LoadSummary:
    """The window of this length with most work in it, by tokens in and out against their means.

    Raises:
        ValueError: for a workload without requests.
    """
    rows = np.array([(each.arrival_seconds, each.input_tokens, each.output_tokens) for each in requests], dtype=float)
    if not len(rows):
        raise ValueError("workload: has no requests")
    arrivals, inputs, outputs = rows.T
    last = float(arrivals[-1])
    window = min(window_seconds, max(last, 1.0))
    work = np.concatenate([[0.0], np.cumsum(inputs / inputs.mean() + outputs / outputs.mean())])
    ends = np.searchsorted(arrivals, arrivals + window)
    whole = arrivals <= max(last - window, 0.0)
    busiest = int(np.argmax(np.where(whole, work[ends] - work[:-1], -1.0)))
    inside = slice(busiest, int(ends[busiest]))
    return LoadSummary(
        start_seconds=float(arrivals[busiest]),
        window_seconds=window,
        requests_per_second=(inside.stop - inside.start) / window,
        mean_requests_per_second=len(rows) / max(last, 1.0),
        mean_input_tokens=float(inputs[inside].mean()),
        p95_input_tokens=float(np.percentile(inputs[inside], 95)),
        mean_output_tokens=float(outputs[inside].mean()),
    )


def answer(study: Study, summary: LoadSummary, *, factor: float = 1.0) -> Answer:
    """The cheapest pools that carry `factor` times this load."""
    fleet, limits = _fleet(study, summary), _limits(study)
    load = summary.load(factor)
    sized = size(load, fleet=fleet, limits=limits, present=Counts(0, 0))
    counts = sized.counts
    share = deflected_share(load, fleet, counts)
    return Answer(
        counts=counts,
        gpus=limits.gpus_of(counts),
        feasible=sized.feasible and fleet.itl_feasible and fleet.ttft_feasible,
        misses=_misses(fleet),
        headroom=headroom(study, summary, counts, factor=factor),
        deflected_share=share,
        input_capacity=fleet.input_capacity(1),
        output_capacity=fleet.output_capacity(1),
        basis=_basis(study, share),
    )


def headroom(study: Study, summary: LoadSummary, counts: Counts, *, factor: float = 1.0) -> float:
    """How much more than `factor` times the load these counts carry by the law, as a share of it."""
    fleet = _fleet(study, summary)
    low, high = 0.0, HIGHEST_HEADROOM
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (middle, high) if carries(summary.load(middle * factor), fleet, counts) else (low, middle)
    return low - 1.0


def with_objective(study: Study, *, ttft: float = 1.0, itl: float = 1.0) -> Study:
    """The study with objectives so many times as long."""
    objective = study.spec.objective
    changed = replace(objective, ttft_seconds=objective.ttft_seconds * ttft, itl_seconds=objective.itl_seconds * itl)
    return replace(study, spec=replace(study.spec, objective=changed))


def _fleet(study: Study, summary: LoadSummary) -> Fleet:
    performance = study.performance
    decode = performance.decode
    assert decode is not None
    return Fleet(
        prefill=performance.prefill or decode,
        decode=decode,
        lengths=summary.lengths,
        objective=study.spec.objective,
        attainment_goal=study.spec.attainment_goal,
        deflection=study.spec.deflection_enabled,
    )


def _limits(study: Study) -> Limits:
    """No bounds of today's: the answer is what they should be. Without prefill workers in the study there are none."""
    most = MOST_REPLICAS if study.prefill is not None else 0
    fewest_prefill = 0 if study.spec.deflection_enabled else 1
    gpus = Counts(
        study.prefill.hardware.ranks if study.prefill else study.decode.hardware.ranks, study.decode.hardware.ranks
    )
    return Limits(
        lowest=Counts(min(fewest_prefill, most), 1), highest=Counts(most, MOST_REPLICAS), gpus=gpus, cost=gpus
    )


def _basis(study: Study, share: float) -> Basis:
    """The weakest of the step times that this answer uses: chunks beside decode only where prompts are deflected."""
    used = [basis for use, basis in study.bases.items() if use in (Role.PREFILL, Role.DECODE, Role.UNIFIED)]
    return weakest(*used, *([study.decode.mixed_basis] if share > 0 or study.prefill is None else []))


def _misses(fleet: Fleet) -> str:
    if not fleet.itl_feasible:
        return "ITL"
    return "" if fleet.ttft_feasible else "TTFT"
