"""What one replica can do when all that is known of it are its GPU and its model, by name.

Invariant: everything follows from the performance model, the profile says what its step times rest on, and equal
arguments give an equal digest.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from duet_engine.perf.hardware import find_gpu
from duet_engine.perf.interface import StepBatch, weakest
from duet_engine.perf.models import find_shape
from duet_engine.perf.replica import replica_document
from duet_engine.perf.roofline import Roofline
from duet_engine.protocol import Role, WorkerProfile

if TYPE_CHECKING:
    from duet_engine.perf.hardware import Gpu
    from duet_engine.perf.interface import Basis

GIB = 1024**3
REFERENCE_MODEL = "meta-llama/Llama-3.1-8B"
MAX_RUNNING_REQUESTS = 256


def profile(gpu_name: str, model: str, *, role: Role, tensor_parallel_size: int = 1) -> WorkerProfile:
    """What one replica of `role` can do; `model` is a known id or the path of a config.json.

    Raises:
        ValueError: for a GPU or model that isn't known, or weights that don't fit.
    """
    gpu, shape = find_gpu(gpu_name), find_shape(model)
    replica = Roofline(shape, gpu, ranks=tensor_parallel_size)
    if replica.kv_capacity_tokens == 0:
        raise ValueError(
            f"{model} needs {shape.weight_bytes / GIB:.1f} GiB for its weights and doesn't fit "
            f"{tensor_parallel_size} x {gpu.name} ({gpu.memory_bytes / GIB:g} GiB each); "
            "take a larger GPU or a smaller model"
        )
    return with_digest(
        WorkerProfile(
            digest="",
            role=role,
            model_id=model,
            gpu=gpu.name,
            gpus_per_replica=tensor_parallel_size,
            kv_capacity_tokens=replica.kv_capacity_tokens,
            max_running_requests=MAX_RUNNING_REQUESTS,
            chunked_prefill_tokens=chunked_prefill_tokens(gpu),
            replica=replica_document(replica),
            basis=_basis(replica, role),
        )
    )


def _basis(replica: Roofline, role: Role) -> Basis:
    """What the steps of this role rest on, without those that deflection adds."""
    prefill, decode = replica.basis(StepBatch.prefill(1)), replica.basis(StepBatch.decode(1, 1))
    return {Role.PREFILL: prefill, Role.DECODE: decode, Role.UNIFIED: weakest(prefill, decode)}[role]


def chunked_prefill_tokens(gpu: Gpu) -> int:
    """SGLang's own default for a GPU of this memory."""
    if gpu.memory_bytes < 35 * GIB:
        return 2048
    return 4096 if gpu.memory_bytes < 60 * GIB else 8192


def with_digest(content: WorkerProfile) -> WorkerProfile:
    """The profile with the digest of everything else in it."""
    text = content.model_copy(update={"digest": ""}).model_dump_json()
    return content.model_copy(update={"digest": hashlib.sha256(text.encode()).hexdigest()[:16]})
