"""Shapes from config.json: golden sizes of published models, and refusals by name."""

from __future__ import annotations

from typing import Any

import pytest

from duet_engine.perf.models import MODELS, UnknownModelError, find_shape
from duet_engine.perf.shape import UnknownArchitectureError, shape_from_config

CONFIGS: dict[str, dict[str, Any]] = {
    "meta-llama/Llama-3.1-8B": {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "max_position_embeddings": 131072,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": False,
        "vocab_size": 128256,
    },
    "Qwen/Qwen2.5-7B": {
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "max_position_embeddings": 32768,
        "num_attention_heads": 28,
        "num_hidden_layers": 28,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
        "vocab_size": 152064,
    },
    "Qwen/Qwen3-0.6B": {
        "architectures": ["Qwen3ForCausalLM"],
        "head_dim": 128,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "max_position_embeddings": 40960,
        "num_attention_heads": 16,
        "num_hidden_layers": 28,
        "num_key_value_heads": 8,
        "tie_word_embeddings": True,
        "vocab_size": 151936,
    },
    "Qwen/Qwen3-30B-A3B": {
        "architectures": ["Qwen3MoeForCausalLM"],
        "head_dim": 128,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "max_position_embeddings": 40960,
        "mlp_only_layers": [],
        "moe_intermediate_size": 768,
        "num_attention_heads": 32,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 48,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
        "vocab_size": 151936,
    },
    "mistralai/Mixtral-8x7B-v0.1": {
        "architectures": ["MixtralForCausalLM"],
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "max_position_embeddings": 32768,
        "num_attention_heads": 32,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "tie_word_embeddings": False,
        "vocab_size": 32000,
    },
    "deepseek-ai/DeepSeek-V2-Lite": {
        "architectures": ["DeepseekV2ForCausalLM"],
        "first_k_dense_replace": 1,
        "hidden_size": 2048,
        "intermediate_size": 10944,
        "kv_lora_rank": 512,
        "max_position_embeddings": 163840,
        "moe_intermediate_size": 1408,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "num_attention_heads": 16,
        "num_experts_per_tok": 6,
        "num_hidden_layers": 27,
        "num_key_value_heads": 16,
        "q_lora_rank": None,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "tie_word_embeddings": False,
        "v_head_dim": 128,
        "vocab_size": 102400,
    },
}


@pytest.mark.parametrize("model_id", sorted(CONFIGS))
def test_the_table_holds_what_the_config_says(model_id: str) -> None:
    assert shape_from_config(CONFIGS[model_id]) == MODELS[model_id]


@pytest.mark.parametrize(
    ("model_id", "billions", "kv_bytes"),
    [
        ("meta-llama/Llama-3.1-8B", 8.03, 131_072),
        ("meta-llama/Llama-3.1-70B", 70.55, 327_680),
        ("meta-llama/Llama-3.1-405B", 405.85, 516_096),
        ("Qwen/Qwen3-0.6B", 0.596, 114_688),
        ("Qwen/Qwen3-32B", 32.76, 262_144),
        ("Qwen/Qwen3-30B-A3B", 30.53, 98_304),
        ("Qwen/Qwen3-235B-A22B", 235.1, 192_512),
        ("mistralai/Mixtral-8x7B-v0.1", 46.70, 131_072),
        ("deepseek-ai/DeepSeek-V2-Lite", 15.71, 31_104),
    ],
)
def test_sizes_are_the_published_ones(model_id: str, billions: float, kv_bytes: int) -> None:
    shape = find_shape(model_id)
    assert shape.parameters / 1e9 == pytest.approx(billions, rel=2e-3)
    assert shape.kv_bytes_per_token() == kv_bytes


