"""Workers beyond the need, `scaling.spareReplicas`: room for a burst or a loss that a cold start is too slow for.

Invariant: with n spares the load is still carried when n workers of one pool are taken away. A prefill pool that the
load needs nothing of keeps none, because spare decode workers take prompts too; nor does a decode pool that sleeps.
Whether there is room for spares is the guards' matter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from duet_operator.planner.capacity import fewest
from duet_operator.planner.sizing import carries, size
from duet_operator.planner.types import Counts

if TYPE_CHECKING:
    from duet_operator.planner.capacity import Fleet
    from duet_operator.planner.load import Load
    from duet_operator.planner.sizing import Limits, Sizing
    from duet_operator.planner.types import PlanSpec


def size_with_spares(
    load: Load, *, fleet: Fleet, limits: Limits, present: Counts, spec: PlanSpec
) -> tuple[Sizing, Counts]:
    """What the load needs within the limits, and the same with the spares that are wished for beyond it."""
    need = size(load, fleet=fleet, limits=limits, present=present)
    spare = spec.spare_replicas
    if spare == 0 or not need.feasible:
        return need, need.counts
    counts = need.counts
    # Without deflection a first prompt needs a prefill worker even when none is expected.
    first_prefill, first_decode = int(not spec.deflection_enabled), 1
    prefill = fewest(lambda replicas: carries(load, fleet, Counts(replicas, counts.decode)), most=counts.prefill)
    decode = fewest(lambda replicas: carries(load, fleet, Counts(counts.prefill, replicas)), most=counts.decode)
    wished = Counts(
        _spared(counts.prefill, max(prefill, first_prefill), spare),
        _spared(counts.decode, max(decode, first_decode), spare),
    )
    return need, wished


def _spared(count: int, own_need: int, spare: int) -> int:
    """A pool's count with its spares. Workers of a minimum that the load doesn't need are spares already."""
    return max(count, own_need + spare) if count > 0 and own_need > 0 else count
