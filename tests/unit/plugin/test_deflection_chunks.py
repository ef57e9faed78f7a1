"""Chunks of deflected prompts: whole pages, in the ITL budget, starving no resident, cut by SGLang just so."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.step_times import LinearSteps

from duet_engine.perf.interface import StepBatch
from duet_engine.plugin.deflection_chunks import (
    ChunkLimits,
    PrefillPass,
    Prompt,
    Situation,
    ceil_to_page,
    next_pass,
)
from duet_engine.policy.chunks import DecodeBatch, protects_anyone

CANDIDATES = (2048, 1024, 512, 256, 128)
MODEL = LinearSteps(
    prefill_base_seconds=0.004,
    prefill_per_token_seconds=2e-5,
    prefill_per_token_squared_seconds=1e-9,
    decode_base_seconds=0.006,
    decode_per_request_seconds=2e-5,
    decode_per_context_token_seconds=2e-8,
)


def limits(*, page: int = 1, budget_seconds: float = 0.05, candidates: tuple[int, ...] = CANDIDATES) -> ChunkLimits:
    return ChunkLimits(
        page_tokens=page, full_chunk_tokens=8192, candidates_tokens=candidates, step_budget_seconds=budget_seconds
    )


def beside(requests: int, *, mixes: bool = True, sat_out: bool = False, overdue: bool = False) -> Situation:
    batch = DecodeBatch(requests, requests * 1000)
    return Situation(residents=batch, mixes=mixes, residents_sat_out=sat_out, overdue=overdue)


def sglang_cuts(prompts: list[Prompt], chosen: PrefillPass, *, residents: int, page: int) -> list[int]:
    """What SGLang 0.5.23's PrefillAdder gives each prompt: residents come off the budget, finished prompts in pages."""
    left = chosen.sglang_chunk_tokens(resident_requests=residents) - residents
    cuts = []
    for prompt in (prompts[share.place] for share in chosen.shares):
        if left <= 0:
            break
        cuts.append(min(prompt.remaining_tokens, left))
        left -= ceil_to_page(cuts[-1], page)
    return cuts


