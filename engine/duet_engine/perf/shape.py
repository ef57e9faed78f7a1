"""What of a model decides its step times and its memory, read from a Hugging Face config.json.

Invariant: a shape comes from an architecture whose layers are known here; any other is refused by name, because a
wrong guess would look like a prediction.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

BYTES_PER_VALUE = 2
"""Weights, activations and KV in bf16."""


class UnknownArchitectureError(ValueError):
    """A config.json of an architecture whose layers aren't known, or that lacks a field."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """The mixture of experts that replaces the feed-forward part."""

    count: int
    per_token: int
    intermediate_size: int
    shared_intermediate_size: int = 0
    """Of the experts that every token takes, together."""
    dense_layers: int = 0
    """First layers that have an ordinary feed-forward part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek-V2): one compressed vector a token instead of keys and values."""

    key_value_rank: int
    query_rank: int
    """0: queries aren't compressed."""
    rotary_size: int
    value_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """A decoder-only transformer."""

    layers: int
    hidden_size: int
    query_heads: int
    key_value_heads: int
    head_size: int
    """Of a query head; with latent attention its part without rotation."""
    intermediate_size: int
    vocabulary: int
    context_length: int
    tied_embeddings: bool = False
    experts: Experts | None = None
    latent: LatentAttention | None = None

    @property
    def expert_layers(self) -> int:
        return self.layers - self.experts.dense_layers if self.experts else 0

    @property
    def attention_weights(self) -> float:
        """Weights of one layer's attention."""
        return math.fsum(inputs * outputs for inputs, outputs in self.attention_linears(1))

    def attention_linears(self, ranks: int) -> tuple[tuple[float, float], ...]:
        """Inputs and outputs of the matrices of one layer's attention, on one of `ranks` tensor-parallel GPUs."""
        heads = self.query_heads / ranks
        if self.latent is None:
            outputs = (heads + 2 * self.key_value_heads_on(ranks)) * self.head_size
            return (self.hidden_size, outputs), (heads * self.head_size, self.hidden_size)
        latent = self.latent
        query_size = heads * (self.head_size + latent.rotary_size)
        down = latent.key_value_rank + latent.rotary_size
        queries: tuple[tuple[float, float], ...] = ((self.hidden_size, query_size + down),)
        if latent.query_rank:
            queries = (self.hidden_size, latent.query_rank + down), (latent.query_rank, query_size)
        up = (latent.key_value_rank, heads * (self.head_size + latent.value_size))
        return *queries, up, (heads * latent.value_size, self.hidden_size)

    def key_value_heads_on(self, ranks: int) -> float:
        """KV heads on each of `ranks` GPUs: with fewer heads than GPUs each holds a copy of one."""
        return max(1.0, self.key_value_heads / ranks)

    @property
    def parameters(self) -> int:
        """Weights of the whole model, but for norms and biases."""
        embeddings = self.vocabulary * self.hidden_size * (1 if self.tied_embeddings else 2)
        dense = 3 * self.hidden_size * self.intermediate_size * (self.layers - self.expert_layers)
        sparse = 0
        if self.experts:
            width = self.experts.count * self.experts.intermediate_size + self.experts.shared_intermediate_size
            sparse = self.expert_layers * self.hidden_size * (3 * width + self.experts.count)
        return int(self.layers * self.attention_weights + dense + sparse + embeddings)

    @property
    def weight_bytes(self) -> int:
        return self.parameters * BYTES_PER_VALUE

    def layer_kv_bytes_per_token(self, ranks: int) -> float:
        """KV of one token in one layer, on one of `ranks` GPUs."""
        if self.latent:
            return (self.latent.key_value_rank + self.latent.rotary_size) * BYTES_PER_VALUE
        return 2 * self.key_value_heads_on(ranks) * self.head_size * BYTES_PER_VALUE

    def kv_bytes_per_token(self, ranks: int = 1) -> float:
        """KV of one token on one of `ranks` GPUs."""
        return self.layers * self.layer_kv_bytes_per_token(ranks)

    def flops_per_pair(self, *, absorbed: bool) -> float:
        """Attention work of one layer for a pair of tokens; `absorbed`: on compressed vectors, as in decode."""
        if self.latent is None:
            return 4.0 * self.query_heads * self.head_size
        latent = self.latent
        if absorbed:
            return 2.0 * self.query_heads * (2 * latent.key_value_rank + latent.rotary_size)
        return 2.0 * self.query_heads * (self.head_size + latent.rotary_size + latent.value_size)

    def check_ranks(self, ranks: int) -> None:
        """Refuse a tensor-parallel size that the heads don't divide by."""
        if ranks < 1 or self.query_heads % ranks:
            raise ValueError(f"tp: {self.query_heads} attention heads can't be divided among {ranks} GPUs")


