"""What fits into a replica's memory, and how long KV takes to another one.

Invariant: KV is additive: two requests need what each needs, and memory beside the weights is all there is for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from duet_engine.perf.hardware import Gpu
    from duet_engine.perf.shape import ModelShape

MEMORY_SHARE = 0.8
"""Share of GPU memory that weights and KV may take (assumed): the rest is for activations and graphs. It agrees with
`kv_fits` of all 390 rows of the step data; SGLang's own default is 0.83 on 80 GB and about 0.9 on 141 GB."""
TRANSFER_BASE_SECONDS = 0.002
"""To agree on a transfer and to notice its end (assumed)."""


def kv_bytes(shape: ModelShape, tokens: float, *, ranks: int = 1) -> float:
    """KV of so many tokens on each of `ranks` GPUs."""
    return shape.kv_bytes_per_token(ranks) * tokens


def kv_capacity_tokens(shape: ModelShape, gpu: Gpu, *, ranks: int = 1) -> int:
    """Tokens whose KV fits beside the weights on each GPU; 0 when the weights alone don't fit."""
    room = gpu.memory_bytes * MEMORY_SHARE - shape.weight_bytes / ranks
    return max(0, int(room / shape.kv_bytes_per_token(ranks)))


def transfer_seconds(shape: ModelShape, gpu: Gpu, tokens: float, *, ranks: int = 1) -> float:
    """KV of so many tokens to another replica, each GPU over its own network adapter."""
    return sending_seconds(kv_bytes(shape, tokens, ranks=ranks), gpu)


def sending_seconds(bytes_sent: float, gpu: Gpu) -> float:
    """So many bytes of KV, over one network adapter."""
    return TRANSFER_BASE_SECONDS + bytes_sent / gpu.network_bytes_per_second
