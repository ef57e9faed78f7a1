"""GPUs by their data sheets, and the parts of them that MIG and MPS hand out.

Invariant: a part is never more than its GPU, and a whole GPU is the part with all its SMs. MIG slices have their own
memory and bandwidth; an MPS share has fewer SMs and shares both.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Self

from duet_engine.perf.interface import Basis


class UnknownGpuError(ValueError):
    """A GPU or MIG profile that the data lacks; the message lists those that it has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A GPU, a MIG slice or an MPS share of it. Rates are those of dense bf16, from the data sheet."""

    name: str
    architecture: str
    sms: int
    """SMs that may be used."""
    whole_sms: int
    """SMs of the whole GPU, or of the whole MIG slice."""
    sms_per_tpc: int
    clock_hertz: float
    flops_per_second: float
    """Of `whole_sms`."""
    memory_bytes: float
    memory_bytes_per_second: float
    """Of `whole_sms`."""
    link_bytes_per_second: float
    """One way to all peers in the node."""
    network_bytes_per_second: float
    """One way out of the node, of one GPU."""
    attention_splits_contexts: bool
    """Whether decode attention spreads one long context over several SMs (FlashAttention 3 and later)."""
    mig: bool = False
    figures: Basis = Basis.DATA_SHEET
    """What these figures rest on."""

    @property
    def sm_share(self) -> float:
        """Share of the SMs that may be used."""
        return self.sms / self.whole_sms

    @property
    def sliced(self) -> bool:
        """Whether this is less than the whole GPU."""
        return self.mig or self.sms < self.whole_sms

    def with_mps(self, percent: int, *, memory_bytes: float | None = None) -> Self:
        """The share that MPS grants by its active-thread percentage, rounded to whole TPCs."""
        if not 1 <= percent <= 100:
            raise ValueError(f"mps percent: must be from 1 to 100, got {percent}")
        tpcs = max(1, round(self.sms * percent / 100 / self.sms_per_tpc))
        return replace(self, sms=min(tpcs * self.sms_per_tpc, self.sms), memory_bytes=memory_bytes or self.memory_bytes)


@cache
def gpus() -> dict[str, Gpu]:
    """All whole GPUs and MIG slices by name."""
    text = resources.files("duet_engine.perf").joinpath("data/gpus.json").read_text(encoding="utf-8")
    found: dict[str, Gpu] = {}
    for name, facts in json.loads(text).items():
        profiles = facts.pop("mig")
        del facts["sources"]  # where the figures were checked: for whoever reads the file
        figures = Basis(facts.pop("figures", Basis.DATA_SHEET))
        whole = Gpu(name=name, whole_sms=facts["sms"], figures=figures, **facts)
        found[name] = whole
        family = name.removesuffix("-sxm")
        for profile, part in profiles.items():
            found[f"{family}-{profile}"] = _mig_slice(whole, f"{family}-{profile}", **part)
    return found


def _mig_slice(whole: Gpu, name: str, *, sms: int, memory_eighths: int) -> Gpu:
    share = memory_eighths / 8
    return replace(
        whole,
        name=name,
        sms=sms,
        whole_sms=sms,
        flops_per_second=whole.flops_per_second * sms / whole.sms,
        memory_bytes=whole.memory_bytes * share,
        memory_bytes_per_second=whole.memory_bytes_per_second * share,
        mig=True,
    )


def find_gpu(name: str) -> Gpu:
    """The GPU or MIG slice of this name; `h100_sxm`, `H100-SXM` and `h100` are the same."""
    plain = name.strip().lower().replace("_", "-")
    found = gpus().get(plain) or gpus().get(f"{plain}-sxm")
    if found is None:
        raise UnknownGpuError(f"unknown GPU {name!r}; known are {', '.join(sorted(gpus()))}")
    return found
