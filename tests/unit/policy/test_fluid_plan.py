"""The fluid plan: feasible by the paper's equations, optimal by a certificate, with bounds and penalties kept."""

import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from duet_engine.perf.hardware import find_gpu
from duet_engine.perf.interface import StepBatch
from duet_engine.perf.models import find_shape
from duet_engine.perf.roofline import Roofline
from duet_engine.policy.fluid_model import Charging, Limit, Prices, ServiceLimits, TrafficClass, WorkerPace
from duet_engine.policy.fluid_plan import FluidPlan, InfeasiblePlan, fluid_plan

DECODE_HEAVY = TrafficClass(
    name="decode-heavy", prompt_tokens=300, output_tokens=1000, arrivals_per_second=0.5, impatience_per_second=0.1
)
PREFILL_HEAVY = TrafficClass(
    name="prefill-heavy", prompt_tokens=3000, output_tokens=400, arrivals_per_second=0.5, impatience_per_second=0.1
)
PAPER_CLASSES = (DECODE_HEAVY, PREFILL_HEAVY)
QWEN_8B = WorkerPace(
    chunk_tokens=256, batch_slots=16, mixed_step_seconds=0.0174 + 6.2e-5 * 256, solo_step_seconds=1 / 45.45
)

classes = st.lists(
    st.builds(
        TrafficClass,
        name=st.just("c"),
        prompt_tokens=st.floats(50, 5000),
        output_tokens=st.floats(20, 2000),
        arrivals_per_second=st.floats(0.0, 3.0),
        impatience_per_second=st.floats(0.01, 1.0),
    ),
    min_size=1,
    max_size=4,
)
paces = st.builds(
    lambda chunk, slots, solo, extra: WorkerPace(
        chunk_tokens=chunk, batch_slots=slots, mixed_step_seconds=solo * extra, solo_step_seconds=solo
    ),
    st.floats(64, 2048),
    st.integers(2, 64),
    st.floats(0.005, 0.05),
    st.floats(1.0, 6.0),
)
prices = st.builds(
    Prices,
    prompt_token=st.floats(0.0, 1.0),
    output_token=st.floats(0.01, 1.0),
    charging=st.sampled_from(Charging),
)
limits = st.builds(
    ServiceLimits,
    prefill_spread=st.builds(Limit, most=st.just(math.inf) | st.floats(0.0, 0.5), penalty=st.floats(0.0, 100.0)),
    decode_spread=st.builds(Limit, most=st.just(math.inf) | st.floats(0.0, 20.0), penalty=st.floats(0.0, 10.0)),
)


def assert_feasible(plan: FluidPlan) -> None:
    """Section 3.2's constraints, one by one."""
    pace, share = plan.pace, sum(plan.prefilling)
    for values in (
        plan.prefilling,
        plan.decoding_mixed,
        plan.decoding_solo,
        plan.prefill_queue,
        plan.decode_queue,
    ):
        assert all(value >= 0.0 for value in values)
    assert share <= 1.0 + 1e-7
    assert sum(plan.decoding_mixed) <= (pace.batch_slots - 1) * share + 1e-6
    assert sum(plan.decoding_solo) <= pace.batch_slots * (1.0 - share) + 1e-6
    for index, one in enumerate(plan.classes):
        prefilled = pace.prefills_per_second(one) * plan.prefilling[index]
        decoded = (
            pace.mixed_decodes_per_second(one) * plan.decoding_mixed[index]
            + pace.solo_decodes_per_second(one) * plan.decoding_solo[index]
        )
        lost_before = one.impatience_per_second * plan.prefill_queue[index]
        lost_between = one.impatience_per_second * plan.decode_queue[index]
        assert prefilled + lost_before == pytest.approx(one.arrivals_per_second, abs=1e-6)
        assert decoded + lost_between == pytest.approx(prefilled, abs=1e-6)


