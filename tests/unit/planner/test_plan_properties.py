"""What holds for every observation, spec and memory."""

from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.planning import SLICE, WHOLE, Toy, bounds, demand, seen, spec

from duet_operator.planner.plan import plan
from duet_operator.planner.reasons import Reason
from duet_operator.planner.sizing import Limits
from duet_operator.planner.types import (
    Attainment,
    Counts,
    DemandSample,
    Need,
    Observation,
    Performance,
    PlannerMemory,
    PlanSpec,
    PoolState,
)

NOW = 1_000_000.0
untimed = settings(deadline=None, max_examples=40)
RATES = st.floats(0, 200)
LENGTHS = st.floats(1, 20_000)


@st.composite
def demands(draw: st.DrawFn) -> Any:
    input_tokens, output_tokens = draw(LENGTHS), draw(st.floats(1, 2000))
    return demand(
        draw(RATES),
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        p95_input_tokens=draw(st.floats(0, 4)) * input_tokens,
        waiting_requests=draw(st.integers(0, 1000)),
        waiting_tokens=draw(st.integers(0, 1_000_000)),
        window_seconds=draw(st.sampled_from([1.0, 5.0, 30.0])),
    )


@st.composite
def pools(draw: st.DrawFn) -> PoolState:
    count = st.integers(0, 12)
    return PoolState(
        replicas=draw(count),
        ready=draw(count),
        starting=draw(count),
        draining=draw(count),
        replacing=draw(count),
        pending_too_long=draw(st.integers(0, 2)),
        queued_prefill_tokens=draw(st.integers(0, 100_000)),
    )


@st.composite
def observations(draw: st.DrawFn) -> Observation:
    return Observation(
        now_seconds=NOW,
        prefill=draw(pools()),
        decode=draw(pools()),
        demand=draw(st.none() | demands()),
        attainment=draw(
            st.none()
            | st.builds(
                Attainment,
                window_seconds=st.just(30.0),
                completed_requests=st.integers(0, 1000),
                met_both_share=st.floats(0, 1),
                ttft_p95_seconds=st.floats(0, 10),
                itl_p95_seconds=st.floats(0, 1),
                capacity_misses=st.integers(0, 1000),
            )
        ),
        complete=draw(st.booleans()),
        cold_start_p90_seconds=draw(st.none() | st.floats(1, 600)),
        rollout_in_progress=draw(st.booleans()),
        deflection_active=draw(st.booleans()),
    )


@st.composite
def specs(draw: st.DrawFn) -> PlanSpec:
    def pool() -> Any:
        lowest = draw(st.integers(0, 4))
        return bounds(
            lowest,
            draw(st.integers(max(lowest, 1), 16)),
            price_per_hour_milli=draw(st.none() | st.integers(0, 9000)),
        )

    return spec(
        prefill=pool(),
        decode=pool(),
        deflection_enabled=draw(st.booleans()),
        stabilization_seconds=draw(st.sampled_from([0.0, 30.0, 180.0])),
        max_gpus=draw(st.none() | st.integers(8, 40)),
        spare_replicas=draw(st.integers(0, 3)),
    )


@st.composite
def memories(draw: st.DrawFn) -> PlannerMemory:
    ages = draw(st.lists(st.floats(-10, 5000), max_size=30))
    return PlannerMemory(
        samples=tuple(
            DemandSample(NOW - age, draw(RATES), draw(st.floats(0, 1e6)), draw(st.floats(0, 1e5)))
            for age in sorted(ages, reverse=True)
        ),
        needs=tuple(
            Need(NOW - age, draw(st.integers(0, 12)), draw(st.integers(0, 12))) for age in sorted(ages, reverse=True)
        ),
        correction=draw(st.floats(0.8, 2.0)),
    )


WORKERS = st.sampled_from([None, SLICE, WHOLE])
PERFORMANCES = st.builds(Performance, prefill=WORKERS, decode=WORKERS)
EVERYTHING = {"observation": observations(), "memory": memories(), "planned": specs(), "performance": PERFORMANCES}


def counts_of(decision: Any) -> Counts:
    return Counts(decision.prefill.replicas, decision.decode.replicas)


@untimed
@given(**EVERYTHING)
def test_minima_always_hold(
    observation: Observation, memory: PlannerMemory, planned: PlanSpec, performance: Performance
) -> None:
    counts = counts_of(plan(observation, memory, planned, performance))
    assert counts.prefill >= planned.prefill.min_replicas
    assert counts.decode >= planned.decode.min_replicas


@untimed
@given(**EVERYTHING)
def test_no_growth_beyond_the_maxima(
    observation: Observation, memory: PlannerMemory, planned: PlanSpec, performance: Performance
) -> None:
    counts, present = counts_of(plan(observation, memory, planned, performance)), observation.present
    assert counts.prefill <= max(planned.prefill.max_replicas, present.prefill)
    assert counts.decode <= max(planned.decode.max_replicas, present.decode)


