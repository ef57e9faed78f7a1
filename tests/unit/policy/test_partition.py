"""The partition optimizer against brute force: never unsafe, never idle while something is safe, never beaten."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from duet_engine.perf.interface import Basis, StepBatch, StepTime
from duet_engine.policy.partition import GapForm, Mixed, Partitioner, Split, SplitRule

if TYPE_CHECKING:
    from duet_engine.perf.interface import FloatArray


@dataclass(frozen=True)
class TwoCeilings:
    """A roofline of two ceilings: compute grows with the SMs, bandwidth saturates at a part of them."""

    compute_seconds_per_token: float = 2e-5
    bandwidth_seconds_per_token: float = 5e-8
    weights_seconds: float = 0.006
    saturation: float = 0.3
    basis: Basis = Basis.MEASURED
    sms: int = 132
    sm_granularity: int = 2

    def step(self, batch: StepBatch, *, sm_share: float = 1.0) -> StepTime:
        return StepTime(self.step_seconds(batch, sm_share=sm_share), self.basis if sm_share < 1.0 else Basis.MEASURED)

    def step_seconds(self, batch: StepBatch, *, sm_share: float = 1.0) -> float:
        if batch.tokens <= 0.0:
            return 0.0
        compute = self.compute_seconds_per_token * batch.tokens / sm_share
        context_tokens = batch.decode_context_tokens + batch.prefill_context_tokens
        memory = self.weights_seconds + self.bandwidth_seconds_per_token * context_tokens
        return max(compute, memory / min(1.0, sm_share / self.saturation))

    def step_seconds_over(self, batch: StepBatch, sm_shares: FloatArray) -> FloatArray:
        return np.array([self.step_seconds(batch, sm_share=float(share)) for share in sm_shares])

    def prompt_seconds(self, prompt_tokens: int, *, cached_tokens: int = 0, chunk_tokens: int) -> float:
        raise NotImplementedError

    def transfer_seconds(self, tokens: float) -> float:
        raise NotImplementedError


workers = st.builds(
    TwoCeilings,
    compute_seconds_per_token=st.floats(1e-6, 2e-4),
    bandwidth_seconds_per_token=st.floats(1e-9, 5e-7),
    weights_seconds=st.floats(0.001, 0.03),
    saturation=st.floats(0.05, 1.0),
    sms=st.sampled_from([16, 28, 66, 132]),
)
batches = st.builds(
    lambda requests, context, chunk, done: StepBatch.decode(requests, requests * context).with_chunks(chunk, done),
    st.integers(1, 256),
    st.integers(1, 8000),
    st.integers(1, 8192),
    st.integers(0, 20_000),
)
rules = st.builds(
    SplitRule,
    step_budget_seconds=st.floats(0.002, 0.2),
    most_look_ahead=st.integers(1, 12),
    longest_window_seconds=st.floats(0.01, 0.5),
    join_seconds=st.floats(0.0, 0.01),
    form=st.sampled_from(GapForm),
)


def every_split(steps: TwoCeilings, batch: StepBatch, rule: SplitRule) -> list[tuple[float, int, int]]:
    """Tokens per second, decode SMs and look-ahead of all that the rule allows, written out."""
    allowed = []
    for decode_sms in range(steps.sm_granularity, steps.sms, steps.sm_granularity):
        decode = steps.step_seconds(batch.decode_part, sm_share=decode_sms / steps.sms)
        prefill = steps.step_seconds(batch.prefill_part, sm_share=1.0 - decode_sms / steps.sms)
        for look_ahead in range(1, rule.most_look_ahead + 1):
            gap = max(decode, max(0.0, prefill - look_ahead * decode) + rule.join_seconds + decode)
            window = max(look_ahead * decode, prefill)
            if rule.form is GapForm.PRINTED:
                safe = decode <= rule.step_budget_seconds
            else:
                safe = gap <= rule.step_budget_seconds and window <= rule.longest_window_seconds
            if safe:
                tokens = look_ahead * batch.decode_requests + batch.prefill_tokens
                allowed.append((tokens / window, decode_sms, look_ahead))
    return allowed


@settings(deadline=None, max_examples=60)
@given(workers, batches, rules)
def test_the_best_of_all_safe_splits_is_found(steps: TwoCeilings, batch: StepBatch, rule: SplitRule) -> None:
    allowed = every_split(steps, batch, rule)
    split = Partitioner(steps).split(batch, rule)
    if split is None:
        assert allowed == []
        return
    assert rule.holds(split.decode_seconds, split.prefill_seconds, split.look_ahead)
    assert split.decode_sms + split.prefill_sms == steps.sms
    if allowed:
        assert split.tokens_per_second >= max(allowed)[0] * (1 - 1e-9)


@settings(deadline=None, max_examples=60)
@given(workers, batches, rules)
def test_it_is_what_it_says(steps: TwoCeilings, batch: StepBatch, rule: SplitRule) -> None:
    split = Partitioner(steps).split(batch, rule)
    if split is None:
        return
    assert split.decode_seconds == steps.step_seconds(batch.decode_part, sm_share=split.decode_sms / steps.sms)
    tokens = split.look_ahead * batch.decode_requests + batch.prefill_tokens
    seconds = max(split.look_ahead * split.decode_seconds, split.prefill_seconds)
    assert split.tokens_per_second == pytest.approx(tokens / seconds)


@settings(deadline=None, max_examples=60)
@given(workers, batches, rules)
def test_a_safe_mixed_step_stays_mixed_and_an_unsafe_one_never_runs(
    steps: TwoCeilings, batch: StepBatch, rule: SplitRule
) -> None:
    choice = Partitioner(steps).choose(batch, rule)
    safe = steps.step_seconds(batch) <= rule.step_budget_seconds * (1 + 1e-9)
    assert isinstance(choice, Mixed) == safe


H100 = TwoCeilings()
UNSAFE_MIXED = StepBatch.decode(64, 64_000).with_chunks(4096)
RULE = SplitRule(step_budget_seconds=0.03, longest_window_seconds=0.2, most_look_ahead=16)


@settings(deadline=None, max_examples=40)
@given(workers, st.integers(1, 200), st.integers(1, 200_000), st.integers(1, 9000), rules)
def test_the_largest_chunk_that_runs_safely_in_any_way_is_taken(
    steps: TwoCeilings, requests: int, context: int, prompt: int, rule: SplitRule
) -> None:
    decoding, sizes = StepBatch.decode(requests, context), (4096, 1024, 256)
    found = Partitioner(steps).largest(decoding, rule, candidates_tokens=sizes, prompt_tokens=prompt)
    for size in sizes:
        batch = decoding.with_chunks(min(size, prompt))
        safe = steps.step_seconds(batch) <= rule.step_budget_seconds or every_split(steps, batch, rule)
        if found is not None and found[0] == min(size, prompt):
            return
        assert not safe
    assert found is None


def test_without_a_gap_to_hold_there_is_nothing_to_split() -> None:
    tight = replace(RULE, step_budget_seconds=1e-6)
    assert isinstance(Partitioner(H100).choose(StepBatch.prefill(8192), tight), Mixed)
    assert isinstance(Partitioner(H100).choose(StepBatch.decode(64, 64_000), tight), Mixed)


def test_the_printed_constraint_lets_residents_wait_for_the_prefill() -> None:
    """One look-ahead step only: as printed it is fine, but after it residents wait for most of the prefill."""
    short = replace(RULE, most_look_ahead=1)
    printed = Partitioner(H100).split(UNSAFE_MIXED, replace(short, form=GapForm.PRINTED))
    assert printed is not None
    assert short.gap_seconds(printed.decode_seconds, printed.prefill_seconds, 1) > 2 * short.step_budget_seconds
    assert Partitioner(H100).split(UNSAFE_MIXED, short) is None


def test_decode_gets_few_sms_and_prefill_the_rest() -> None:
    split = Partitioner(H100).choose(UNSAFE_MIXED, RULE)
    assert isinstance(split, Split)
    assert split.decode_sms < H100.sms / 2 < split.prefill_sms
    assert split.look_ahead > 1


def test_assumed_step_times_are_no_gain_to_a_live_policy() -> None:
    guessing = replace(H100, basis=Basis.ASSUMED)
    assert Partitioner(guessing).choose(UNSAFE_MIXED, RULE) is None
    assert isinstance(Partitioner(guessing).choose(UNSAFE_MIXED, replace(RULE, believe_assumed=True)), Split)


def test_a_slice_of_one_tpc_cannot_be_split() -> None:
    assert Partitioner(replace(H100, sms=2)).split(UNSAFE_MIXED, replace(RULE, step_budget_seconds=9.0)) is None


def test_a_look_ahead_of_none_is_refused() -> None:
    with pytest.raises(ValueError, match="most_look_ahead"):
        replace(RULE, most_look_ahead=0)