def revenue_rates(plan: FluidPlan, prices: Prices, index: int) -> tuple[float, float, float]:
    """What one prefill, one mixed and one solo decode of this class earn a second."""
    one, pace = plan.classes[index], plan.pace
    if prices.charging is Charging.BUNDLED:
        earned = prices.prompt_token * one.prompt_tokens + prices.output_token * one.output_tokens
        return 0.0, earned * pace.mixed_decodes_per_second(one), earned * pace.solo_decodes_per_second(one)
    return (
        prices.prompt_token * pace.chunk_tokens / pace.mixed_step_seconds,
        prices.output_token / pace.mixed_step_seconds,
        prices.output_token / pace.solo_step_seconds,
    )


@settings(deadline=None, max_examples=30)
@given(classes, paces, prices)
def test_every_plan_is_feasible(traffic: list[TrafficClass], pace: WorkerPace, price: Prices) -> None:
    assert_feasible(fluid_plan(traffic, pace, price))


@settings(deadline=None, max_examples=30)
@given(classes, paces, prices)
def test_the_shadow_prices_prove_that_no_plan_earns_more(
    traffic: list[TrafficClass], pace: WorkerPace, price: Prices
) -> None:
    """Weak duality: prices that no activity beats and that add up to the revenue bound every other plan by it."""
    plan = fluid_plan(traffic, pace, price, decode_queue=True)
    shadow = plan.shadow_prices
    scale = max(1.0, plan.revenue_per_second)
    close = 1e-6 * scale
    for index, one in enumerate(plan.classes):
        prefill, mixed, solo = revenue_rates(plan, price, index)
        arrival, handover = shadow.arrivals[index], shadow.handovers[index]
        per_prefill = pace.prefills_per_second(one)
        slots = shadow.prefill_slot - (pace.batch_slots - 1) * shadow.mixed_slot + pace.batch_slots * shadow.solo_slot
        assert prefill <= slots + per_prefill * (arrival - handover) + close * (1 + per_prefill)
        assert mixed <= shadow.mixed_slot + pace.mixed_decodes_per_second(one) * handover + close
        assert solo <= shadow.solo_slot + pace.solo_decodes_per_second(one) * handover + close
        assert arrival >= -close and handover >= -close
    bound = shadow.prefill_slot + pace.batch_slots * shadow.solo_slot
    bound += sum(a * one.arrivals_per_second for a, one in zip(shadow.arrivals, plan.classes, strict=True))
    assert bound == pytest.approx(plan.revenue_per_second, rel=1e-6, abs=1e-6)


def revenue_by_enumeration(traffic: TrafficClass, pace: WorkerPace, price: Prices) -> float:
    """One class: for each share of prefilling workers fill the solo slots, then the mixed ones."""
    best = 0.0
    most = min(1.0, traffic.arrivals_per_second / pace.prefills_per_second(traffic))
    for step in range(4001):
        share = most * step / 4000
        left = pace.prefills_per_second(traffic) * share
        solo = min(pace.batch_slots * (1 - share), left / pace.solo_decodes_per_second(traffic))
        left -= solo * pace.solo_decodes_per_second(traffic)
        mixed = min((pace.batch_slots - 1) * share, left / pace.mixed_decodes_per_second(traffic))
        completed = solo * pace.solo_decodes_per_second(traffic) + mixed * pace.mixed_decodes_per_second(traffic)
        best = max(best, price.request(traffic) * completed)
    return best


@settings(deadline=None, max_examples=40)
@given(classes.map(lambda several: several[0]), paces)
def test_one_class_earns_what_enumeration_finds(traffic: TrafficClass, pace: WorkerPace) -> None:
    plan = fluid_plan([traffic], pace, Prices())
    found = revenue_by_enumeration(traffic, pace, Prices())
    assert found <= plan.revenue_per_second * (1 + 1e-7) + 1e-7
    assert plan.revenue_per_second == pytest.approx(found, rel=2e-3, abs=1e-3)


