"""The load to be ready for: what is expected after a cold start, what waits already, and the learned correction.

Invariant: what arrives within one TTFT objective may wait and is no backlog, so a pool that works as intended has none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from duet_operator.planner.bursts import Bursts, expected_bursts
from duet_operator.planner.correction import corrected
from duet_operator.planner.forecast import forecast
from duet_operator.planner.load import Load

if TYPE_CHECKING:
    from duet_operator.planner.lengths import Lengths
    from duet_operator.planner.types import Demand, Observation, PlannerMemory, PlanSpec

SHORTEST_CLEARING_SECONDS = 30.0
BACKLOG_SHARE = 0.25
"""From this share of the expected load on, the backlog is what a growth is for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """The load to be ready for, by its parts."""

    horizon_seconds: float
    expected: Load
    backlog: Load
    bursts: Bursts
    correction: float

    @property
    def load(self) -> Load:
        """All of it, corrected."""
        return (self.expected + self.backlog).at_least(self.bursts.load).scaled(self.correction)

    @property
    def kept_for_bursts(self) -> bool:
        """Whether it's bursts to come, and not the load to come, that ask for most."""
        calm = self.expected + self.backlog
        return self.bursts.load.input_tokens > calm.input_tokens or self.bursts.load.output_tokens > calm.output_tokens

    @property
    def backlogged(self) -> bool:
        """Whether what waits is a good part of it."""
        return (
            self.backlog.input_tokens > BACKLOG_SHARE * self.expected.input_tokens
            or self.backlog.output_tokens > BACKLOG_SHARE * self.expected.output_tokens
        )


def look_ahead(
    observation: Observation, demand: Demand, *, memory: PlannerMemory, spec: PlanSpec, lengths: Lengths
) -> Outlook:
    """What new workers will meet when they are ready."""
    horizon = (observation.cold_start_p90_seconds or spec.cold_start_guess_seconds) + spec.interval_seconds
    expected = forecast(memory.samples, horizon_seconds=horizon, window_seconds=demand.window_seconds)
    bursts = expected_bursts(
        memory.samples,
        now_seconds=observation.now_seconds,
        window_seconds=demand.window_seconds,
        lead_seconds=horizon,
        kept_seconds=spec.stabilization_seconds,
        miss_share=1 - spec.attainment_goal,
    )
    return Outlook(
        horizon_seconds=horizon,
        bursts=bursts,
        expected=expected,
        backlog=_backlog(observation, demand, expected=expected, lengths=lengths, horizon_seconds=horizon, spec=spec),
        correction=corrected(memory.correction, observation, spec, horizon_seconds=horizon),
    )


def _backlog(
    observation: Observation,
    demand: Demand,
    *,
    expected: Load,
    lengths: Lengths,
    horizon_seconds: float,
    spec: PlanSpec,
) -> Load:
    """What waits beyond the usual, spread over the time in which it should be gone once new workers are there."""
    clearing_seconds = max(horizon_seconds, SHORTEST_CLEARING_SECONDS)
    usual_seconds = spec.objective.ttft_seconds
    queued = observation.prefill.queued_prefill_tokens + observation.decode.queued_prefill_tokens
    late_tokens = max(demand.waiting_tokens + queued - expected.input_tokens * usual_seconds, 0.0)
    late_requests = max(demand.waiting_requests - expected.requests * usual_seconds, 0.0)
    return Load(
        requests=late_requests / clearing_seconds,
        input_tokens=late_tokens / clearing_seconds,
        output_tokens=late_requests * lengths.output_tokens / clearing_seconds,
    )
