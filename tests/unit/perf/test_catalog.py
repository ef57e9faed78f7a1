"""Profiles: what a replica can do by the names of its GPU and its model, and what that rests on."""

from pathlib import Path

import pytest

from duet_engine.perf import catalog
from duet_engine.perf.hardware import find_gpu
from duet_engine.perf.interface import StepBatch
from duet_engine.perf.models import find_shape
from duet_engine.perf.replica import replica_from_document
from duet_engine.perf.roofline import Roofline
from duet_engine.protocol import Role

LLAMA = catalog.REFERENCE_MODEL


def test_a_profile_predicts_what_the_performance_model_does() -> None:
    told = catalog.profile("h100_sxm", "Qwen/Qwen3-32B", role=Role.DECODE, tensor_parallel_size=2)
    model = Roofline(find_shape("Qwen/Qwen3-32B"), find_gpu("h100-sxm"), ranks=2)
    read = replica_from_document(told.replica)
    batch = StepBatch.decode(16, 16_000).with_chunks(512, 1000)
    assert read.step(batch) == model.step(batch)
    assert (told.gpu, told.gpus_per_replica, told.kv_capacity_tokens) == ("h100-sxm", 2, model.kv_capacity_tokens)


@pytest.mark.parametrize(
    ("gpu", "role", "basis"),
    [
        ("a100-sxm", Role.PREFILL, "kernel-composed"),
        ("a100-sxm", Role.UNIFIED, "kernel-composed"),
        ("a100-3g.40gb", Role.DECODE, "data-sheet"),
        ("b200-sxm", Role.DECODE, "data-sheet"),
        ("b200-4g.90gb", Role.DECODE, "data-sheet"),
    ],
)
def test_a_profile_says_what_its_role_s_steps_rest_on(gpu: str, role: Role, basis: str) -> None:
    assert catalog.profile(gpu, LLAMA, role=role).basis == basis


def test_a_model_may_be_a_config(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(
        '{"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "hidden_size": 512, "vocab_size": 1000,'
        ' "num_attention_heads": 8, "intermediate_size": 1024}'
    )
    assert catalog.profile("a100-1g.10gb", str(config), role=Role.DECODE).kv_capacity_tokens > 10**6


def test_equal_profiles_have_equal_digests_and_others_have_not() -> None:
    one, same = (catalog.profile("h100-sxm", LLAMA, role=Role.DECODE) for _ in range(2))
    other = catalog.with_digest(one.model_copy(update={"max_running_requests": 3}))
    assert one == same
    assert len({one.digest, other.digest, catalog.profile("h200-sxm", LLAMA, role=Role.DECODE).digest}) == 3


@pytest.mark.parametrize(
    ("gpu", "model", "message"),
    [
        ("v100", LLAMA, "unknown GPU 'v100'; known are a100-1g.10gb"),
        ("h100-sxm", "gpt-2", "unknown model 'gpt-2'; give its config.json, or one of"),
        ("h100-1g.10gb", LLAMA, "15.0 GiB for its weights and doesn't fit 1 x h100-1g.10gb"),
    ],
)
def test_what_cannot_be_is_refused_with_the_choice(gpu: str, model: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        catalog.profile(gpu, model, role=Role.DECODE)
