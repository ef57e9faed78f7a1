"""GPUs, slices of them and models: what one replica can do when nobody has measured it.

Invariant: every profile says what its numbers rest on, and equal arguments give an equal digest. Coefficients of
Llama-3.1-8B on whole A100, H100 and H200 SXM are fits to step times that aiconfigurator 0.12.0 composes from measured
SGLang kernels (kernel-composed). Other models are scaled from them by parameters and KV bytes, slices by their share of
the SMs (k/7) and of the memory bandwidth (m/8): assumed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

from duet_engine.perf.linear import LinearStepModel
from duet_engine.protocol import Role, WorkerProfile

GIB = 1024**3
BYTES_PER_WEIGHT = 2
MEMORY_FRACTION = 0.88
"""Share of GPU memory that weights and KV may take; the rest is for activations and graphs."""
TENSOR_PARALLEL_EFFICIENCY = 0.9
TRANSFER_BASE_SECONDS = 0.002
TRANSFER_BYTES_PER_SECOND = 25e9
"""KV leaves over one 200 Gbit/s adapter."""
MAX_RUNNING_REQUESTS = 256


class UnknownName(ValueError):
    """A GPU or model that the catalogue lacks; the message lists those that it has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """What of a model decides its step times and its memory."""

    parameters_billions: float
    layers: int
    key_value_heads: int
    head_size: int
    context_length: int

    @property
    def weight_bytes(self) -> float:
        return self.parameters_billions * 1e9 * BYTES_PER_WEIGHT

    @property
    def kv_bytes_per_token(self) -> int:
        return 2 * self.layers * self.key_value_heads * self.head_size * BYTES_PER_WEIGHT


