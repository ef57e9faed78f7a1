"""Models by their id, or by a config.json where the table lacks them.

Invariant: each entry is what `shape_from_config` makes of that model's config.json; variants that share their shape
(`-Instruct`, `-Base`, `Meta-` names, dated releases) are found by the name without them.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

from duet_engine.perf.shape import Experts, LatentAttention, ModelShape, shape_from_config


class UnknownModelError(ValueError):
    """A model id that the table lacks; the message lists those that it has."""


def _dense(
    layers: int, hidden: int, heads: int, key_value_heads: int, intermediate: int, *, family: str, tied: bool = False
) -> ModelShape:
    head_size, vocabulary, context_length = _FAMILIES[family]
    return ModelShape(
        layers=layers,
        hidden_size=hidden,
        query_heads=heads,
        key_value_heads=key_value_heads,
        head_size=head_size or hidden // heads,
        intermediate_size=intermediate,
        vocabulary=vocabulary,
        context_length=context_length,
        tied_embeddings=tied,
    )


_FAMILIES = {  # head size (0: hidden / heads), vocabulary, context
    "llama2": (0, 32_000, 4_096),
    "llama3": (0, 128_256, 131_072),
    "llama3.0": (0, 128_256, 8_192),
    "qwen2": (0, 151_936, 32_768),
    "qwen2-large": (0, 152_064, 32_768),
    "qwen3": (128, 151_936, 40_960),
    "mistral": (128, 32_768, 32_768),
}

MODELS: dict[str, ModelShape] = {
    "meta-llama/Llama-2-7b-hf": _dense(32, 4096, 32, 32, 11_008, family="llama2"),
    "meta-llama/Llama-2-13b-hf": _dense(40, 5120, 40, 40, 13_824, family="llama2"),
    "meta-llama/Llama-2-70b-hf": _dense(80, 8192, 64, 8, 28_672, family="llama2"),
    "meta-llama/Llama-3-8B": _dense(32, 4096, 32, 8, 14_336, family="llama3.0"),
    "meta-llama/Llama-3-70B": _dense(80, 8192, 64, 8, 28_672, family="llama3.0"),
    "meta-llama/Llama-3.1-8B": _dense(32, 4096, 32, 8, 14_336, family="llama3"),
    "meta-llama/Llama-3.1-70B": _dense(80, 8192, 64, 8, 28_672, family="llama3"),
    "meta-llama/Llama-3.1-405B": _dense(126, 16_384, 128, 8, 53_248, family="llama3"),
    "meta-llama/Llama-3.2-1B": _dense(16, 2048, 32, 8, 8_192, family="llama3", tied=True),
    "meta-llama/Llama-3.2-3B": _dense(28, 3072, 24, 8, 8_192, family="llama3", tied=True),
    "meta-llama/Llama-3.3-70B": _dense(80, 8192, 64, 8, 28_672, family="llama3"),
    "Qwen/Qwen2.5-0.5B": _dense(24, 896, 14, 2, 4_864, family="qwen2", tied=True),
    "Qwen/Qwen2.5-1.5B": _dense(28, 1536, 12, 2, 8_960, family="qwen2", tied=True),
    "Qwen/Qwen2.5-3B": _dense(36, 2048, 16, 2, 11_008, family="qwen2", tied=True),
    "Qwen/Qwen2.5-7B": _dense(28, 3584, 28, 4, 18_944, family="qwen2-large"),
    "Qwen/Qwen2.5-14B": _dense(48, 5120, 40, 8, 13_824, family="qwen2-large"),
    "Qwen/Qwen2.5-32B": _dense(64, 5120, 40, 8, 27_648, family="qwen2-large"),
    "Qwen/Qwen2.5-72B": _dense(80, 8192, 64, 8, 29_568, family="qwen2-large"),
    "Qwen/Qwen3-0.6B": _dense(28, 1024, 16, 8, 3_072, family="qwen3", tied=True),
    "Qwen/Qwen3-1.7B": _dense(28, 2048, 16, 8, 6_144, family="qwen3", tied=True),
    "Qwen/Qwen3-4B": _dense(36, 2560, 32, 8, 9_728, family="qwen3", tied=True),
    "Qwen/Qwen3-8B": _dense(36, 4096, 32, 8, 12_288, family="qwen3"),
    "Qwen/Qwen3-14B": _dense(40, 5120, 40, 8, 17_408, family="qwen3"),
    "Qwen/Qwen3-32B": _dense(64, 5120, 64, 8, 25_600, family="qwen3"),
    "mistralai/Mistral-7B-v0.3": _dense(32, 4096, 32, 8, 14_336, family="mistral"),
    "Qwen/Qwen3-30B-A3B": ModelShape(
        layers=48,
        hidden_size=2048,
        query_heads=32,
        key_value_heads=4,
        head_size=128,
        intermediate_size=6_144,
        vocabulary=151_936,
        context_length=40_960,
        experts=Experts(count=128, per_token=8, intermediate_size=768),
    ),
    "Qwen/Qwen3-235B-A22B": ModelShape(
        layers=94,
        hidden_size=4096,
        query_heads=64,
        key_value_heads=4,
        head_size=128,
        intermediate_size=12_288,
        vocabulary=151_936,
        context_length=40_960,
        experts=Experts(count=128, per_token=8, intermediate_size=1_536),
    ),
    "mistralai/Mixtral-8x7B-v0.1": ModelShape(
        layers=32,
        hidden_size=4096,
        query_heads=32,
        key_value_heads=8,
        head_size=128,
        intermediate_size=14_336,
        vocabulary=32_000,
        context_length=32_768,
        experts=Experts(count=8, per_token=2, intermediate_size=14_336),
    ),
    "mistralai/Mixtral-8x22B-v0.1": ModelShape(
        layers=56,
        hidden_size=6144,
        query_heads=48,
        key_value_heads=8,
        head_size=128,
        intermediate_size=16_384,
        vocabulary=32_768,
        context_length=65_536,
        experts=Experts(count=8, per_token=2, intermediate_size=16_384),
    ),
    "deepseek-ai/DeepSeek-V2-Lite": ModelShape(
        layers=27,
        hidden_size=2048,
        query_heads=16,
        key_value_heads=16,
        head_size=128,
        intermediate_size=10_944,
        vocabulary=102_400,
        context_length=163_840,
        experts=Experts(count=64, per_token=6, intermediate_size=1_408, shared_intermediate_size=2_816, dense_layers=1),
        latent=LatentAttention(key_value_rank=512, query_rank=0, rotary_size=64, value_size=128),
    ),
}

_VARIANT = re.compile(r"(-instruct|-chat|-base|-it|-hf|-2507|-thinking)+(?=-v\d|$)|-v\d+(\.\d+)?$")


def _plain(model_id: str) -> str:
    """The id without organisation and variant."""
    name = model_id.rsplit("/", 1)[-1].lower().removeprefix("meta-")
    while (shorter := _VARIANT.sub("", name)) != name:
        name = shorter
    return name


_BY_PLAIN_NAME = {_plain(model_id): shape for model_id, shape in MODELS.items()}


@cache
def find_shape(model: str) -> ModelShape:
    """The shape of a known model, whatever its variant, or of the model that a config.json, or its folder, describes.

    Raises:
        UnknownModelError: for an id that the table lacks.
        OSError: when the config.json can't be read.
        ValueError: when it isn't JSON, or not of a known architecture.
    """
    described = Path(model) if model.endswith(".json") else Path(model, "config.json")
    if model.endswith(".json") or described.is_file():
        return shape_from_config(json.loads(described.read_text(encoding="utf-8")))
    try:
        return _BY_PLAIN_NAME[_plain(model)]
    except KeyError:
        raise UnknownModelError(
            f"unknown model {model!r}; give its config.json, or one of {', '.join(sorted(MODELS))}"
        ) from None
