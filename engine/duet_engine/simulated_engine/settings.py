"""Everything that can be set on a simulated engine, checked.

Invariant: values that get here are usable together; a bad one was refused with its name when the process started.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from duet_engine.perf import catalog

if TYPE_CHECKING:
    from pathlib import Path

    from duet_engine.protocol import Role, WorkerProfile


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One engine's settings, by the names of its command-line options."""

    role: Role
    host: str
    port: int
    bootstrap_port: int
    gpu: str
    model: str
    model_path: str
    model_revision: str | None
    served_name: str
    context_length: int
    tensor_parallel_size: int
    transfer_backend: str
    itl_milliseconds: int
    drain_timeout_seconds: float
    revision: str
    worker: str
    cold_start_seconds: float
    cold_start_spread_seconds: float
    reserved_decode_tokens: int
    max_deflected_requests: int
    deflected_wait_seconds: float
    bootstrap_timeout_seconds: float
    mean_output_tokens: float
    step_noise: float
    seed: int
    watchdog_seconds: float
    keep_alive_seconds: float
    allow_faults: bool
    trust_file: Path | None
    shared_token_file: Path | None
    local_token_file: Path | None


def worker_profile(
    *,
    gpu: str,
    model: str,
    role: Role,
    tensor_parallel_size: int,
    kv_capacity_tokens: int | None,
    max_running_requests: int | None,
    chunked_prefill_tokens: int | None,
) -> WorkerProfile:
    """The catalogue's profile with the values that were set by hand."""
    profile = catalog.profile(gpu, model, role=role, tensor_parallel_size=tensor_parallel_size)
    overrides = {
        "kv_capacity_tokens": kv_capacity_tokens,
        "max_running_requests": max_running_requests,
        "chunked_prefill_tokens": chunked_prefill_tokens,
    }
    chosen = {name: value for name, value in overrides.items() if value is not None}
    return catalog.with_digest(profile.model_copy(update=chosen)) if chosen else profile
