"""A batch's moments add up, and a figure is as trustworthy as its weakest part."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duet_engine.perf.interface import Basis, StepBatch, weakest

tokens = st.integers(1, 20_000)


@given(first=tokens, second=tokens, context=st.integers(0, 50_000))
def test_a_prompt_attends_to_as_many_pairs_as_its_chunks(first: int, second: int, context: int) -> None:
    whole = StepBatch.prefill(first + second, context)
    chunked = StepBatch.prefill(first, context).with_chunks(second, context + first)
    assert chunked.prefill_pairs == whole.prefill_pairs
    assert chunked.tokens == whole.tokens


@given(chunk=tokens, context=st.integers(0, 50_000))
def test_the_papers_count_has_no_causal_half(chunk: int, context: int) -> None:
    printed = StepBatch.prefill(chunk, context, printed=True)
    assert printed.prefill_pairs == chunk * (chunk + context)
    exact = StepBatch.prefill(chunk, context).prefill_pairs
    assert printed.prefill_pairs - exact == chunk * (chunk - 1) / 2


@given(requests=st.integers(1, 500), context=st.integers(0, 100_000), chunk=tokens)
def test_a_mixed_batch_is_its_two_parts(requests: int, context: int, chunk: int) -> None:
    decode, prefill = StepBatch.decode(requests, context), StepBatch.prefill(chunk, 7)
    mixed = decode.with_chunks(chunk, 7)
    assert mixed.decode_part == decode
    assert mixed.prefill_part == prefill
    assert mixed.tokens == decode.tokens + prefill.tokens


@pytest.mark.parametrize(
    ("bases", "expected"),
    [
        ([Basis.MEASURED], Basis.MEASURED),
        ([Basis.MEASURED, Basis.KERNEL_COMPOSED], Basis.KERNEL_COMPOSED),
        ([Basis.ASSUMED, Basis.DATA_SHEET, Basis.MEASURED], Basis.ASSUMED),
    ],
)
def test_the_weakest_part_decides(bases: list[Basis], expected: Basis) -> None:
    assert weakest(*bases) is expected


def test_only_an_assumption_is_not_known() -> None:
    assert [basis for basis in Basis if not basis.known] == [Basis.ASSUMED]
