"""Duet's plugin for SGLang: SGLang calls `register` in each of its processes (entry point `sglang.srt.plugins`)."""

from __future__ import annotations

import os


def register() -> None:
    """Hook Duet into this process, where it is part of an engine that Duet runs."""
    if os.environ.get("SGLANG_USE_CPU_ENGINE") == "1":
        from duet_engine.plugin.without_gpu import prepare

        prepare()
