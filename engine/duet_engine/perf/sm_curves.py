"""How much compute and memory bandwidth a share of the SMs reaches: the roofline's Π(S) and B(S).

Invariant: both curves rise with the share and end at the whole GPU's 1, so a step never gets faster with fewer SMs.

Compute is near proportional. Bandwidth saturates once the SMs that are left can read as fast as the memory gives:
an SM's port to the L2 cache is 64 bytes a clock wide on every GPU of the data, and how much of it a kernel sustains
hasn't been measured here. So there are three curves (all of it, half, a quarter), and all three are assumed.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Self

import numpy as np

from duet_engine.perf.interface import Basis

if TYPE_CHECKING:
    from collections.abc import Sequence

    from duet_engine.perf.hardware import Gpu
    from duet_engine.perf.interface import FloatArray

L2_PORT_BYTES_PER_CLOCK = 64


class CurveName(StrEnum):
    """Which assumption about the SMs is made."""

    DATA_SHEET = "data-sheet"
    PESSIMISTIC = "pessimistic"
    OPTIMISTIC = "optimistic"


_SUSTAINED_PORT_SHARE = {CurveName.OPTIMISTIC: 1.0, CurveName.DATA_SHEET: 0.5, CurveName.PESSIMISTIC: 0.25}
_SPLIT_COMPUTE_LOSS = {CurveName.OPTIMISTIC: 0.0, CurveName.DATA_SHEET: 0.0, CurveName.PESSIMISTIC: 0.1}
"""Share of its compute that a small part of the SMs loses to caches it has to share."""


@dataclass(frozen=True, slots=True)
class SmCurve:
    """Shares of compute and bandwidth at shares of the SMs, straight lines between the points; 0 at 0 and 1 at 1."""

    sm_shares: tuple[float, ...]
    compute_shares: tuple[float, ...]
    bandwidth_shares: tuple[float, ...]
    basis: Basis

    def __post_init__(self) -> None:
        for name in ("sm_shares", "compute_shares", "bandwidth_shares"):
            values: tuple[float, ...] = getattr(self, name)
            if (
                len(values) != len(self.sm_shares)
                or values[0] != 0.0
                or values[-1] != 1.0
                or sorted(values) != [*values]
            ):
                raise ValueError(f"{name}: must rise from 0 to 1 and be as many as sm_shares, got {values}")

    @classmethod
    def assumed(cls, gpu: Gpu, name: CurveName = CurveName.DATA_SHEET) -> Self:
        """The curve of that name for this GPU."""
        port = L2_PORT_BYTES_PER_CLOCK * _SUSTAINED_PORT_SHARE[name] * gpu.clock_hertz
        saturating = min(gpu.memory_bytes_per_second / (port * gpu.whole_sms), 0.99)
        loss = _SPLIT_COMPUTE_LOSS[name]
        shares = tuple(sorted({0.0, saturating, 0.25, 0.5, 0.75, 1.0}))
        return cls(
            sm_shares=shares,
            compute_shares=tuple(share * (1 - loss * (1 - share)) for share in shares),
            bandwidth_shares=tuple(min(share / saturating, 1.0) for share in shares),
            basis=Basis.ASSUMED,
        )

    @classmethod
    def measured(cls, points: Sequence[tuple[float, float, float]]) -> Self:
        """From measured (share of SMs, of compute, of bandwidth), each relative to the whole GPU."""
        rows = sorted({(0.0, 0.0, 0.0), (1.0, 1.0, 1.0), *points})
        sms, compute, bandwidth = zip(*rows, strict=True)
        return cls(sms, compute, bandwidth, Basis.MEASURED)

    def at(self, sm_share: float) -> tuple[float, float]:
        """Shares of compute and bandwidth at this share of the SMs."""
        if not 0.0 < sm_share <= 1.0:
            raise ValueError(f"sm_share: must be above 0 and at most 1, got {sm_share}")
        if sm_share == 1.0:
            return 1.0, 1.0
        after = bisect_right(self.sm_shares, sm_share)
        left, right = self.sm_shares[after - 1], self.sm_shares[after]
        part = (sm_share - left) / (right - left)
        compute, bandwidth = self.compute_shares, self.bandwidth_shares
        return (
            compute[after - 1] + part * (compute[after] - compute[after - 1]),
            bandwidth[after - 1] + part * (bandwidth[after] - bandwidth[after - 1]),
        )

    def at_each(self, sm_shares: FloatArray) -> tuple[FloatArray, FloatArray]:
        """The same for many shares."""
        if np.any(sm_shares <= 0) or np.any(sm_shares > 1):
            raise ValueError("sm_shares: must all be above 0 and at most 1")
        compute = np.interp(sm_shares, self.sm_shares, self.compute_shares)
        bandwidth = np.interp(sm_shares, self.sm_shares, self.bandwidth_shares)
        return compute, bandwidth