@pytest.mark.parametrize("page", [1, 16, 64])
@pytest.mark.parametrize("size", [*CANDIDATES, 64, 16, 1])
def test_each_chunk_beside_each_batch_is_whole_pages_and_never_negative(size: int, page: int) -> None:
    """Without the residents added back, a chunk of 128 beside 160 residents would be one of -32."""
    candidate = max(size // page, 1) * page
    for requests in range(1, 257):
        prompts = [Prompt(remaining_tokens=5000, context_tokens=3 * page, begun=True)]
        chosen = next_pass(
            MODEL, prompts, beside(requests), limits(page=page, budget_seconds=1.0, candidates=(candidate,))
        )
        assert chosen is not None
        assert chosen.tokens == candidate
        assert sglang_cuts(prompts, chosen, residents=requests, page=page) == [candidate]


prompt_lists = st.lists(
    st.builds(
        Prompt,
        remaining_tokens=st.integers(1, 6000),
        context_tokens=st.integers(0, 100).map(lambda pages: pages * 16),
        bound_tokens=st.none() | st.integers(0, 3000),
    ),
    min_size=1,
    max_size=5,
)


@settings(deadline=None, max_examples=150)
@given(
    prompts=prompt_lists,
    requests=st.integers(0, 256),
    page=st.sampled_from([1, 16, 64]),
    mixes=st.booleans(),
    budget=st.floats(0.005, 0.2),
)
def test_a_pass_holds_its_budget_and_is_cut_as_planned(
    prompts: list[Prompt], requests: int, page: int, mixes: bool, budget: float
) -> None:
    situation, bounds = beside(requests, mixes=mixes), limits(page=page, budget_seconds=budget)
    chosen = next_pass(MODEL, prompts, situation, bounds)
    if chosen is None:
        return
    shares = chosen.shares
    cuts = sglang_cuts(prompts, chosen, residents=requests, page=page)
    assert cuts == [share.tokens for share in shares]
    for share, is_last in zip(shares, [*itertools.repeat(False, len(shares) - 1), True], strict=True):
        prompt = prompts[share.place]
        assert share.tokens == prompt.remaining_tokens or (
            is_last and share.tokens % page == 0 and share.tokens >= page
        )
        assert prompt.bound_tokens is None or 0 < share.tokens <= max(prompt.bound_tokens, page)
    if requests and protects_anyone(MODEL, situation.residents, smallest_tokens=128, step_budget_seconds=budget):
        assert chosen.predicted_seconds <= budget


def test_beside_residents_the_largest_safe_size_is_taken_and_a_tighter_bound_of_the_gateway_holds() -> None:
    situation, budget = beside(32), limits(budget_seconds=0.025)
    free = next_pass(MODEL, [Prompt(remaining_tokens=5000)], situation, budget)
    assert free is not None and free.tokens == 512
    bound = next_pass(MODEL, [Prompt(remaining_tokens=5000, bound_tokens=200)], situation, budget)
    assert bound is not None and bound.tokens == 200
    loose = next_pass(MODEL, [Prompt(remaining_tokens=5000, bound_tokens=4000)], situation, budget)
    assert loose is not None and loose.tokens == 512


def test_with_its_residents_a_step_holds_no_more_tokens_than_an_ordinary_servers() -> None:
    """Buffers are made for `--chunked-prefill-size`; what has no room at all still gets the smallest chunk."""
    small = replace(limits(budget_seconds=10.0), full_chunk_tokens=2048)
    for residents, page, expected in ((0, 1, 2048), (8, 1, 2040), (8, 16, 2032), (1900, 1, 148), (2047, 1, 128)):
        chosen = next_pass(MODEL, [Prompt(remaining_tokens=9000)], beside(residents), replace(small, page_tokens=page))
        assert chosen is not None and chosen.tokens == expected


def test_without_residents_chunks_are_an_ordinary_servers() -> None:
    chosen = next_pass(MODEL, [Prompt(remaining_tokens=3000), Prompt(remaining_tokens=9000)], beside(0), limits())
    assert chosen is not None and [share.tokens for share in chosen.shares] == [3000, 5192]


def test_where_a_batch_cant_mix_residents_take_every_other_step() -> None:
    """SGLang takes prefill first: without alternation they would starve until the prompt's end."""
    prompts = [Prompt(remaining_tokens=5000, begun=True)]
    assert next_pass(MODEL, prompts, beside(8, mixes=False, sat_out=True), limits()) is None
    turn = next_pass(MODEL, prompts, beside(8, mixes=False), limits())
    assert turn is not None
    alone = MODEL.step_seconds(StepBatch.prefill(turn.tokens)) + MODEL.step_seconds(beside(8).residents.moments())
    assert turn.predicted_seconds == pytest.approx(alone)


def test_residents_that_sat_out_for_want_of_kv_go_next_even_where_batches_mix() -> None:
    assert next_pass(MODEL, [Prompt(remaining_tokens=5000)], beside(8, sat_out=True), limits()) is None


def test_nothing_safe_waits_but_a_begun_prompt_gets_its_smallest_chunk_when_overdue() -> None:
    """One request alone could be protected, sixty can't: the chunk waits rather than breaking their objective."""
    tight = limits(budget_seconds=0.012)
    begun = [Prompt(remaining_tokens=5000, begun=True), Prompt(remaining_tokens=300)]
    assert next_pass(MODEL, begun, beside(200), tight) is None
    forced = next_pass(MODEL, begun, beside(200, overdue=True), tight)
    assert forced is not None and [share.tokens for share in forced.shares] == [128]
    fresh = [Prompt(remaining_tokens=5000)]
    assert next_pass(MODEL, fresh, beside(200, overdue=True), tight) is None


def test_a_chunk_budget_of_zero_gets_nothing_and_holds_nobody_back() -> None:
    prompts = [Prompt(remaining_tokens=500, bound_tokens=0), Prompt(remaining_tokens=300)]
    chosen = next_pass(MODEL, prompts, beside(0), limits())
    assert chosen is not None and [(share.place, share.tokens) for share in chosen.shares] == [(1, 300)]
    assert next_pass(MODEL, prompts[:1], beside(0), limits()) is None
