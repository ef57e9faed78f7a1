"""The LargestSafe schedule: safe wherever something is, complete, and as large as allowed."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.step_times import LinearSteps

from duet_engine.perf.hardware import find_gpu
from duet_engine.perf.interface import StepBatch
from duet_engine.perf.models import find_shape
from duet_engine.perf.roofline import Roofline
from duet_engine.policy.chunks import (
    DecodeBatch,
    bearable_sizes,
    beta_from_errors,
    headroom_tokens_per_second,
    largest_safe_schedule,
    step_budget_seconds,
)

CANDIDATES = (2048, 1024, 512, 256, 128)

models = st.builds(
    LinearSteps,
    prefill_base_seconds=st.floats(1e-4, 0.02),
    prefill_per_token_seconds=st.floats(1e-6, 2e-4),
    prefill_per_token_squared_seconds=st.floats(0, 1e-9),
    decode_base_seconds=st.floats(1e-4, 0.03),
    decode_per_request_seconds=st.floats(0, 1e-3),
    decode_per_context_token_seconds=st.floats(0, 1e-6),
)
batches = st.builds(DecodeBatch, requests=st.integers(0, 256), context_tokens=st.integers(0, 200_000))
candidate_lists = st.lists(st.sampled_from(CANDIDATES), min_size=1, unique=True).map(
    lambda sizes: tuple(sorted(sizes, reverse=True))
)


def step_seconds(model: LinearSteps, batch: DecodeBatch, *, chunk: int, done: int) -> float:
    decoding = batch.moments()
    return model.step_seconds(decoding.with_chunks(chunk, done) if chunk else decoding)


@settings(deadline=None)
@given(models, batches, st.integers(1, 20_000), candidate_lists, st.floats(0.001, 0.2))
def test_no_chunk_is_unsafe_while_a_safe_one_exists(
    model: LinearSteps, batch: DecodeBatch, prompt: int, candidates: tuple[int, ...], budget: float
) -> None:
    schedule = largest_safe_schedule(
        model, batch, prompt_tokens=prompt, candidates_tokens=candidates, step_budget_seconds=budget
    )
    done = 0
    for chunk in schedule.chunks_tokens if schedule else ():
        smallest = min(candidates[-1], prompt - done)
        something_is_safe = step_seconds(model, batch, chunk=smallest, done=done) <= budget
        if batch.requests and something_is_safe:
            assert step_seconds(model, batch, chunk=chunk, done=done) <= budget
        done += chunk
    if schedule is None:
        assert batch.requests > 0
        assert step_seconds(model, batch, chunk=candidates[-1], done=prompt) > budget
    else:
        assert done == prompt


@settings(deadline=None)
@given(models, batches, st.integers(1, 20_000), st.floats(0.001, 0.2))
def test_a_prompt_costs_the_sum_of_its_chunks(
    model: LinearSteps, batch: DecodeBatch, prompt: int, budget: float
) -> None:
    schedule = largest_safe_schedule(
        model, batch, prompt_tokens=prompt, candidates_tokens=CANDIDATES, step_budget_seconds=budget
    )
    if schedule is None:
        return
    done, total = 0, 0.0
    for chunk in schedule.chunks_tokens:
        total += step_seconds(model, batch, chunk=chunk, done=done)
        done += chunk
    assert schedule.seconds == pytest.approx(total)
    work = schedule.seconds - len(schedule.chunks_tokens) * step_seconds(model, batch, chunk=0, done=0)
    if batch.requests and model.prefill_base_seconds <= model.decode_base_seconds:
        assert work == pytest.approx(model.chunk_seconds(StepBatch.prefill(prompt)), rel=1e-6, abs=1e-9)


@settings(deadline=None)
@given(models, batches, st.integers(1, 20_000), st.floats(0.001, 0.2))
def test_chunks_never_grow_but_for_none(model: LinearSteps, batch: DecodeBatch, prompt: int, budget: float) -> None:
    schedule = largest_safe_schedule(
        model, batch, prompt_tokens=prompt, candidates_tokens=CANDIDATES, step_budget_seconds=budget
    )
    chunks = schedule.chunks_tokens if schedule else ()
    assert list(chunks) == sorted(chunks, reverse=True)


MODEL = LinearSteps(
    prefill_base_seconds=0.005,
    prefill_per_token_seconds=2e-5,
    prefill_per_token_squared_seconds=0.0,
    decode_base_seconds=0.005,
    decode_per_request_seconds=0.0,
    decode_per_context_token_seconds=1e-7,
)


@pytest.mark.parametrize(
    ("requests", "budget", "chunks"),
    [
        (0, 0.001, (2048, 952)),
        (8, 0.050, (2048, 952)),
        (8, 0.030, (1024, 1024, 952)),
        (8, 0.008, (128,) * 23 + (56,)),
    ],
)
def test_the_largest_safe_candidate_is_taken(requests: int, budget: float, chunks: tuple[int, ...]) -> None:
    schedule = largest_safe_schedule(
        MODEL,
        DecodeBatch(requests, 0),
        prompt_tokens=3000,
        candidates_tokens=CANDIDATES,
        step_budget_seconds=budget,
    )
    assert schedule is not None
    assert schedule.chunks_tokens == chunks


def test_a_full_batch_has_no_safe_chunk() -> None:
    crowded = DecodeBatch(64, 60_000)
    schedule = largest_safe_schedule(
        MODEL, crowded, prompt_tokens=100, candidates_tokens=CANDIDATES, step_budget_seconds=0.009
    )
    assert schedule is None


def test_an_objective_that_no_request_could_meet_blocks_nobody() -> None:
    schedule = largest_safe_schedule(
        MODEL, DecodeBatch(4, 1000), prompt_tokens=300, candidates_tokens=CANDIDATES, step_budget_seconds=0.001
    )
    assert schedule is not None
    assert schedule.chunks_tokens == (128, 128, 44)


@pytest.mark.parametrize("candidates", [(), (128, 256), (128, 128)])
def test_candidates_must_descend(candidates: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="candidates_tokens: must descend"):
        largest_safe_schedule(
            MODEL, DecodeBatch(0, 0), prompt_tokens=1, candidates_tokens=candidates, step_budget_seconds=1.0
        )


H100_8B = Roofline(find_shape("Qwen/Qwen3-8B"), find_gpu("h100-sxm"))


@settings(deadline=None, max_examples=60)
@given(
    st.builds(DecodeBatch, requests=st.integers(1, 200), context_tokens=st.integers(1, 200_000)),
    st.integers(1, 20_000),
    st.integers(0, 30_000),
    candidate_lists,
    st.floats(0.01, 0.2),
)
def test_the_same_holds_with_the_roofline_and_a_cached_prefix(
    batch: DecodeBatch, prompt: int, cached: int, candidates: tuple[int, ...], budget: float
) -> None:
    """Against brute force: at every step the largest safe size of those not given up, and None only where none is."""
    schedule = largest_safe_schedule(
        H100_8B,
        batch,
        prompt_tokens=prompt,
        candidates_tokens=candidates,
        step_budget_seconds=budget,
        cached_tokens=cached,
    )
    sizes = bearable_sizes(
        H100_8B, batch, candidates_tokens=candidates, step_budget_seconds=budget, most_step_tokens=20_000
    )
    decoding = StepBatch.decode(batch.requests, batch.context_tokens)
    left, done, expected = set(sizes.tokens), 0, []
    while done < prompt and left:
        chunks = {size: min(size, prompt - done) for size in left}
        left = {
            size
            for size, chunk in chunks.items()
            if H100_8B.step_seconds(decoding.with_chunks(chunk, cached + done)) <= sizes.step_budget_seconds
        }
        if left:
            expected.append(chunks[max(left)])
            done += expected[-1]
    assert (schedule is None) == (done < prompt)
    if schedule is not None:
        assert list(schedule.chunks_tokens) == expected


@settings(deadline=None, max_examples=60)
@given(
    st.builds(DecodeBatch, requests=st.integers(0, 200), context_tokens=st.integers(0, 200_000)),
    candidate_lists,
    st.floats(0.005, 0.2),
)
def test_headroom_is_what_the_largest_safe_chunk_gives(
    batch: DecodeBatch, candidates: tuple[int, ...], budget: float
) -> None:
    headroom = headroom_tokens_per_second(
        H100_8B, batch, candidates_tokens=candidates, step_budget_seconds=budget, full_chunk_tokens=8192
    )
    if batch.requests == 0:
        assert headroom == pytest.approx(8192 / H100_8B.step_seconds(StepBatch.prefill(8192)))
        return
    first = largest_safe_schedule(
        H100_8B, batch, prompt_tokens=candidates[0], candidates_tokens=candidates, step_budget_seconds=budget
    )
    chunk = first.chunks_tokens[0] if first else None
    decoding = StepBatch.decode(batch.requests, batch.context_tokens)
    expected = chunk / H100_8B.step_seconds(decoding.with_chunks(chunk)) if chunk else headroom
    assert headroom == pytest.approx(expected)


def test_a_full_batch_leaves_no_headroom() -> None:
    crowded = DecodeBatch(64, 60_000)
    assert (
        headroom_tokens_per_second(
            MODEL, crowded, candidates_tokens=CANDIDATES, step_budget_seconds=0.009, full_chunk_tokens=8192
        )
        == 0.0
    )


def test_the_budget_is_the_clients_objective_less_the_way_there() -> None:
    assert step_budget_seconds(itl_seconds=0.05, beta=0.85, engine_gap_seconds=0.002) == pytest.approx(0.0405)


@pytest.mark.parametrize(("ratio", "beta"), [(1.25, 0.8), (1.0, 1.0), (0.7, 1.0)])
def test_beta_follows_the_errors_and_never_passes_one(ratio: float, beta: float) -> None:
    assert beta_from_errors(ratio) == pytest.approx(beta)


def test_beta_needs_a_ratio() -> None:
    with pytest.raises(ValueError, match="observed_over_predicted_p95"):
        beta_from_errors(0.0)
