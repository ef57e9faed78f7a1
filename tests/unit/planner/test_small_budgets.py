"""Budgets with room for one worker: it's a decode worker, which takes prompts too."""

from tests.support.planning import decide, demand, seen, spec

from duet_operator.planner.mode import initial_counts
from duet_operator.planner.types import Counts


def test_a_budget_of_one_gpu_goes_to_decode() -> None:
    small = spec(max_gpus=1)
    assert initial_counts("Auto", small) == Counts(0, 1)
    decision = decide(seen(0, 1, demand=demand(0.1), deflection_active=False), spec=small)
    assert (decision.prefill.replicas, decision.decode.replicas) == (0, 1)


def test_without_deflection_prefill_is_needed_whatever_the_budget() -> None:
    assert initial_counts("Auto", spec(max_gpus=1, deflection_enabled=False)) == Counts(1, 1)


def test_a_budget_with_room_for_both_starts_both() -> None:
    assert initial_counts("Auto", spec(max_gpus=2)) == Counts(1, 1)
