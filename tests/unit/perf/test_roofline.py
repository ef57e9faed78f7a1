"""What must hold of step times whatever the model and the GPU: more work takes longer, fewer SMs take longer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from duet_engine.perf.hardware import find_gpu
from duet_engine.perf.interface import Basis, StepBatch
from duet_engine.perf.models import find_shape
from duet_engine.perf.roofline import Roofline
from duet_engine.perf.sm_curves import CurveName, SmCurve

MODELS = [
    "meta-llama/Llama-3.1-8B",
    "Qwen/Qwen3-0.6B",
    "Qwen/Qwen3-30B-A3B",
    "mistralai/Mixtral-8x7B-v0.1",
    "deepseek-ai/DeepSeek-V2-Lite",
]
GPUS = ["a100-sxm", "h100-sxm", "h200-sxm", "b200-sxm", "l40s", "mi300x", "h100-3g.40gb"]
ROOFLINES = {
    (model, gpu, ranks): Roofline(find_shape(model), find_gpu(gpu), ranks=ranks)
    for model in MODELS
    for gpu in GPUS
    for ranks in (1, 4)
}
rooflines = st.sampled_from(sorted(ROOFLINES)).map(ROOFLINES.__getitem__)
requests = st.integers(1, 512)
tokens = st.integers(1, 16_384)
contexts = st.integers(0, 65_536)
shares = st.integers(1, 100).map(lambda percent: percent / 100)


@given(roofline=rooflines, chunk=tokens, context=contexts, more=tokens, share=shares)
def test_more_prompt_tokens_take_longer(roofline: Roofline, chunk: int, context: int, more: int, share: float) -> None:
    shorter = roofline.step_seconds(StepBatch.prefill(chunk, context), sm_share=share)
    assert shorter < roofline.step_seconds(StepBatch.prefill(chunk + more, context), sm_share=share)
    assert shorter <= roofline.step_seconds(StepBatch.prefill(chunk, context + more), sm_share=share)


@given(roofline=rooflines, count=requests, context=tokens, more=requests, share=shares)
def test_more_decoding_takes_longer(roofline: Roofline, count: int, context: int, more: int, share: float) -> None:
    shorter = roofline.step_seconds(StepBatch.decode(count, count * context), sm_share=share)
    longer_contexts = roofline.step_seconds(StepBatch.decode(count, count * (context + more)), sm_share=share)
    more_requests = roofline.step_seconds(StepBatch.decode(count + more, (count + more) * context), sm_share=share)
    assert shorter < longer_contexts
    assert shorter < more_requests * (1 + 1e-12)


@given(roofline=rooflines, count=requests, context=tokens, chunk=tokens, done=contexts, share=shares, less=shares)
def test_fewer_sms_take_longer(
    roofline: Roofline, count: int, context: int, chunk: int, done: int, share: float, less: float
) -> None:
    batch = StepBatch.decode(count, count * context).with_chunks(chunk, done)
    assert roofline.step_seconds(batch, sm_share=share) <= roofline.step_seconds(batch, sm_share=share * less) * (
        1 + 1e-12
    )


@given(roofline=rooflines, count=requests, context=tokens, chunk=tokens, done=contexts, share=shares)
def test_a_mixed_step_is_no_shorter_than_either_part_and_no_longer_than_both(
    roofline: Roofline, count: int, context: int, chunk: int, done: int, share: float
) -> None:
    decode, prefill = StepBatch.decode(count, count * context), StepBatch.prefill(chunk, done)
    mixed = roofline.step_seconds(decode.with_chunks(chunk, done), sm_share=share)
    apart = [roofline.step_seconds(part, sm_share=share) for part in (decode, prefill)]
    assert max(apart) < mixed
    assert mixed <= sum(apart) * roofline.calibrated.efficiencies.sustained_slowdown * (1 + 1e-9)


@given(roofline=rooflines, prompt=st.integers(2, 32_768), chunk=st.integers(1, 32_768))
def test_chunks_cost_their_prompts_attention(roofline: Roofline, prompt: int, chunk: int) -> None:
    """Attention is counted exactly, so cutting a prompt wins nothing but what short products gain in clock rate."""
    first = min(chunk, prompt - 1)
    whole = StepBatch.prefill(prompt)
    cut = StepBatch.prefill(first).with_chunks(prompt - first, first)
    assert cut.prefill_pairs == pytest.approx(whole.prefill_pairs, rel=1e-12)
    slowdown = roofline.calibrated.efficiencies.sustained_slowdown
    pieces, at_once = (StepBatch.prefill(first), StepBatch.prefill(prompt - first, first)), roofline.step_seconds(whole)
    assert sum(map(roofline.step_seconds, pieces)) >= at_once / slowdown


@given(
    st.sampled_from(list(ROOFLINES.values())), st.lists(st.integers(1, 9000), max_size=4), st.sampled_from([256, 4096])
)
def test_a_prompt_takes_its_chunks_in_whatever_order_prompts_are_asked_for(
    roofline: Roofline, prompts: list[int], chunk: int
) -> None:
    for prompt in prompts:
        steps = [StepBatch.prefill(min(chunk, prompt - done), done) for done in range(0, prompt, chunk)]
        in_all = sum(roofline.step_seconds(step) for step in steps)
        assert roofline.prompt_seconds(prompt, chunk_tokens=chunk) == pytest.approx(in_all)


@given(roofline=rooflines, chunks=st.lists(st.tuples(tokens, contexts), min_size=1, max_size=5), count=requests)
def test_each_requests_own_maximum_is_no_less_than_that_of_the_moments(
    roofline: Roofline, chunks: list[tuple[int, int]], count: int
) -> None:
    parts = [StepBatch.decode(count, 500 * count), *(StepBatch.prefill(*chunk) for chunk in chunks)]
    assert roofline.step_seconds_by_request(parts) >= roofline.step_seconds(StepBatch.of(parts)) * (1 - 1e-9)
    alike = [StepBatch.prefill(*chunks[0])] * len(chunks)
    assert roofline.step_seconds_by_request(alike) == pytest.approx(roofline.step_seconds(StepBatch.of(alike)))


@given(roofline=rooflines, count=requests, context=tokens, chunk=st.integers(0, 8192))
def test_many_shares_at_once_are_each_alone(roofline: Roofline, count: int, context: int, chunk: int) -> None:
    batch = StepBatch.decode(count, count * context)
    batch = batch.with_chunks(chunk, 100) if chunk else batch
    percents = np.array([0.05, 0.31, 0.5, 0.83, 1.0])
    alone = [roofline.step_seconds(batch, sm_share=float(share)) for share in percents]
    assert roofline.step_seconds_over(batch, percents) == pytest.approx(alone, rel=1e-12)


@given(roofline=rooflines, count=requests, context=tokens, chunk=tokens)
def test_terms_add_up_to_the_step(roofline: Roofline, count: int, context: int, chunk: int) -> None:
    batch = StepBatch.decode(count, count * context).with_chunks(chunk)
    assert sum(roofline.terms(batch, sm_share=0.5)) == pytest.approx(roofline.step_seconds(batch, sm_share=0.5))


@pytest.mark.parametrize("name", list(CurveName))
@given(share=shares, batch_size=requests)
def test_the_whole_gpu_is_the_same_on_every_curve(name: CurveName, share: float, batch_size: int) -> None:
    gpu, shape = find_gpu("h100-sxm"), find_shape("Qwen/Qwen3-8B")
    batch = StepBatch.decode(batch_size, 1000 * batch_size)
    curved = Roofline(shape, gpu, curve=SmCurve.assumed(gpu, name))
    assert curved.step_seconds(batch) == Roofline(shape, gpu).step_seconds(batch)
    best = Roofline(shape, gpu, curve=SmCurve.assumed(gpu, CurveName.OPTIMISTIC)).step_seconds(batch, sm_share=share)
    worst = Roofline(shape, gpu, curve=SmCurve.assumed(gpu, CurveName.PESSIMISTIC)).step_seconds(batch, sm_share=share)
    assert best <= curved.step_seconds(batch, sm_share=share) <= worst


def test_an_mps_share_is_that_share_of_the_sms() -> None:
    gpu, shape = find_gpu("h100-sxm"), find_shape("Qwen/Qwen3-8B")
    batch = StepBatch.decode(32, 32_000).with_chunks(512)
    half = Roofline(shape, gpu.with_mps(50))
    assert half.sms == 66
    assert half.step_seconds(batch) == Roofline(shape, gpu).step_seconds(batch, sm_share=0.5)


def test_more_tensor_parallel_ranks_take_less_time_but_not_in_proportion() -> None:
    batch = StepBatch.prefill(4096)
    one, four = (ROOFLINES["meta-llama/Llama-3.1-8B", "h100-sxm", ranks].step_seconds(batch) for ranks in (1, 4))
    assert one / 4 < four < one


def test_heads_must_divide_by_the_tensor_parallel_size() -> None:
    with pytest.raises(ValueError, match="tp: 32 attention heads can't be divided among 3 GPUs"):
        Roofline(find_shape("meta-llama/Llama-3.1-8B"), find_gpu("h100-sxm"), ranks=3)


H100, L40S, SLICE = "h100-sxm", "l40s", "h100-3g.40gb"


@pytest.mark.parametrize(
    ("model", "gpu", "batch", "share", "basis"),
    [
        (MODELS[0], H100, StepBatch.prefill(512), 1.0, Basis.KERNEL_COMPOSED),
        (MODELS[0], H100, StepBatch.decode(8, 8000), 1.0, Basis.KERNEL_COMPOSED),
        (MODELS[0], H100, StepBatch.prefill(512, 512), 1.0, Basis.ASSUMED),
        (MODELS[0], H100, StepBatch.decode(8, 8000).with_chunks(512), 1.0, Basis.ASSUMED),
        (MODELS[0], H100, StepBatch.decode(8, 8000), 0.5, Basis.ASSUMED),
        (MODELS[4], H100, StepBatch.decode(8, 8000), 1.0, Basis.ASSUMED),
        (MODELS[2], H100, StepBatch.decode(8, 8000), 1.0, Basis.KERNEL_COMPOSED),
        (MODELS[0], L40S, StepBatch.decode(8, 8000), 1.0, Basis.DATA_SHEET),
        (MODELS[0], SLICE, StepBatch.decode(8, 8000), 1.0, Basis.DATA_SHEET),
    ],
)
def test_a_step_says_what_it_rests_on(model: str, gpu: str, batch: StepBatch, share: float, basis: Basis) -> None:
    assert ROOFLINES[model, gpu, 1].step(batch, sm_share=share).basis is basis
