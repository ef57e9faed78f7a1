"""What scaling.mode makes of a decision.

Invariant: a change of mode changes no count by itself: what Recommend and Manual hold is the present count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from duet_operator.planner.guards import first_prefill
from duet_operator.planner.types import Counts

if TYPE_CHECKING:
    from duet_operator.planner.types import Decision, Observation, PlanSpec

Mode = Literal["Auto", "Recommend", "Manual"]


def apply_mode(mode: Mode, decision: Decision, observation: Observation, spec: PlanSpec) -> Counts:
    """The counts to bring about: the decision's, the present ones, or the user's."""
    present = observation.present
    if mode == "Auto":
        return Counts(decision.prefill.replicas, decision.decode.replicas)
    if mode == "Recommend":
        return present
    prefill, decode = spec.prefill.manual_replicas, spec.decode.manual_replicas
    return Counts(present.prefill if prefill is None else prefill, present.decode if decode is None else decode)


def initial_counts(mode: Mode, spec: PlanSpec) -> Counts:
    """The counts to create the pools with: enough for a first request whether or not decode workers take prompts."""
    smallest = Counts(max(spec.prefill.min_replicas, first_prefill(spec)), max(spec.decode.min_replicas, 1))
    if mode != "Manual":
        return smallest
    prefill, decode = spec.prefill.manual_replicas, spec.decode.manual_replicas
    return Counts(smallest.prefill if prefill is None else prefill, smallest.decode if decode is None else decode)
