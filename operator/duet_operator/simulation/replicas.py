"""One replica by the names of its model and GPU: what the simulation takes for true, and what policies believe.

Invariant: both come from the one performance model; where they differ, the difference is a stated factor.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from duet_engine.perf.catalog import MAX_RUNNING_REQUESTS, chunked_prefill_tokens
from duet_engine.perf.efficiencies import efficiencies_for
from duet_engine.perf.hardware import find_gpu
from duet_engine.perf.interface import Basis, StepBatch, StepTime, weakest
from duet_engine.perf.models import find_shape
from duet_engine.perf.roofline import Roofline
from duet_engine.perf.sm_curves import CurveName, SmCurve
from duet_engine.protocol import Role
from duet_operator.planner.types import WorkerPerformance

if TYPE_CHECKING:
    from collections.abc import Mapping

    from duet_engine.perf.efficiencies import Calibrated
    from duet_engine.perf.hardware import Gpu
    from duet_engine.perf.interface import FloatArray, StepTimes

GIB = 1024**3


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a replica is made of, by name."""

    model: str
    gpu: str
    ranks: int = 1
    mps_percent: int = 100
    """Share of each GPU, of which others use the rest."""

    def __str__(self) -> str:
        gpu = self.gpu if self.mps_percent == 100 else f"{self.mps_percent} % of {self.gpu}"
        return f"{self.ranks} x {gpu}" if self.ranks > 1 else gpu


@dataclass(frozen=True, slots=True)
class Knowledge:
    """Where step times come from beside the shipped data."""

    calibrations: Mapping[str, Calibrated] | None = None
    """By GPU, from `duet calibrate`."""
    curve: CurveName = CurveName.DATA_SHEET


@dataclass(frozen=True, slots=True)
class Replica:
    """One replica: its step times and its memory."""

    hardware: Hardware
    roofline: Roofline

    @property
    def kv_capacity_tokens(self) -> int:
        return self.roofline.kv_capacity_tokens

    @property
    def chunked_prefill_tokens(self) -> int:
        return chunked_prefill_tokens(self.roofline.gpu)

    def basis(self, role: Role) -> Basis:
        """What the steps of this role rest on, without those that deflection adds."""
        prefill, decode = self.roofline.basis(StepBatch.prefill(1)), self.roofline.basis(StepBatch.decode(1, 1))
        return {Role.PREFILL: prefill, Role.DECODE: decode, Role.UNIFIED: weakest(prefill, decode)}[role]

    @property
    def mixed_basis(self) -> Basis:
        """What steps with a chunk beside a decode batch rest on."""
        return self.roofline.basis(StepBatch.decode(1, 1).with_chunks(1))

    def performance(self, role: Role) -> WorkerPerformance:
        """The replica as a planner sees it."""
        return WorkerPerformance(
            steps=self.roofline,
            kv_capacity_tokens=self.kv_capacity_tokens,
            max_running_requests=MAX_RUNNING_REQUESTS,
            chunked_prefill_tokens=self.chunked_prefill_tokens,
            gpus_per_replica=self.hardware.ranks,
            basis=self.basis(role),
        )


def replica(hardware: Hardware, knowledge: Knowledge) -> Replica:
    """The replica.

    Raises:
        ValueError: for a model or GPU that isn't known, or weights that don't fit.
        OSError: when a config.json can't be read.
    """
    gpu, shape = _part(find_gpu(hardware.gpu), hardware.mps_percent), find_shape(hardware.model)
    roofline = Roofline(
        shape,
        gpu,
        ranks=hardware.ranks,
        calibrated=(knowledge.calibrations or {}).get(gpu.name) or efficiencies_for(gpu),
        curve=SmCurve.assumed(gpu, knowledge.curve),
    )
    if roofline.kv_capacity_tokens < shape_room(shape.context_length):
        raise ValueError(
            f"{hardware.model} needs {shape.weight_bytes / GIB:.1f} GiB for its weights and leaves no room for KV on "
            f"{hardware.ranks} x {gpu.name} ({gpu.memory_bytes / GIB:.0f} GiB each); take a larger GPU, more tensor "
            "parallelism or a smaller model"
        )
    return Replica(replace(hardware, gpu=gpu.name), roofline)


def _part(gpu: Gpu, mps_percent: int) -> Gpu:
    """An MPS share beside others as busy: of memory and bandwidth, which MPS doesn't divide, it gets as much."""
    if mps_percent == 100:
        return gpu
    fair = mps_percent / 100
    part = gpu.with_mps(mps_percent, memory_bytes=fair * gpu.memory_bytes)
    return replace(part, memory_bytes_per_second=fair * gpu.memory_bytes_per_second)


def shape_room(context_length: int) -> int:
    """KV tokens under which a worker can't serve even one ordinary request."""
    return min(context_length, 4096)


class Slowed:
    """Step times that are all `factor` times another's: a truth that the model misses by so much."""

    __slots__ = ("_factor", "_steps")

    def __init__(self, steps: StepTimes, factor: float) -> None:
        self._steps, self._factor = steps, factor

    @property
    def sms(self) -> int:
        return self._steps.sms

    @property
    def sm_granularity(self) -> int:
        return self._steps.sm_granularity

    def step(self, batch: StepBatch, *, sm_share: float = 1.0) -> StepTime:
        seconds, basis = self._steps.step(batch, sm_share=sm_share)
        return StepTime(seconds * self._factor, basis)

    def step_seconds(self, batch: StepBatch, *, sm_share: float = 1.0) -> float:
        return self._steps.step_seconds(batch, sm_share=sm_share) * self._factor

    def step_seconds_over(self, batch: StepBatch, sm_shares: FloatArray) -> FloatArray:
        return self._steps.step_seconds_over(batch, sm_shares) * self._factor

    def prompt_seconds(self, prompt_tokens: int, *, cached_tokens: int = 0, chunk_tokens: int) -> float:
        alone = self._steps.prompt_seconds(prompt_tokens, cached_tokens=cached_tokens, chunk_tokens=chunk_tokens)
        return alone * self._factor

    def transfer_seconds(self, tokens: float) -> float:
        return self._steps.transfer_seconds(tokens)
