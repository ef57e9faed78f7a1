"""How much of its data sheet a GPU reaches: the few named numbers that the performance model is fitted with.

Invariant: each number has a meaning in hardware, and each set says what its figures rest on. A GPU without a set of
its own takes the mean of its nearest relatives', launches scaled by its clock, and is data-sheet only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Self

from duet_engine.perf.hardware import find_gpu
from duet_engine.perf.interface import Basis

if TYPE_CHECKING:
    from duet_engine.perf.hardware import Gpu

RELATIVES = {"ampere": ("ampere", "ada"), "ada": ("ada", "ampere"), "hopper": ("hopper",), "blackwell": ("hopper",)}
"""Architectures whose kernels are alike, nearest first; all calibrated GPUs where none is listed or found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Efficiencies:
    """Shares of the data sheet's rates, and seconds. The first six are fitted to steps."""

    linear_compute: float
    """Of peak FLOP/s, in large matrix products."""
    linear_bandwidth: float
    """Of memory bandwidth, reading weights."""
    attention_compute: float
    """Of peak FLOP/s, in prefill attention, counted causally."""
    attention_bandwidth: float
    """Of memory bandwidth, reading KV."""
    overlap: float
    """How well compute and memory traffic hide behind each other near the ridge: exponent p of (c^p + m^p)^(1/p)."""
    sustained_slowdown: float
    """Factor on the time of products that last for milliseconds: power limits lower the clock."""
    linear_launch_seconds: float
    attention_launch_seconds: float
    elementwise_bandwidth: float
    elementwise_launch_seconds: float
    allreduce_launch_seconds: float
    allreduce_hop_seconds: float
    """For each peer, in the algorithm for large messages."""
    link_bandwidth: float
    expert_compute: float
    expert_bandwidth: float
    expert_launch_seconds: float

    def with_values(self, values: Mapping[str, float]) -> Self:
        """These with some replaced."""
        return replace(self, **values)


NAMES: tuple[str, ...] = tuple(field.name for field in fields(Efficiencies))
STEP_NAMES: tuple[str, ...] = NAMES[:6]
"""What step times of dense models identify."""


@dataclass(frozen=True, slots=True)
class Bases:
    """What each use of a set of efficiencies rests on."""

    prefill: Basis = Basis.ASSUMED
    decode: Basis = Basis.ASSUMED
    experts: Basis = Basis.ASSUMED
    communication: Basis = Basis.ASSUMED
    prefix: Basis = Basis.ASSUMED
    """Chunks behind cached tokens."""
    mixed: Basis = Basis.ASSUMED
    latent: Basis = Basis.ASSUMED


@dataclass(frozen=True, slots=True)
class Calibrated:
    """A GPU's efficiencies, what they rest on, and where they come from."""

    efficiencies: Efficiencies
    bases: Bases
    source: str


@cache
def shipped() -> dict[str, Calibrated]:
    """The sets that come with Duet, by GPU."""
    text = resources.files("duet_engine.perf").joinpath("data/efficiencies.json").read_text(encoding="utf-8")
    return {name: from_document(document) for name, document in json.loads(text).items()}


def from_document(document: Mapping[str, object]) -> Calibrated:
    """A set as it is written to a file.

    Raises:
        ValueError: naming the field that is missing, unknown or no positive number.
    """
    values, bases = document.get("efficiencies"), document.get("bases", {})
    if not isinstance(values, Mapping) or not isinstance(bases, Mapping):
        raise ValueError("a calibration needs the objects 'efficiencies' and 'bases'")
    if wrong := set(values) ^ set(NAMES):
        raise ValueError(f"efficiencies: missing or unknown: {', '.join(sorted(wrong))}")
    for name, value in values.items():
        if not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ValueError(f"efficiencies.{name}: must be a positive number, got {value!r}")
    if wrong := set(bases) - {field.name for field in fields(Bases)}:
        raise ValueError(f"bases: unknown: {', '.join(sorted(wrong))}")
    return Calibrated(
        Efficiencies(**values),
        Bases(**{use: Basis(basis) for use, basis in bases.items()}),
        str(document.get("source", "")),
    )


def from_file(documents: object, gpu: Gpu) -> Calibrated:
    """This GPU's set in a file of `duet calibrate`: sets by GPU.

    Raises:
        ValueError: when the file has none for it, or one that can't be read.
    """
    if not isinstance(documents, Mapping):
        raise ValueError("a file of calibrations is an object: sets by GPU")
    for name, document in documents.items():
        if find_gpu(str(name)).name == gpu.name:
            return from_document(document)
    raise ValueError(f"has no calibration of {gpu.name}; it has {', '.join(map(str, documents)) or 'none'}")


def to_document(calibrated: Calibrated) -> dict[str, object]:
    """What `from_document` reads."""
    return {
        "source": calibrated.source,
        "bases": {field.name: str(getattr(calibrated.bases, field.name)) for field in fields(Bases)},
        "efficiencies": {name: getattr(calibrated.efficiencies, name) for name in NAMES},
    }


def efficiencies_for(gpu: Gpu, *, known: Mapping[str, Calibrated] | None = None) -> Calibrated:
    """The set of this GPU (a slice takes its whole GPU's), or what its relatives among `known` suggest."""
    known = shipped() if known is None else known
    for name, calibrated in known.items():
        if _same_silicon(find_gpu(name), gpu):
            return calibrated
    relatives = _relatives(gpu, known)
    return Calibrated(
        _mean([(find_gpu(name), known[name].efficiencies) for name in relatives], gpu),
        Bases(**dict.fromkeys(("prefill", "decode", "experts", "communication"), gpu.figures)),
        f"{str(gpu.figures).replace('-', ' ')}, with the efficiencies of {', '.join(relatives)}",
    )


def _same_silicon(known: Gpu, gpu: Gpu) -> bool:
    return gpu.name == known.name or (gpu.mig and gpu.name.startswith(known.name.removesuffix("-sxm") + "-"))


def _relatives(gpu: Gpu, known: Mapping[str, Calibrated]) -> list[str]:
    for architecture in RELATIVES.get(gpu.architecture, ()):
        found = [name for name in known if find_gpu(name).architecture == architecture]
        if found:
            return found
    return list(known)


def _mean(members: Iterable[tuple[Gpu, Efficiencies]], gpu: Gpu) -> Efficiencies:
    """Geometric means; kernel launches take as many clocks everywhere."""
    members = list(members)

    def mean(name: str) -> float:
        clocked = name in {"linear_launch_seconds", "attention_launch_seconds", "expert_launch_seconds"}
        logarithms = [
            math.log(getattr(efficiencies, name) * (member.clock_hertz / gpu.clock_hertz if clocked else 1.0))
            for member, efficiencies in members
        ]
        return math.exp(sum(logarithms) / len(logarithms))

    return Efficiencies(**{name: mean(name) for name in NAMES})