@settings(deadline=None, max_examples=30)
@given(classes, paces, st.floats(0.0, 1.0), st.floats(0.01, 1.0))
def test_an_empty_decode_queue_costs_nothing_where_solo_steps_are_better(
    traffic: list[TrafficClass], pace: WorkerPace, prompt_price: float, output_price: float
) -> None:
    """Proposition 3.2."""
    price = Prices(prompt_token=prompt_price, output_token=output_price)
    assert pace.solo_is_more_efficient
    plan = fluid_plan(traffic, pace, price)
    free = fluid_plan(traffic, pace, price, decode_queue=True)
    assert plan.decode_queue == (0.0,) * len(traffic)
    assert plan.revenue_per_second == pytest.approx(free.revenue_per_second, rel=1e-7, abs=1e-9)


@settings(deadline=None, max_examples=30)
@given(classes, paces, prices, limits)
def test_hard_service_limits_are_kept_and_earn_no_more(
    traffic: list[TrafficClass], pace: WorkerPace, price: Prices, held: ServiceLimits
) -> None:
    plan = fluid_plan(traffic, pace, price, held)
    assert_feasible(plan)
    assert max(plan.prefilling) - min(plan.prefilling) <= held.prefill_spread.most + 1e-6
    assert max(plan.decoding_solo) - min(plan.decoding_solo) <= held.decode_spread.most + 1e-6
    free = fluid_plan(traffic, pace, price, decode_queue=True)
    assert plan.revenue_per_second <= free.revenue_per_second * (1 + 1e-7) + 1e-7


@settings(deadline=None, max_examples=30)
@given(classes, paces, st.floats(0.0, 1.0))
def test_the_mean_tpot_is_bounded(traffic: list[TrafficClass], pace: WorkerPace, part: float) -> None:
    most = pace.solo_step_seconds + part * (pace.mixed_step_seconds - pace.solo_step_seconds)
    plan = fluid_plan(traffic, pace, limits=ServiceLimits(mean_tpot_seconds=Limit(most)))
    assert plan.mean_tpot_seconds <= most * (1 + 1e-6)


@settings(deadline=None, max_examples=15)
@given(classes, paces, st.floats(1.0, 1e5))
def test_no_bound_beats_a_penalty_at_its_own_price(
    traffic: list[TrafficClass], pace: WorkerPace, penalty: float
) -> None:
    """The charged mean TPOT is a curve: whatever bound is set instead, revenue less its price is no better."""
    assume(pace.mixed_step_seconds > pace.solo_step_seconds * 1.01)

    def worth(plan: FluidPlan) -> float:
        return plan.revenue_per_second - penalty * plan.mean_tpot_seconds

    charged = worth(fluid_plan(traffic, pace, limits=ServiceLimits(mean_tpot_seconds=Limit(penalty=penalty))))
    for part in (0.0, 0.01, 0.03, 0.1, 0.3, 1.0):
        most = pace.solo_step_seconds + part * (pace.mixed_step_seconds - pace.solo_step_seconds)
        bounded = fluid_plan(traffic, pace, limits=ServiceLimits(mean_tpot_seconds=Limit(most)))
        assert worth(bounded) <= charged + 1e-6 * max(1.0, abs(charged))


def test_spread_penalties_buy_fairness_at_their_price() -> None:
    def at(penalty: float) -> FluidPlan:
        return fluid_plan(PAPER_CLASSES, QWEN_8B, limits=ServiceLimits(prefill_spread=Limit(penalty=penalty)))

    def spread(plan: FluidPlan) -> float:
        return max(plan.prefilling) - min(plan.prefilling)

    plans = [at(penalty) for penalty in (0.0, 300.0, 900.0, 1500.0, 1e6)]
    for loose, tight in itertools.pairwise(plans):
        assert spread(tight) <= spread(loose) + 1e-9
        assert tight.revenue_per_second <= loose.revenue_per_second + 1e-9
    assert spread(plans[-1]) == pytest.approx(0.0, abs=1e-9)
    price = fluid_plan(
        PAPER_CLASSES, QWEN_8B, limits=ServiceLimits(prefill_spread=Limit(most=0.1))
    ).shadow_prices.prefill_spread
    assert spread(at(price * 0.99)) > 0.1 > spread(at(price * 1.01))


