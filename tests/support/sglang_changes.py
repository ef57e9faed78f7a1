"""Changes to SGLang that tests make in each process of an engine: seeds on a CPU, another source, clocks that differ.

Invariant: an engine imports this file only where a test has asked for it, by a `sitecustomize` in a folder of its own;
everything below the first section runs there, with SGLang's interpreter.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

SCHEDULER = "sglang.srt.managers.scheduler"
LIBRARIES: list[Any] = []
"""Operators live as long as what defined them."""


def with_changes(folder: Path, *calls: str) -> dict[str, str]:
    """Environment of a server in whose processes these calls of this module are made before all else."""
    from duet_dev import engine_environment

    folder.mkdir()
    lines = ["import sys", f"sys.path.append({str(Path(__file__).parent)!r})", "import sglang_changes"]
    lines += [f"sglang_changes.{call}" for call in calls]
    (folder / "sitecustomize.py").write_text("\n".join(lines) + "\n")
    return {"PYTHONPATH": f"{folder}:{engine_environment.environment()['PYTHONPATH']}"}


# --- from here on in SGLang's interpreter ---


def after_import(name: str, change: Callable[[ModuleType], None]) -> None:
    """Change a module as soon as it has been loaded."""
    sys.meta_path.insert(0, _Change(name, change))  # type: ignore[arg-type]


class _Change:
    """Finds one module once."""

    def __init__(self, name: str, change: Callable[[ModuleType], None]) -> None:
        self._name = name
        self._change = change

    def find_spec(self, name: str, _path: Any = None, _target: Any = None) -> ModuleSpec | None:
        if name != self._name:
            return None
        sys.meta_path.remove(self)  # type: ignore[arg-type]
        spec = find_spec(name)
        assert spec is not None and spec.loader is not None
        load = spec.loader.exec_module

        def load_and_change(module: ModuleType) -> None:
            load(module)
            self._change(module)

        spec.loader.exec_module = load_and_change  # type: ignore[method-assign]
        return spec


def another_source() -> None:
    """What another release or another plugin might do: one function that Duet hooks is another."""

    def change(module: ModuleType) -> None:
        before = module.Scheduler.ingest_requests
        module.Scheduler.ingest_requests = lambda *given, **named: before(*given, **named)

    after_import(SCHEDULER, change)


def seeds_on_a_cpu() -> None:
    """Seeds count in the scheduler that this process will make."""
    _after_scheduler(honour_seeds)


def skewed_clocks() -> None:
    """All clocks of a scheduler but the first rank's stand elsewhere and run faster."""

    def skew() -> None:
        from duet_engine.plugin.scheduler_side import scheduler_rank

        if rank := scheduler_rank():
            for name in ("monotonic", "perf_counter", "time"):
                setattr(time, name, _skewed(getattr(time, name), rank))

    _after_scheduler(skew)


def own_clock_decides() -> None:
    """The mistake that skewed clocks bring to light: whether a prompt may go on is asked of each rank's own clock."""

    def change(module: ModuleType) -> None:
        before = module.Lane.plan
        module.Lane.plan = lambda lane, batch: (None, []) if int(time.monotonic() * 10) % 2 else before(lane, batch)

    after_import("duet_engine.plugin.deflection_lane", change)


def timed_hooks(path: str) -> None:
    """What the plugin's hooks take in each decode step goes to this file."""
    from sglang_hook_times import time_hooks

    time_hooks(path)


def _skewed(clock: Callable[[], float], rank: int) -> Callable[[], float]:
    return lambda: (1 + 2 * rank) * clock() + 1000.05 * rank


def _after_scheduler(act: Callable[[], None]) -> None:
    """Once this process has made its scheduler."""

    def change(module: ModuleType) -> None:
        before = module.Scheduler.__init__

        def initialise(*given: Any, **named: Any) -> None:
            before(*given, **named)
            act()

        module.Scheduler.__init__ = initialise

    after_import(SCHEDULER, change)


def honour_seeds() -> None:
    """SGLang does so with this alone, and would refuse it beside the only attention that a CPU has."""
    from sglang.srt.runtime_context import get_context

    _define_seeded_hash()
    get_context().override("seeds", enable_deterministic_inference=True)


def _define_seeded_hash() -> None:
    """MurmurHash3 of (seed, position, column), which SGLang's kernels for GPUs lack on the CPU."""
    import torch

    low = 0xFFFFFFFF

    def rotated(number: torch.Tensor, bits: int) -> torch.Tensor:
        return ((number << bits) | (number >> (32 - bits))) & low

    def mixed(state: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
        block = rotated((block * 0xCC9E2D51) & low, 15)
        return (rotated(state ^ ((block * 0x1B873593) & low), 13) * 5 + 0xE6546B64) & low

    def murmur(seed: torch.Tensor, positions: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        seeds, places = seed.to(torch.int64)[:, None], positions.to(torch.int64)[:, None] & low
        state = mixed(mixed(torch.zeros_like(seeds), seeds & low), (seeds >> 32) & low)
        state = mixed(mixed(state, places), columns.to(torch.int64)[None, :] & low) ^ 16
        state = ((state ^ (state >> 16)) * 0x85EBCA6B) & low
        state = ((state ^ (state >> 13)) * 0xC2B2AE35) & low
        return (state ^ (state >> 16)).to(torch.uint32)

    library = torch.library.Library("sgl_kernel", "FRAGMENT")
    library.define("murmur_hash32_cpu(Tensor seed, Tensor positions, Tensor columns) -> Tensor")
    library.impl("murmur_hash32_cpu", murmur, "CPU")
    LIBRARIES.append(library)
