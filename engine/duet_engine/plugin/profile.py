"""What this replica can do, for `/duet/info`: its real capacities, and the best performance model that there is.

Invariant: capacities are SGLang's own. The model's shape comes from its config.json where that is on disk, else from
the table of known ids; the GPU from DUET_GPU; efficiencies from DUET_CALIBRATION where somebody measured them here,
else from what is shipped. What is only assumed says so.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from duet_engine.perf.catalog import with_digest
from duet_engine.perf.efficiencies import Calibrated, from_file
from duet_engine.perf.hardware import Gpu, find_gpu
from duet_engine.perf.interface import StepBatch, weakest
from duet_engine.perf.models import find_shape
from duet_engine.perf.replica import replica_document
from duet_engine.perf.roofline import Roofline
from duet_engine.plugin.settings import EngineSettings, SettingError
from duet_engine.protocol import Role, WorkerProfile

CPU = find_gpu("cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What SGLang says that it holds."""

    kv_tokens: int
    max_running_requests: int
    chunked_prefill_tokens: int


def worker_profile(settings: EngineSettings, replica: Roofline, *, role: Role, capacity: Capacity) -> WorkerProfile:
    """This replica's profile."""
    steps = (StepBatch.prefill(1), StepBatch.decode(1, 1))
    used = steps[:1] if role is Role.PREFILL else steps[1:] if role is Role.DECODE else steps
    return with_digest(
        WorkerProfile(
            digest="",
            role=role,
            model_id=settings.model_id,
            gpu=replica.gpu.name,
            gpus_per_replica=replica.ranks,
            kv_capacity_tokens=capacity.kv_tokens,
            max_running_requests=max(1, capacity.max_running_requests),
            chunked_prefill_tokens=max(1, capacity.chunked_prefill_tokens),
            replica=replica_document(replica),
            basis=weakest(*map(replica.basis, used)),
        )
    )


def replica_model(settings: EngineSettings, *, model_path: str, ranks: int) -> Roofline:
    """The performance model of this replica.

    Raises:
        SettingError: naming the variable that can't be used.
    """
    config = Path(model_path) / "config.json"
    try:
        shape = find_shape(str(config) if config.is_file() else settings.model_id or model_path)
    except (OSError, ValueError) as error:
        raise SettingError(f"DUET_MODEL_ID: {error}") from error
    try:
        gpu = find_gpu(settings.gpu) if settings.gpu else CPU
    except ValueError as error:
        raise SettingError(f"DUET_GPU: {error}") from error
    return Roofline(shape, gpu, ranks=ranks, calibrated=_calibration(settings, gpu))


def _calibration(settings: EngineSettings, gpu: Gpu) -> Calibrated | None:
    if settings.calibration is None:
        return None
    try:
        return from_file(json.loads(settings.calibration.read_bytes()), gpu)
    except (OSError, ValueError) as error:
        raise SettingError(f"DUET_CALIBRATION: {settings.calibration}: {error}") from error
