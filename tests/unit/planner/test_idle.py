"""Scale to zero: the last worker goes once it has been quiet, and the first request brings it back."""

from __future__ import annotations

from dataclasses import replace

from tests.support.planning import SLICES, bounds, demand, spec

from duet_operator.planner.plan import plan
from duet_operator.planner.spec import while_awake
from duet_operator.planner.types import Counts, Demand, Observation, PlannerMemory, PoolState

ASKED = demand(1.0)
QUIET = replace(ASKED, requests_per_second=0.0, input_tokens_per_second=0.0, output_tokens_per_second=0.0)
ASLEEP = spec(decode=bounds(0, 8), idle_seconds=600.0)


class Fleet:
    """Counts that follow the planner at once."""

    def __init__(self) -> None:
        self.now, self.asked_at = 0.0, 0.0
        self.memory = PlannerMemory()
        self.counts = Counts(0, 1)

    def passes(self, seconds: float, asked: Demand) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now += 5.0
            self.asked_at = self.now if asked.requests_per_second else self.asked_at
            present = self.counts
            observation = Observation(
                now_seconds=self.now,
                prefill=PoolState(replicas=present.prefill, ready=present.prefill),
                decode=PoolState(replicas=present.decode, ready=present.decode),
                demand=asked,
                deflection_active=present.decode > 0,
            )
            awake = while_awake(ASLEEP, quiet_seconds=self.now - self.asked_at)
            decided = plan(observation, self.memory, awake, SLICES)
            self.memory = decided.memory
            self.counts = Counts(decided.prefill.replicas, decided.decode.replicas)


def test_the_last_worker_goes_when_it_has_been_quiet_and_the_first_request_brings_it_back() -> None:
    fleet = Fleet()
    fleet.passes(60.0, ASKED)
    fleet.passes(ASLEEP.idle_seconds - 10.0, QUIET)
    assert fleet.counts.decode == 1, "it hasn't been quiet for long enough"
    fleet.passes(ASLEEP.stabilization_seconds + 20.0, QUIET)
    assert fleet.counts == Counts(0, 0)
    fleet.passes(600.0, QUIET)
    assert fleet.counts == Counts(0, 0), "and it stays so"
    fleet.passes(5.0, replace(QUIET, requests_per_second=0.2, waiting_requests=1))
    assert fleet.counts.decode >= 1, "one pass after the first request"
