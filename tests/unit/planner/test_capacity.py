"""What workers hold at the objectives."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.planning import SLICE, WHOLE

from duet_engine.perf.interface import StepBatch
from duet_engine.slo import Objective
from duet_operator.planner.capacity import ITL_SHARE, Fleet, fewest
from duet_operator.planner.lengths import Lengths
from duet_operator.planner.load import Load
from duet_operator.planner.waits import Patience, utilisation, wait_limit, waiting_share

untimed = settings(deadline=None, max_examples=60)


def fleet(**changes: Any) -> Fleet:
    values: dict[str, Any] = {
        "prefill": WHOLE,
        "decode": WHOLE,
        "lengths": Lengths(input_tokens=1000, cached_tokens=0, output_tokens=200, p95_input_tokens=3000),
        "objective": Objective(ttft_seconds=0.8, itl_seconds=0.05),
        "attainment_goal": 0.99,
        "deflection": True,
    }
    return Fleet(**values | changes)


def lengths(input_tokens: float = 1000, output_tokens: float = 200, **changes: Any) -> Lengths:
    return Lengths(**{"input_tokens": input_tokens, "cached_tokens": 0, "output_tokens": output_tokens} | changes)


def load(output_tokens: float = 0.0, input_tokens: float = 1e9) -> Load:
    return Load(requests=1.0, input_tokens=input_tokens, output_tokens=output_tokens)


def decode_step_seconds(requests: float, context_tokens: float) -> float:
    return WHOLE.steps.step_seconds(StepBatch.decode(requests, context_tokens))


@given(threshold=st.integers(0, 300), most=st.integers(0, 200))
def test_fewest_finds_the_first_that_is_enough(threshold: int, most: int) -> None:
    assert fewest(lambda number: number >= threshold, most=most) == min(threshold, most + 1)


# --- decode ---


def test_largest_batch_is_within_itl_and_one_more_is_not() -> None:
    roomy = replace(WHOLE, kv_capacity_tokens=10**9, max_running_requests=10**6)
    many = fleet(decode=roomy)
    context = many.lengths.context_tokens
    step = decode_step_seconds
    limit = ITL_SHARE * many.objective.itl_seconds
    assert step(many.decode_batch, many.decode_batch * context) <= limit
    assert step(many.decode_batch + 1, (many.decode_batch + 1) * context) > limit


@pytest.mark.parametrize(
    ("worker", "batch"),
    [
        pytest.param(replace(WHOLE, kv_capacity_tokens=16_120), 10, id="memory: context and reserve"),
        pytest.param(replace(WHOLE, max_running_requests=7), 7, id="settings"),
        pytest.param(replace(WHOLE, kv_capacity_tokens=10), 1, id="at least one"),
    ],
)
def test_batch_fits_memory_and_settings(worker: Any, batch: int) -> None:
    assert fleet(decode=worker).decode_batch == batch


def test_output_capacity_keeps_room_for_swings() -> None:
    """Per replica a large pool holds more, and none holds all its slots' tokens."""
    many = fleet()
    full = many.decode_batch / decode_step_seconds(many.decode_batch, many.decode_batch * many.lengths.context_tokens)
    shares = [many.output_capacity(count) / count / full for count in (1, 2, 8, 64)]
    assert shares == sorted(shares)
    assert 0.8 < shares[0] < shares[-1] < 1.0


def test_itl_that_no_worker_meets_is_said_and_still_sized() -> None:
    strict = fleet(objective=Objective(ttft_seconds=0.8, itl_seconds=0.001))
    assert not strict.itl_feasible
    assert strict.output_capacity(1) > 0


# --- prefill ---


def test_prefill_capacity_is_under_the_saturated_rate() -> None:
    one = fleet()
    saturated = 1000 / WHOLE.steps.prompt_seconds(1000, chunk_tokens=8192)
    assert 0.4 * saturated < one.input_capacity(1) < 0.95 * saturated


def test_shared_queue_makes_large_pools_efficient() -> None:
    strict = fleet(objective=Objective(ttft_seconds=0.25, itl_seconds=0.05))
    assert strict.input_capacity(8) > 8 * strict.input_capacity(1)


def test_cached_tokens_are_not_prefilled_again() -> None:
    """Half of each prompt cached: nearly the same uncached tokens/s, so nearly twice the prompts."""
    half = fleet(lengths=lengths(2000, cached_tokens=1000))
    none = fleet(lengths=lengths(2000))
    assert half.input_capacity(1) / 1000 > 1.5 * none.input_capacity(1) / 2000


def test_strict_ttft_lowers_capacity_without_a_cliff() -> None:
    """From easy to unmeetable the capacity never jumps by more than a fifth for a hundredth of the objective."""
    objectives = [2.0 * 0.99**step for step in range(400)]
    capacities = [
        fleet(objective=Objective(ttft_seconds=each, itl_seconds=0.05)).input_capacity(2) for each in objectives
    ]
    for before, after in pairwise(capacities):
        assert abs(after - before) <= 0.2 * before


def test_unmeetable_ttft_is_said_and_costs_no_extra_workers() -> None:
    impossible = fleet(objective=Objective(ttft_seconds=0.001, itl_seconds=0.05))
    assert not impossible.ttft_feasible
    assert impossible.input_capacity(1) >= fleet().input_capacity(1)


