"""The catalogue: slices are slower by their shares, memory bounds KV, and what is assumed says so."""

import pytest

from duet_engine.perf import catalog
from duet_engine.perf.linear import LinearStepModel
from duet_engine.protocol import Role

LLAMA = catalog.REFERENCE_MODEL


def steps(gpu: str, model: str) -> LinearStepModel:
    return LinearStepModel.from_coefficients(catalog.profile(gpu, model, role=Role.DECODE).steps)


def test_the_fits_are_those_of_the_data_s_notes() -> None:
    """H100, 8B: prefill 4.59 + 0.01829 n + 5.80e-7 n² ms; decode 6.49 + 0.00765 B + 4.21e-5 B ctx ms."""
    model = steps("h100-sxm", LLAMA)
    assert model.prefill_step_seconds(2000) * 1e3 == pytest.approx(4.59 + 36.58 + 2.32)
    assert model.decode_step_seconds(64, 64 * 1000) * 1e3 == pytest.approx(6.49 + 0.4896 + 2.6944)


@pytest.mark.parametrize("family", ["a100", "h100", "h200"])
def test_a_slice_has_its_share_of_sms_and_of_bandwidth(family: str) -> None:
    small = "Qwen/Qwen3-0.6B"
    whole = steps(f"{family}-sxm", small)
    name = next(name for name in sorted(catalog.GPUS) if name.startswith(f"{family}-3g"))
    part = steps(name, small)
    assert part.prefill_step_seconds(1000) == pytest.approx(whole.prefill_step_seconds(1000) * 7 / 3)
    assert part.decode_step_seconds(0, 5000) == pytest.approx(whole.decode_step_seconds(0, 5000) * 2)


def test_a_larger_model_is_slower_and_leaves_less_kv() -> None:
    names = ["Qwen/Qwen3-0.6B", "Qwen/Qwen3-4B", "Qwen/Qwen3-8B", "Qwen/Qwen3-14B"]
    profiles = [catalog.profile("h100-sxm", name, role=Role.PREFILL) for name in names]
    capacities = [profile.kv_capacity_tokens for profile in profiles]
    seconds = [LinearStepModel.from_coefficients(profile.steps).prefill_step_seconds(4000) for profile in profiles]
    assert capacities == sorted(capacities, reverse=True)
    assert seconds == sorted(seconds)


def test_only_the_fitted_model_on_a_whole_gpu_is_more_than_assumed() -> None:
    assert catalog.profile("a100-sxm", LLAMA, role=Role.DECODE).basis == "kernel-composed"
    assert catalog.profile("a100-7g.80gb", "Qwen/Qwen3-8B", role=Role.DECODE).basis == "assumed"
    assert catalog.profile("a100-3g.40gb", LLAMA, role=Role.DECODE).basis == "assumed"


def test_two_gpus_are_faster_and_hold_more_than_one() -> None:
    one = catalog.profile("h100-sxm", "Qwen/Qwen3-32B", role=Role.DECODE)
    two = catalog.profile("h100-sxm", "Qwen/Qwen3-32B", role=Role.DECODE, tensor_parallel_size=2)
    assert two.kv_capacity_tokens > 2 * one.kv_capacity_tokens
    assert one.steps.decode_base_seconds / 2 < two.steps.decode_base_seconds < one.steps.decode_base_seconds


def test_equal_profiles_have_equal_digests_and_others_have_not() -> None:
    one, same = (catalog.profile("h100-sxm", LLAMA, role=Role.DECODE) for _ in range(2))
    other = catalog.with_digest(one.model_copy(update={"max_running_requests": 3}))
    assert one == same
    assert len({one.digest, other.digest, catalog.profile("h200-sxm", LLAMA, role=Role.DECODE).digest}) == 3


@pytest.mark.parametrize(
    ("gpu", "model", "message"),
    [
        ("v100", LLAMA, "unknown GPU 'v100'; known are a100-1g.10gb"),
        ("h100-sxm", "gpt-2", "unknown model 'gpt-2'; known are"),
        ("h100-1g.10gb", LLAMA, "15.0 GiB for its weights and doesn't fit 1 x h100-1g.10gb"),
    ],
)
def test_what_cannot_be_is_refused_with_the_choice(gpu: str, model: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        catalog.profile(gpu, model, role=Role.DECODE)