DENSE = frozenset({"LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "MistralForCausalLM"})
KNOWN = DENSE | {"Qwen3MoeForCausalLM", "MixtralForCausalLM", "DeepseekV2ForCausalLM"}


QWEN3_HEAD_SIZE = 128
"""What Qwen3's config.json needn't say; the others' heads share the hidden size where theirs doesn't say."""


def shape_from_config(config: Mapping[str, Any]) -> ModelShape:
    """The shape that a config.json describes.

    Raises:
        UnknownArchitectureError: for an architecture that isn't known, quantized weights, or a field that is missing or
            no number.
    """
    if not isinstance(config, Mapping):
        raise UnknownArchitectureError(f"a config.json is an object, this is a {type(config).__name__}")
    architecture = (config.get("architectures") or ["(none)"])[0]
    if architecture not in KNOWN:
        raise UnknownArchitectureError(f"unknown architecture {architecture}; known are {', '.join(sorted(KNOWN))}")
    if quantization := config.get("quantization_config"):
        method = quantization.get("quant_method", "unknown") if isinstance(quantization, Mapping) else quantization
        raise UnknownArchitectureError(
            f"config.json of {architecture} describes quantized weights ({method}); step times are known for bf16 only"
        )
    try:
        return _shape(architecture, config)
    except KeyError as error:
        raise UnknownArchitectureError(f"config.json of {architecture} lacks the field {error.args[0]!r}") from None
    except (TypeError, ValueError) as error:
        raise UnknownArchitectureError(
            f"config.json of {architecture} has a field that is no number: {error}"
        ) from None


def _shape(architecture: str, config: Mapping[str, Any]) -> ModelShape:
    heads = int(config["num_attention_heads"])
    hidden = int(config["hidden_size"])
    latent = _latent(config) if architecture == "DeepseekV2ForCausalLM" else None
    unsaid = QWEN3_HEAD_SIZE if architecture == "Qwen3ForCausalLM" else hidden // heads
    head_size = config["qk_nope_head_dim"] if latent else config.get("head_dim") or unsaid
    return ModelShape(
        layers=int(config["num_hidden_layers"]),
        hidden_size=hidden,
        query_heads=heads,
        key_value_heads=int(config.get("num_key_value_heads") or heads),
        head_size=int(head_size),
        intermediate_size=int(config["intermediate_size"]),
        vocabulary=int(config["vocab_size"]),
        context_length=int(config.get("max_position_embeddings", 4096)),
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        experts=_experts(architecture, config),
        latent=latent,
    )


def _experts(architecture: str, config: Mapping[str, Any]) -> Experts | None:
    if architecture == "MixtralForCausalLM":
        return Experts(
            count=int(config["num_local_experts"]),
            per_token=int(config["num_experts_per_tok"]),
            intermediate_size=int(config["intermediate_size"]),
        )
    if architecture == "Qwen3MoeForCausalLM":
        return Experts(
            count=int(config["num_experts"]),
            per_token=int(config["num_experts_per_tok"]),
            intermediate_size=int(config["moe_intermediate_size"]),
            dense_layers=_dense_layers(
                config, every=int(config.get("decoder_sparse_step") or 1), dense=config.get("mlp_only_layers") or ()
            ),
        )
    if architecture == "DeepseekV2ForCausalLM":
        width = int(config["moe_intermediate_size"])
        return Experts(
            count=int(config["n_routed_experts"]),
            per_token=int(config["num_experts_per_tok"]),
            intermediate_size=width,
            shared_intermediate_size=width * int(config.get("n_shared_experts") or 0),
            dense_layers=int(config.get("first_k_dense_replace", 0)),
        )
    return None


def _dense_layers(config: Mapping[str, Any], *, every: int, dense: Collection[int]) -> int:
    """Layers without experts: those named, and where only every so manieth has any, the others."""
    layers = int(config["num_hidden_layers"])
    return sum(layer in dense or (layer + 1) % every != 0 for layer in range(layers))


def _latent(config: Mapping[str, Any]) -> LatentAttention:
    return LatentAttention(
        key_value_rank=int(config["kv_lora_rank"]),
        query_rank=int(config.get("q_lora_rank") or 0),
        rotary_size=int(config["qk_rope_head_dim"]),
        value_size=int(config["v_head_dim"]),
    )
