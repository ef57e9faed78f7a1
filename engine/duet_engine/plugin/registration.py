"""Which process this is, and which hooks belong there.

Invariant: with an SGLang that the hooks weren't written for the process ends and says which it supports; a hook that
can't be applied leaves the process running and the worker unready, with the reason in `/duet/info`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from duet_engine.plugin import modules, scheduler_hooks, scheduler_side
from duet_engine.plugin.board import own_board, pin_card
from duet_engine.plugin.hooks import Hook, HookTable, Kind, Process
from duet_engine.plugin.settings import EngineSettings
from duet_engine.protocol import ProcessInfo

SUPPORTED_VERSIONS = ("0.5.23",)
ENTRY_FUNCTIONS = {
    "run_scheduler_process": Process.SCHEDULER,
    "run_detokenizer_process": Process.DETOKENIZER,
    "run_data_parallel_controller_process": None,
}
"""What SGLang starts its other processes with; it loads plugins inside them."""


def register_here() -> None:
    """Register this process's hooks; SGLang applies them right after."""
    from sglang.version import __version__ as found

    check_version(found)
    process = this_process()
    settings = EngineSettings.read()
    board = own_board()
    if process is Process.SCHEDULER:
        _register_scheduler(settings, board)
    elif process is Process.DETOKENIZER:
        pin_card(board, ProcessInfo(name=process.value, pid=os.getpid()))
    elif process is Process.SERVER:
        _register_server(settings, board, found)


def check_version(found: str) -> None:
    """End this process where it has another SGLang than the hooks were written for."""
    if found not in SUPPORTED_VERSIONS:
        raise SystemExit(
            f"Duet's plugin is written for SGLang {', '.join(SUPPORTED_VERSIONS)}, and this is {found}; "
            "take an image with a supported version, or unset DUET_ROLE to run SGLang without Duet"
        )


def this_process() -> Process | None:
    """By the function that SGLang started it with; None for one that has nothing of ours."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name in ENTRY_FUNCTIONS:
            return ENTRY_FUNCTIONS[frame.f_code.co_name]
        frame = frame.f_back  # type: ignore[assignment]
    return Process.SERVER


def _register_scheduler(settings: EngineSettings, board: Path) -> None:
    table = HookTable()
    table.register([*scheduler_hooks.HOOKS, *modules.hooks_in(Process.SCHEDULER)], _hand_over)
    if os.environ.get("SGLANG_USE_CPU_ENGINE") == "1":
        from duet_engine.plugin.without_gpu import prepare

        prepare()
    scheduler_side.prepare(settings, board, table)


def _register_server(settings: EngineSettings, board: Path, sglang_version: str) -> None:
    from duet_engine.plugin import server_hooks
    from duet_engine.plugin.server_side import ServerSide

    table = HookTable()
    side = ServerSide(settings, board, table, sglang_version=sglang_version)
    table.register([*server_hooks.hooks(side), *modules.hooks_in(Process.SERVER)], _hand_over)


def _hand_over(hook: Hook) -> None:
    """To SGLang's registry."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(hook.path, hook.function, HookType(Kind(hook.kind).value))