REFERENCE_MODEL = "meta-llama/Llama-3.1-8B"
MODELS: dict[str, ModelShape] = {
    name: ModelShape(
        parameters_billions=billions, layers=layers, key_value_heads=heads, head_size=size, context_length=context
    )
    for name, billions, layers, heads, size, context in (
        ("Qwen/Qwen3-0.6B", 0.6, 28, 8, 128, 40_960),
        ("Qwen/Qwen3-1.7B", 1.7, 28, 8, 128, 40_960),
        ("Qwen/Qwen3-4B", 4.0, 36, 8, 128, 40_960),
        ("Qwen/Qwen3-8B", 8.2, 36, 8, 128, 40_960),
        ("Qwen/Qwen3-14B", 14.8, 40, 8, 128, 40_960),
        ("Qwen/Qwen3-32B", 32.8, 64, 8, 128, 40_960),
        ("meta-llama/Llama-3.2-1B", 1.24, 16, 8, 64, 131_072),
        ("meta-llama/Llama-3.2-3B", 3.21, 28, 8, 128, 131_072),
        (REFERENCE_MODEL, 8.03, 32, 8, 128, 131_072),
        ("meta-llama/Llama-3.1-8B-Instruct", 8.03, 32, 8, 128, 131_072),
        ("meta-llama/Llama-3.1-70B", 70.6, 80, 8, 128, 131_072),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A GPU or a slice of one."""

    memory_gib: float
    reference_steps: LinearStepModel
    """Step times of the reference model on the whole GPU."""
    compute_share: float = 1.0
    bandwidth_share: float = 1.0

    @property
    def whole(self) -> bool:
        return self.compute_share == 1.0 and self.bandwidth_share == 1.0


def _fit(*, base: float, token: float, square: float, decode: float, request: float, context: float) -> LinearStepModel:
    """A fit in milliseconds, as the data's notes print it."""
    return LinearStepModel(
        prefill_base_seconds=base / 1e3,
        prefill_per_token_seconds=token / 1e3,
        prefill_per_token_squared_seconds=square / 1e3,
        decode_base_seconds=decode / 1e3,
        decode_per_request_seconds=request / 1e3,
        decode_per_context_token_seconds=context / 1e3,
    )


_WHOLE_GPUS: dict[str, Gpu] = {
    "a100-sxm": Gpu(
        memory_gib=80,
        reference_steps=_fit(base=6.53, token=0.0592, square=1.31e-6, decode=11.74, request=0.0198, context=1.26e-4),
    ),
    "h100-sxm": Gpu(
        memory_gib=80,
        reference_steps=_fit(base=4.59, token=0.01829, square=5.80e-7, decode=6.49, request=0.00765, context=4.21e-5),
    ),
    "h200-sxm": Gpu(
        memory_gib=141,
        reference_steps=_fit(base=3.48, token=0.01908, square=5.82e-7, decode=4.78, request=0.01134, context=2.87e-5),
    ),
}
_MIG_PROFILES: dict[str, tuple[tuple[int, int, int], ...]] = {
    # compute slices of 7, memory slices of 8, GB in the profile's name
    "a100": ((1, 1, 10), (1, 2, 20), (2, 2, 20), (3, 4, 40), (4, 4, 40), (7, 8, 80)),
    "h100": ((1, 1, 10), (1, 2, 20), (2, 2, 20), (3, 4, 40), (4, 4, 40), (7, 8, 80)),
    "h200": ((1, 1, 18), (1, 2, 35), (2, 2, 35), (3, 4, 71), (4, 4, 71), (7, 8, 141)),
}


def _slices() -> dict[str, Gpu]:
    return {
        f"{family}-{compute}g.{gigabytes}gb": Gpu(
            memory_gib=gigabytes,
            reference_steps=_WHOLE_GPUS[f"{family}-sxm"].reference_steps,
            compute_share=compute / 7,
            bandwidth_share=memory / 8,
        )
        for family, profiles in _MIG_PROFILES.items()
        for compute, memory, gigabytes in profiles
    }


GPUS: dict[str, Gpu] = _WHOLE_GPUS | _slices()


def find_gpu(name: str) -> Gpu:
    """The GPU or slice of this name."""
    try:
        return GPUS[name]
    except KeyError:
        raise UnknownName(f"unknown GPU {name!r}; known are {', '.join(sorted(GPUS))}") from None


def find_model(model_id: str) -> ModelShape:
    """The shape of this model."""
    try:
        return MODELS[model_id]
    except KeyError:
        raise UnknownName(f"unknown model {model_id!r}; known are {', '.join(sorted(MODELS))}") from None


def step_model(gpu: Gpu, model: ModelShape, *, tensor_parallel_size: int = 1) -> LinearStepModel:
    """Step times of any model on any slice, scaled from the reference model on the whole GPU."""
    reference = MODELS[REFERENCE_MODEL]
    weights = model.parameters_billions / reference.parameters_billions
    context = model.kv_bytes_per_token / reference.kv_bytes_per_token
    launches = model.layers / reference.layers
    ranks = tensor_parallel_size * (TENSOR_PARALLEL_EFFICIENCY if tensor_parallel_size > 1 else 1.0)
    whole = gpu.reference_steps
    scaled_to_model = LinearStepModel(
        prefill_base_seconds=whole.prefill_base_seconds * launches,
        prefill_per_token_seconds=whole.prefill_per_token_seconds * weights,
        prefill_per_token_squared_seconds=whole.prefill_per_token_squared_seconds * context,
        decode_base_seconds=whole.decode_base_seconds * weights,
        decode_per_request_seconds=whole.decode_per_request_seconds * weights,
        decode_per_context_token_seconds=whole.decode_per_context_token_seconds * context,
        transfer_base_seconds=TRANSFER_BASE_SECONDS,
        transfer_per_token_seconds=model.kv_bytes_per_token / TRANSFER_BYTES_PER_SECOND,
    )
    return scaled_to_model.scaled(compute_share=gpu.compute_share * ranks, bandwidth_share=gpu.bandwidth_share * ranks)


def kv_capacity_tokens(gpu: Gpu, model: ModelShape, *, tensor_parallel_size: int = 1) -> int:
    """Tokens whose KV fits beside the weights; 0 when the weights alone don't fit."""
    memory = gpu.memory_gib * GIB * MEMORY_FRACTION * tensor_parallel_size
    return max(0, int((memory - model.weight_bytes) / model.kv_bytes_per_token))


def chunked_prefill_tokens(gpu: Gpu) -> int:
    """SGLang's own default for a GPU of this memory."""
    if gpu.memory_gib < 35:
        return 2048
    return 4096 if gpu.memory_gib < 60 else 8192


def profile(gpu_name: str, model_id: str, *, role: Role, tensor_parallel_size: int = 1) -> WorkerProfile:
    """What one replica of `role` with this model on this GPU or slice can do.

    Raises:
        UnknownName: for a GPU or model that the catalogue lacks.
        ValueError: when the model's weights don't fit.
    """
    gpu, model = find_gpu(gpu_name), find_model(model_id)
    capacity = kv_capacity_tokens(gpu, model, tensor_parallel_size=tensor_parallel_size)
    if capacity == 0:
        raise ValueError(
            f"{model_id} needs {model.weight_bytes / GIB:.1f} GiB for its weights and doesn't fit "
            f"{tensor_parallel_size} x {gpu_name} ({gpu.memory_gib:g} GB each); take a larger GPU or a smaller model"
        )
    reference = gpu.whole and tensor_parallel_size == 1 and model == MODELS[REFERENCE_MODEL]
    basis: Literal["kernel-composed", "assumed"] = "kernel-composed" if reference else "assumed"
    return with_digest(
        WorkerProfile(
            digest="",
            role=role,
            model_id=model_id,
            gpu=gpu_name,
            gpus_per_replica=tensor_parallel_size,
            kv_capacity_tokens=capacity,
            max_running_requests=MAX_RUNNING_REQUESTS,
            chunked_prefill_tokens=chunked_prefill_tokens(gpu),
            steps=step_model(gpu, model, tensor_parallel_size=tensor_parallel_size).coefficients(),
            basis=basis,
        )
    )


def with_digest(content: WorkerProfile) -> WorkerProfile:
    """The profile with the digest of everything else in it."""
    text = content.model_copy(update={"digest": ""}).model_dump_json()
    return content.model_copy(update={"digest": hashlib.sha256(text.encode()).hexdigest()[:16]})