def test_the_papers_instance() -> None:
    """Section 3.4: prefill fairness has a price, all solo slots are taken, the mixed share is the LP's."""
    plan = fluid_plan(PAPER_CLASSES, QWEN_8B, Prices(prompt_token=0.1, output_token=0.2))
    assert sum(plan.decoding_solo) == pytest.approx(16 * (1 - plan.mixed_share))
    assert plan.decode_queue == (0.0, 0.0)
    assert plan.mixed_workers(500) == math.ceil(500 * plan.mixed_share)
    for n in (5, 20, 50, 200, 500):
        assert n * plan.mixed_share <= plan.mixed_workers(n) < n * plan.mixed_share + 1
    assert all(0.0 <= probability <= 1.0 for probability in plan.solo_probabilities())


def test_handovers_to_the_solo_pool_are_its_completions() -> None:
    plan = fluid_plan(PAPER_CLASSES, QWEN_8B)
    for index, probability in enumerate(plan.solo_probabilities()):
        handed_over = QWEN_8B.prefills_per_second(plan.classes[index]) * plan.prefilling[index]
        completed = QWEN_8B.solo_decodes_per_second(plan.classes[index]) * plan.decoding_solo[index]
        assert probability * handed_over == pytest.approx(completed, rel=1e-6)


def test_patient_classes_are_served_whole_or_the_plan_says_that_it_cannot() -> None:
    patient = replace(PREFILL_HEAVY, impatience_per_second=0.0, arrivals_per_second=0.2)
    plan = fluid_plan([patient], QWEN_8B)
    assert QWEN_8B.prefills_per_second(patient) * plan.prefilling[0] == pytest.approx(0.2)
    with pytest.raises(InfeasiblePlan, match="impatience_per_second"):
        fluid_plan([replace(patient, arrivals_per_second=50.0)], QWEN_8B)


def test_a_pace_comes_from_step_times() -> None:
    steps = Roofline(find_shape("Qwen/Qwen3-8B"), find_gpu("h100-sxm"))
    pace = WorkerPace.from_steps(steps, chunk_tokens=512, batch_slots=32, mean_context_tokens=1000)
    assert pace.solo_step_seconds == steps.step_seconds(StepBatch.decode(32, 32_000))
    assert pace.mixed_step_seconds == steps.step_seconds(StepBatch.decode(31, 31_000).with_chunks(512))
    assert pace.solo_is_more_efficient


def test_a_limit_below_the_solo_step_is_infeasible() -> None:
    with pytest.raises(InfeasiblePlan, match="loosen the service limits"):
        fluid_plan(PAPER_CLASSES, QWEN_8B, limits=ServiceLimits(mean_tpot_seconds=Limit(0.02)))


def test_a_fleets_traffic_is_shared_by_its_workers() -> None:
    assert replace(DECODE_HEAVY, arrivals_per_second=20.0).shared_by(40) == DECODE_HEAVY


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: replace(DECODE_HEAVY, prompt_tokens=0), "prompt_tokens and output_tokens must be positive"),
        (lambda: replace(DECODE_HEAVY, arrivals_per_second=-1), "must not be negative"),
        (lambda: replace(QWEN_8B, batch_slots=1), "batch_slots: at least 2"),
        (lambda: replace(QWEN_8B, solo_step_seconds=0.0), "must be positive"),
        (lambda: fluid_plan([], QWEN_8B), "classes: at least one"),
        (
            lambda: fluid_plan(
                PAPER_CLASSES,
                replace(QWEN_8B, mixed_step_seconds=0.01),
                limits=ServiceLimits(mean_tpot_seconds=Limit(penalty=1.0)),
            ),
            "mean_tpot_seconds: a penalty needs",
        ),
    ],
)
def test_senseless_input_is_refused_by_name(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
