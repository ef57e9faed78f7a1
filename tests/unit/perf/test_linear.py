"""Step times: additive over chunks, monotone, and slower on a smaller slice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duet_engine.perf.linear import LinearStepModel

H100_8B = LinearStepModel(
    prefill_base_seconds=4.59e-3,
    prefill_per_token_seconds=1.829e-5,
    prefill_per_token_squared_seconds=5.80e-10,
    decode_base_seconds=6.49e-3,
    decode_per_request_seconds=7.65e-6,
    decode_per_context_token_seconds=4.21e-8,
    transfer_base_seconds=1e-3,
    transfer_per_token_seconds=2e-6,
)

tokens = st.integers(min_value=1, max_value=32_768)


@given(prompt=tokens, chunk=st.integers(min_value=16, max_value=8192))
def test_a_prompt_costs_the_sum_of_its_chunks(prompt: int, chunk: int) -> None:
    total, done = 0.0, 0
    while done < prompt:
        step = min(chunk, prompt - done)
        total += H100_8B.prefill_step_seconds(step, done)
        done += step
    assert H100_8B.prompt_seconds(prompt, chunk_tokens=chunk) == pytest.approx(total, rel=1e-9)


@given(cached=st.integers(min_value=0, max_value=8192), new=tokens)
def test_cached_tokens_are_not_computed_again(cached: int, new: int) -> None:
    whole = H100_8B.prompt_seconds(cached + new, chunk_tokens=100_000)
    assert H100_8B.prompt_seconds(cached + new, cached_tokens=cached, chunk_tokens=100_000) <= whole


@given(requests=st.integers(1, 256), context=tokens, chunk=st.integers(1, 2048), done=st.integers(0, 8192))
def test_a_mixed_step_is_dearer_than_either_part(requests: int, context: int, chunk: int, done: int) -> None:
    mixed = H100_8B.mixed_step_seconds(
        requests=requests, context_tokens=context, chunk_tokens=chunk, cached_tokens=done
    )
    assert mixed > H100_8B.decode_step_seconds(requests, context)
    assert mixed > H100_8B.prefill_step_seconds(chunk, done)


def test_a_mixed_step_with_one_part_empty_is_the_other() -> None:
    assert H100_8B.mixed_step_seconds(requests=8, context_tokens=800, chunk_tokens=0) == H100_8B.decode_step_seconds(
        8, 800
    )
    assert H100_8B.mixed_step_seconds(
        requests=0, context_tokens=0, chunk_tokens=512, cached_tokens=64
    ) == H100_8B.prefill_step_seconds(512, 64)


def test_a_slice_is_slower_where_it_has_less() -> None:
    slice_model = H100_8B.scaled(compute_share=3 / 7, bandwidth_share=4 / 8)
    assert slice_model.prefill_step_seconds(1000) == pytest.approx(H100_8B.prefill_step_seconds(1000) * 7 / 3)
    assert slice_model.decode_base_seconds == pytest.approx(H100_8B.decode_base_seconds * 2)
    assert slice_model.transfer_seconds(1000) == H100_8B.transfer_seconds(1000)


def test_coefficients_survive_the_wire() -> None:
    assert LinearStepModel.from_coefficients(H100_8B.coefficients()) == H100_8B
