"""The cheapest numbers of workers, against trying all of them."""

from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.planning import SLICE, WHOLE

from duet_engine.slo import Objective
from duet_operator.planner.capacity import Fleet
from duet_operator.planner.lengths import Lengths
from duet_operator.planner.load import Load
from duet_operator.planner.sizing import Limits, carries, size, within_budget
from duet_operator.planner.types import Counts

MOST = 7


def fleet(*, deflection: bool, whole: bool, input_tokens: float, output_tokens: float) -> Fleet:
    worker = WHOLE if whole else SLICE
    return Fleet(
        prefill=worker,
        decode=worker,
        lengths=Lengths(
            input_tokens=input_tokens,
            cached_tokens=0,
            output_tokens=output_tokens,
            p95_input_tokens=2 * input_tokens,
        ),
        objective=Objective(ttft_seconds=0.8, itl_seconds=0.05),
        attainment_goal=0.99,
        deflection=deflection,
    )


@settings(deadline=None, max_examples=60)
@given(
    rate=st.floats(0, 60),
    input_tokens=st.floats(10, 5000),
    output_tokens=st.floats(1, 1000),
    deflection=st.booleans(),
    whole=st.booleans(),
    lowest=st.tuples(st.integers(0, 2), st.integers(1, 2)),
    cost=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    max_gpus=st.none() | st.integers(4, 12),
)
def test_no_size_within_the_limits_costs_less(
    rate: float,
    input_tokens: float,
    output_tokens: float,
    deflection: bool,
    whole: bool,
    lowest: tuple[int, int],
    cost: tuple[int, int],
    max_gpus: int | None,
) -> None:
    workers = fleet(deflection=deflection, whole=whole, input_tokens=input_tokens, output_tokens=output_tokens)
    load = Load(requests=rate, input_tokens=rate * input_tokens, output_tokens=rate * output_tokens)
    limits = Limits(
        lowest=Counts(*lowest),
        highest=Counts(MOST, MOST),
        gpus=Counts(1, 1),
        cost=Counts(*cost),
        max_gpus=max_gpus,
    )
    every = [Counts(prefill, decode) for prefill, decode in product(range(MOST + 1), repeat=2)]
    feasible = [counts for counts in every if limits.allow(counts) and carries(load, workers, counts)]
    found = size(load, fleet=workers, limits=limits, present=Counts(1, 1))
    assert found.feasible == bool(feasible)
    if feasible:
        assert found.counts in feasible
        assert limits.cost_of(found.counts) == min(map(limits.cost_of, feasible))
    else:
        assert found.counts.at_least(limits.lowest) == found.counts
        assert found.counts.at_most(limits.highest) == found.counts


def test_past_what_the_bounds_carry_decode_workers_still_take_prompts() -> None:
    """Else more load would get fewer workers."""
    workers = fleet(deflection=True, whole=True, input_tokens=2000, output_tokens=100)
    limits = Limits(lowest=Counts(0, 1), highest=Counts(2, MOST), gpus=Counts(1, 1), cost=Counts(1, 1))
    found = [
        size(
            Load(requests=rate, input_tokens=2000.0 * rate, output_tokens=100.0 * rate),
            fleet=workers,
            limits=limits,
            present=Counts(1, 1),
        )
        for rate in range(1, 120)
    ]
    costs = [limits.cost_of(each.counts) for each in found]
    assert {each.feasible for each in found} == {True, False}
    assert costs == sorted(costs)


def test_equally_cheap_sizes_keep_what_is_there() -> None:
    """Noise mustn't trade one pool for the other."""
    workers = fleet(deflection=True, whole=True, input_tokens=1000, output_tokens=200)
    limits = Limits(lowest=Counts(0, 1), highest=Counts(20, 20), gpus=Counts(1, 1), cost=Counts(1, 1))
    kept = 0
    for rate in range(1, 120):
        load = Load(requests=rate, input_tokens=1000.0 * rate, output_tokens=200.0 * rate)
        best = size(load, fleet=workers, limits=limits, present=Counts(0, 0)).counts
        for present in (Counts(best.prefill + 1, best.decode - 1), Counts(best.prefill - 1, best.decode + 1)):
            if present.prefill >= 0 and present.decode >= 1 and carries(load, workers, present):
                kept += size(load, fleet=workers, limits=limits, present=present).counts == present
    assert kept > 10


@given(
    counts=st.tuples(st.integers(0, 30), st.integers(0, 30)),
    lowest=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    gpus=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    max_gpus=st.integers(1, 100),
)
def test_budget_clamp_never_breaks_minima_and_fits_where_it_can(
    counts: tuple[int, int], lowest: tuple[int, int], gpus: tuple[int, int], max_gpus: int
) -> None:
    least = Counts(*lowest)
    limits = Limits(lowest=least, highest=Counts(30, 30), gpus=Counts(*gpus), cost=Counts(1, 1), max_gpus=max_gpus)
    wanted = Counts(*counts).at_least(least)
    clamped = within_budget(wanted, limits)
    assert clamped.at_least(least) == clamped
    assert clamped.at_most(wanted) == clamped
    assert limits.gpus_of(clamped) <= max(max_gpus, limits.gpus_of(least))
    if limits.gpus_of(wanted) <= max_gpus:
        assert clamped == wanted
