"""Kairos' estimate of the prefill path: as printed where asked for, and corrected by default."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.step_times import LinearSteps

from duet_engine.perf.interface import StepBatch
from duet_engine.policy.chunks import DecodeBatch
from duet_engine.policy.estimates import (
    PRINTED_TERMS,
    PathTerms,
    QueuedPrompt,
    QueueForm,
    prefill_path_seconds,
    queue_seconds,
    unloaded_pair_seconds,
)
from duet_engine.policy.fleet import DecodeWorker, PrefillWorker, Prompt

H100_8B = LinearSteps(
    prefill_base_seconds=4.59e-3,
    prefill_per_token_seconds=1.829e-5,
    prefill_per_token_squared_seconds=5.80e-10,
    decode_base_seconds=6.49e-3,
    decode_per_request_seconds=7.65e-6,
    decode_per_context_token_seconds=4.21e-8,
    transfer_base_seconds=2e-3,
    transfer_per_token_seconds=5e-6,
)
CHUNK = 2048
PROMPT = Prompt(tokens=3000, waited_seconds=0.0, ttft_objective_seconds=1.0)
PREFILL = PrefillWorker(key="p", revision="r", steps=H100_8B, chunk_tokens=CHUNK, ahead_seconds=0.3, queued_tokens=6000)
DECODE = DecodeWorker(
    key="d",
    revision="r",
    steps=H100_8B,
    chunk_tokens=CHUNK,
    batch=DecodeBatch(8, 8000),
    kv_capacity_tokens=100_000,
    kv_free_tokens=90_000,
    free_slots=8,
)

queues = st.lists(st.builds(QueuedPrompt, tokens=st.integers(1, 20_000), done_tokens=st.integers(0, 20_000)))


def test_the_printed_queue_term_grows_with_the_square_of_the_queue() -> None:
    """A hundred prompts of a thousand tokens, in full chunks: seconds that nobody will wait for."""
    waiting = [QueuedPrompt(1000)] * 100
    exact = queue_seconds(H100_8B, waiting, chunk_tokens=1000)
    printed = queue_seconds(H100_8B, waiting, chunk_tokens=1000, form=QueueForm.PRINTED)
    assert exact == pytest.approx(100 * H100_8B.step_seconds(StepBatch.prefill(1000)))
    assert printed == pytest.approx(100 * H100_8B.step_seconds(StepBatch.prefill(1000, 50_000)))
    assert printed > 3 * exact


@settings(deadline=None)
@given(queues, st.integers(1, 20_000))
def test_the_queue_is_the_sum_of_its_prompts_chunks(queued: list[QueuedPrompt], chunk: int) -> None:
    total = 0.0
    for prompt in queued:
        done = prompt.done_tokens
        while done < prompt.tokens:
            step = min(chunk, prompt.tokens - done)
            total += H100_8B.step_seconds(StepBatch.prefill(step, done))
            done += step
    assert queue_seconds(H100_8B, queued, chunk_tokens=chunk) == pytest.approx(total)


@settings(deadline=None)
@given(queues, st.builds(QueuedPrompt, tokens=st.integers(1, 20_000)), st.sampled_from(QueueForm))
def test_one_more_prompt_ahead_is_never_sooner(queued: list[QueuedPrompt], more: QueuedPrompt, form: QueueForm) -> None:
    before = queue_seconds(H100_8B, queued, chunk_tokens=CHUNK, form=form)
    after = queue_seconds(H100_8B, [*queued, more], chunk_tokens=CHUNK, form=form)
    assert after > before


def test_the_paper_as_printed() -> None:
    execution = H100_8B.step_seconds(StepBatch.prefill(2048)) + H100_8B.step_seconds(StepBatch.prefill(952, 2048))
    queue = 6000 / CHUNK * H100_8B.step_seconds(StepBatch.prefill(CHUNK, 3000))
    assert prefill_path_seconds(PROMPT, PREFILL, DECODE, PRINTED_TERMS) == pytest.approx(queue + execution)
    cached = replace(PROMPT, tokens=1000, cached_tokens=2000)
    assert prefill_path_seconds(cached, PREFILL, DECODE, PRINTED_TERMS) == pytest.approx(queue + execution)


def test_every_term_adds_what_it_names() -> None:
    whole = prefill_path_seconds(PROMPT, PREFILL, DECODE)
    without_transfer = prefill_path_seconds(PROMPT, PREFILL, DECODE, PathTerms(transfer=False))
    without_admission = prefill_path_seconds(PROMPT, PREFILL, DECODE, PathTerms(admission=False))
    assert whole - without_transfer == pytest.approx(H100_8B.transfer_seconds(CHUNK))
    assert whole - without_admission == pytest.approx(H100_8B.step_seconds(StepBatch.decode(9, 11_000)))
    warm = replace(PROMPT, tokens=1000, cached_tokens=2000)
    uncached = prefill_path_seconds(warm, PREFILL, DECODE, PathTerms(transfer=False, admission=False))
    assert uncached == pytest.approx(PREFILL.ahead_seconds + H100_8B.step_seconds(StepBatch.prefill(1000, 2000)))


def test_a_slow_link_delays_by_the_whole_prompt() -> None:
    slow = replace(H100_8B, transfer_per_token_seconds=1e-3)
    assert unloaded_pair_seconds(8000, slow, chunk_tokens=CHUNK) == pytest.approx(slow.transfer_seconds(8000))
    cached = unloaded_pair_seconds(100, H100_8B, cached_tokens=20_000, chunk_tokens=CHUNK)
    assert cached == pytest.approx(H100_8B.transfer_seconds(20_100))