def test_long_prompts_have_an_objective_of_their_own_length() -> None:
    """With a ratio the objective grows with the prompt, so long prompts can be held."""
    long = lengths(20_000, p95_input_tokens=40_000)
    fixed = fleet(lengths=long, objective=Objective(ttft_seconds=0.5, itl_seconds=0.05))
    scaled = fleet(lengths=long, objective=Objective(ttft_seconds=0.5, itl_seconds=0.05, ttft_unloaded_ratio=3.0))
    assert not fixed.ttft_feasible
    assert scaled.ttft_feasible


# --- deflection ---


def test_headroom_shrinks_with_decode_work_and_ends() -> None:
    one = fleet()
    rates = [one.headroom(share * one.output_capacity(1)) for share in (0.0, 0.3, 0.6, 0.9)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > 0
    assert one.headroom(1e9) == 0.0


def test_headroom_fits_beside_the_batch() -> None:
    """A mixed step with the whole headroom's chunk stays inside the limit."""
    one = fleet()
    output = 0.5 * one.output_capacity(1)
    limit = one.step_limit_seconds
    chunk = one.headroom(output) * limit
    decoding = StepBatch.decode(output * limit, output * limit * one.lengths.context_tokens)
    assert WHOLE.steps.step_seconds(decoding.with_chunks(0.5 * chunk)) <= limit


def test_nothing_is_deflected_when_it_is_off() -> None:
    assert fleet(deflection=False).deflectable(4, load()) == 0.0


def test_slice_too_slow_for_any_chunk_takes_none() -> None:
    assert fleet(decode=SLICE).deflectable(4, load()) == 0.0


def test_prompts_too_long_for_chunks_stay_with_prefill_workers() -> None:
    """In chunks beside a batch a long prompt takes longer than on a prefill worker, so not all can be deflected."""
    mixed = fleet(lengths=lengths(4000, p95_input_tokens=12_000))
    little = load(input_tokens=1000.0, output_tokens=0.5 * mixed.output_capacity(8))
    assert 0 < mixed.deflectable(8, little) < little.input_tokens
    quiet = load(input_tokens=1000.0)
    assert mixed.deflectable(8, quiet) == quiet.input_tokens


@untimed
@given(
    input_tokens=st.floats(1, 50_000),
    output_tokens=st.floats(1, 4000),
    ratio=st.floats(1, 5),
    rate=st.floats(0, 50_000),
    ttft=st.floats(0.05, 10),
    itl=st.floats(0.005, 0.5),
)
def test_capacities_grow_with_replicas(
    input_tokens: float, output_tokens: float, ratio: float, rate: float, ttft: float, itl: float
) -> None:
    many = fleet(
        lengths=lengths(input_tokens, output_tokens, p95_input_tokens=ratio * input_tokens),
        objective=Objective(ttft_seconds=ttft, itl_seconds=itl),
    )
    asked = load(rate)
    for fewer, more in ((0, 1), (1, 2), (2, 5), (5, 50)):
        assert many.input_capacity(fewer) <= many.input_capacity(more)
        assert many.output_capacity(fewer) <= many.output_capacity(more)
        assert many.deflectable(fewer, asked) <= many.deflectable(more, asked) * (1 + 1e-9)


# --- lengths ---


def test_p95_is_recovered_from_the_classes() -> None:
    classes = lengths(1000, p95_input_tokens=3000).typical_inputs()
    assert classes[-1] == pytest.approx(3000, rel=0.01)
    assert sum(classes) / 10 == pytest.approx(1000, rel=0.1)


def test_equal_prompts_do_not_vary() -> None:
    assert lengths(1000, p95_input_tokens=1000).squared_variation == pytest.approx(0.0)


def test_unknown_variation_is_that_of_exponential_lengths() -> None:
    assert lengths(1000).squared_variation == pytest.approx(1.0)


def test_wait_limit_holds_the_share_of_misses() -> None:
    """Equal prompts that all wait: exp(-rate·slack) is exactly the allowed share at ln(100)/0.5 s."""
    limit = wait_limit([Patience(0.5, 0.8)] * 10, 0.01)
    assert limit.holds(waiting_share=1.0, rate=9.22) and not limit.holds(waiting_share=1.0, rate=9.20)
    assert limit.holds(waiting_share=0.01, rate=0.0)
    assert limit.judged_share == pytest.approx(1.0)


def test_prompts_that_cannot_wait_set_no_limit() -> None:
    some = wait_limit([Patience(-1.0, 0.8)] * 5 + [Patience(0.5, 0.8)] * 5, 0.01)
    assert some.holds(waiting_share=1.0, rate=9.22) and not some.holds(waiting_share=1.0, rate=9.20)
    assert some.judged_share == pytest.approx(0.5)
    assert wait_limit([Patience(-1.0, 0.8)] * 10, 0.01).judged_share == 0.0


def test_utilisation_is_that_of_one_queue() -> None:
    """M/D/1, 20 ms a prompt, 1 % may wait for over 250 ms: P(wait > t) = ρ·exp(-2·(1-ρ)·t/(ρ·s)) at ρ = 0.849."""
    limit = wait_limit([Patience(0.25, 0.8)], 0.01)
    assert utilisation(servers=1, service_seconds=0.02, limit=limit, variation=0.0) == pytest.approx(0.849, abs=0.003)


@pytest.mark.parametrize(
    ("servers", "busy", "erlang"),
    [(1, 0.5, 0.5), (1, 0.9, 0.9), (4, 0.75, 0.509), (16, 0.6, 0.042), (16, 0.9, 0.591), (64, 0.9, 0.311)],
)
def test_share_that_waits_is_erlangs(servers: int, busy: float, erlang: float) -> None:
    """Erlang's C formula, exact values."""
    assert waiting_share(servers, busy) == pytest.approx(erlang, abs=0.035)