@pytest.mark.parametrize(
    ("variant", "model_id"),
    [
        ("meta-llama/Meta-Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
        ("meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-8B"),
        ("Qwen/Qwen3-30B-A3B-Instruct-2507", "Qwen/Qwen3-30B-A3B"),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", "mistralai/Mixtral-8x7B-v0.1"),
        ("deepseek-ai/DeepSeek-V2-Lite-Chat", "deepseek-ai/DeepSeek-V2-Lite"),
        ("meta-llama/Llama-2-70b-chat-hf", "meta-llama/Llama-2-70b-hf"),
    ],
)
def test_variants_have_their_models_shape(variant: str, model_id: str) -> None:
    assert find_shape(variant) is MODELS[model_id]


def test_an_unknown_architecture_is_refused_by_name() -> None:
    with pytest.raises(UnknownArchitectureError, match=r"MambaForCausalLM; known are .*LlamaForCausalLM"):
        shape_from_config({"architectures": ["MambaForCausalLM"]})


def test_a_missing_field_is_named() -> None:
    config = {name: value for name, value in CONFIGS["Qwen/Qwen3-30B-A3B"].items() if name != "num_experts"}
    with pytest.raises(UnknownArchitectureError, match="Qwen3MoeForCausalLM lacks the field 'num_experts'"):
        shape_from_config(config)


def test_quantized_weights_are_refused_with_their_method() -> None:
    config = CONFIGS["meta-llama/Llama-3.1-8B"] | {"quantization_config": {"quant_method": "fp8", "bits": 8}}
    with pytest.raises(UnknownArchitectureError, match=r"quantized weights \(fp8\)"):
        shape_from_config(config)


@pytest.mark.parametrize(
    "config",
    [[], CONFIGS["Qwen/Qwen3-0.6B"] | {"hidden_size": None}, CONFIGS["Qwen/Qwen3-0.6B"] | {"vocab_size": "many"}],
    ids=["a list", "null", "a word"],
)
def test_what_is_no_config_is_refused(config: Any) -> None:
    with pytest.raises(UnknownArchitectureError, match=r"is an object|is no number"):
        shape_from_config(config)


@pytest.mark.parametrize(
    ("model_id", "changes", "same"),
    [
        pytest.param("Qwen/Qwen3-0.6B", {"head_dim": None}, True, id="Qwen3 needn't say its head size"),
        pytest.param("meta-llama/Llama-3.1-8B", {"head_dim": 128}, True, id="Llama may say it"),
        pytest.param("meta-llama/Llama-3.1-8B", {"head_dim": None, "torch_dtype": "bfloat16"}, True, id="or null"),
        pytest.param(
            "meta-llama/Llama-3.1-8B", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, True, id="rope"
        ),
        pytest.param("meta-llama/Llama-3.1-8B", {"num_key_value_heads": None}, False, id="a key head for each head"),
        pytest.param("Qwen/Qwen3-30B-A3B", {"decoder_sparse_step": 1}, True, id="experts in every layer"),
        pytest.param("Qwen/Qwen3-30B-A3B", {"decoder_sparse_step": 2}, False, id="in every second one"),
    ],
)
def test_layouts_of_published_configs(model_id: str, changes: dict[str, Any], same: bool) -> None:
    shape = shape_from_config(CONFIGS[model_id] | changes)
    assert (shape == MODELS[model_id]) is same
    if "num_key_value_heads" in changes:
        assert shape.key_value_heads == shape.query_heads
    if changes.get("decoder_sparse_step") == 2:
        assert shape.expert_layers == 24


def test_an_unknown_model_is_refused_with_the_way_out() -> None:
    with pytest.raises(UnknownModelError, match=r"'acme/Rocket-9B'; give its config\.json"):
        find_shape("acme/Rocket-9B")


def test_ranks_beyond_the_key_value_heads_hold_copies() -> None:
    shape = find_shape("Qwen/Qwen3-30B-A3B")
    assert shape.kv_bytes_per_token(8) == shape.kv_bytes_per_token(4) == shape.kv_bytes_per_token(1) / 4
