"""The parts of the plugin beside its frame: the contract is in the package's docstring.

Invariant: this list is the only place where the frame knows of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from duet_engine.plugin.asgi import Module as ServerModule
    from duet_engine.plugin.hooks import Hook, Process
    from duet_engine.plugin.scheduler_side import SchedulerSide
    from duet_engine.plugin.server_side import ServerSide


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginModule:
    """One part."""

    name: str
    hooks: tuple[Hook, ...] = ()
    scheduler_started: Callable[[SchedulerSide], None] | None = None
    server_module: Callable[[ServerSide], ServerModule] | None = None


def loaded() -> tuple[PluginModule, ...]:
    """All of them, in the order in which they see a request."""
    from duet_engine.plugin import deflection

    return (deflection.MODULE,)


def hooks_in(process: Process) -> tuple[Hook, ...]:
    """The modules' hooks in processes of this kind."""
    return tuple(hook for module in loaded() for hook in module.hooks if hook.process is process)