@untimed
@given(**EVERYTHING)
def test_unless_all_is_known_nothing_is_lowered(
    observation: Observation, memory: PlannerMemory, planned: PlanSpec, performance: Performance
) -> None:
    known = observation.complete and observation.demand is not None and not observation.rollout_in_progress
    if known and performance != Performance(prefill=None, decode=None):
        observation = replace(observation, complete=False)
    counts, present = counts_of(plan(observation, memory, planned, performance)), observation.present
    assert counts.at_least(present) == counts


@untimed
@given(**EVERYTHING)
def test_growth_stays_inside_the_gpu_budget(
    observation: Observation, memory: PlannerMemory, planned: PlanSpec, performance: Performance
) -> None:
    """What runs already and the minima may exceed it; what is added may not, with the pods that are still leaving."""
    if planned.max_gpus is None:
        planned = replace(planned, max_gpus=10)
    counts, present = counts_of(plan(observation, memory, planned, performance)), observation.present
    lowest = Counts(max(planned.prefill.min_replicas, 1), max(planned.decode.min_replicas, 1))
    running = sum(
        max(pool.replicas, pool.ready + pool.starting + pool.draining + pool.pending_too_long)
        for pool in (observation.prefill, observation.decode)
    )
    added = counts.at_least(present.at_least(lowest))
    if added != present.at_least(lowest):
        total = added.prefill + added.decode + running - present.prefill - present.decode
        assert total <= (planned.max_gpus or 0)


@untimed
@given(**EVERYTHING)
def test_pods_that_do_not_start_are_not_multiplied(
    observation: Observation, memory: PlannerMemory, planned: PlanSpec, performance: Performance
) -> None:
    stuck = replace(observation, decode=replace(observation.decode, pending_too_long=1))
    counts = counts_of(plan(stuck, memory, planned, performance))
    assert counts.decode <= max(stuck.decode.replicas, planned.decode.min_replicas, 1)


@untimed
@given(**EVERYTHING)
def test_every_decision_is_explained(
    observation: Observation, memory: PlannerMemory, planned: PlanSpec, performance: Performance
) -> None:
    decision = plan(observation, memory, planned, performance)
    known = set(Reason)
    assert {decision.reason, decision.prefill.reason, decision.decode.reason, *decision.limited_by} <= known
    assert decision.message.endswith(".")
    for role, before, after in (
        ("prefill", observation.prefill.replicas, decision.prefill.replicas),
        ("decode", observation.decode.replicas, decision.decode.replicas),
    ):
        assert (f"{role} stays {after}" if before == after else f"{role} {before}→{after}") in decision.message


@untimed
@given(**EVERYTHING)
def test_same_values_same_decision(
    observation: Observation, memory: PlannerMemory, planned: PlanSpec, performance: Performance
) -> None:
    assert plan(observation, memory, planned, performance) == plan(observation, memory, planned, performance)


@untimed
@given(slow=RATES, more=st.floats(1, 5), input_tokens=LENGTHS, output_tokens=st.floats(1, 2000), active=st.booleans())
def test_more_demand_never_asks_for_fewer_gpus(
    slow: float, more: float, input_tokens: float, output_tokens: float, active: bool
) -> None:
    def gpus(rate: float) -> int:
        asked = demand(rate, input_tokens=input_tokens, output_tokens=output_tokens)
        observation = seen(1, 1, demand=asked, deflection_active=active)
        decision = plan(observation, PlannerMemory(), spec(), Performance(prefill=WHOLE, decode=WHOLE))
        return decision.prefill.recommended + decision.decode.recommended

    assert gpus(slow * more) >= gpus(slow)


@settings(max_examples=10, deadline=None)
@given(
    rate=RATES,
    input_tokens=LENGTHS,
    output_tokens=st.floats(1, 2000),
    prefill=st.integers(0, 20),
    decode=st.integers(1, 20),
    whole=st.booleans(),
)
def test_constant_load_settles(
    rate: float, input_tokens: float, output_tokens: float, prefill: int, decode: int, whole: bool
) -> None:
    worker = WHOLE if whole else SLICE
    asked = demand(rate, input_tokens=input_tokens, output_tokens=output_tokens)
    toy = Toy(
        spec=spec(stabilization_seconds=30.0),
        load=lambda _: asked,
        performance=Performance(prefill=worker, decode=worker),
        cold_start_seconds=10.0,
        prefill=[0.0] * prefill,
        decode=[0.0] * decode,
    )
    toy.run(150)
    settled = toy.counts[-1]
    toy.run(300)
    assert set(toy.counts[-60:]) == {settled}


def test_limits_allow_exactly_what_they_say() -> None:
    limits = Limits(lowest=Counts(1, 1), highest=Counts(3, 3), gpus=Counts(2, 1), cost=Counts(2, 1), max_gpus=6)
    allowed = {(p, d) for p in range(5) for d in range(5) if limits.allow(Counts(p, d))}
    assert allowed == {(1, 1), (1, 2), (1, 3), (2, 1), (2, 2)}
