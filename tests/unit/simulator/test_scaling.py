"""Pools do what a planner asks: growth adds to what is there, and shrinking takes no more than that."""

from dataclasses import replace
from itertools import pairwise

import pytest
from tests.support.small_fleets import pairs

from duet_engine.simulator.run import simulate
from duet_engine.simulator.scenario import ColdStart, Observation, Replicas
from duet_engine.simulator.workload import Request


@pytest.mark.parametrize("course", [(3, 4, 4), (3, 3, 5), (3, 1, 2), (3, 2, 6)])
def test_counts_follow_the_planner_and_ready_workers_stay_through_a_growth(course: tuple[int, ...]) -> None:
    seen: list[Observation] = []

    class Course:
        def plan(self, observation: Observation) -> Replicas:
            seen.append(observation)
            wanted = course[min(len(seen) - 1, len(course) - 1)]
            return Replicas(prefill=wanted, decode=wanted)

    fleet = pairs(course[0], course[0], planner=Course, planner_interval_seconds=1.0)
    slow = ColdStart(seconds=60.0, spread_seconds=0.0)
    assert fleet.prefill is not None
    fleet = replace(
        fleet,
        prefill=replace(fleet.prefill, cold_start=slow),
        decode=replace(fleet.decode, cold_start=slow),
    )
    simulate(fleet, [Request(0.1 * index, 100, 5) for index in range(60)], audit=True)
    for before, after in pairwise(seen[1:]):
        for pool, later in ((before.prefill, after.prefill), (before.decode, after.decode)):
            if later.replicas >= pool.replicas:
                assert later.ready >= pool.ready
            assert later.ready + later.starting == later.replicas
