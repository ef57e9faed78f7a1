"""Duet's plugin for SGLang 0.5.23: SGLang calls `register` in each of its processes (entry point `sglang.srt.plugins`).

It acts only in an engine that Duet runs, told by DUET_ROLE; elsewhere it leaves SGLang alone.

How a part of the plugin joins in (a package or module below this one, listed in `modules.py`):

- `HOOKS`: `hooks.Hook`s for scheduler processes. Each names its target below `sglang.srt`, the digest of the source
  that it was written for (`python -m duet_engine.plugin.digests TARGET …`, run with the engine's Python, prints it),
  a function and how it is called. A hook whose target has another source isn't applied, and the pod stays unready.
- `scheduler_started(side)`: called once in each scheduler process before its loop. `side` (`scheduler_side.
  SchedulerSide`) has `.scheduler`, `.knobs`, `.model` (step times) and `.facts`, whose fields of yours you set: they
  reach `/duet/state`, `/metrics` and the drain through shared memory when steps become of another kind and at least
  every 50 ms of a turning loop. Append to `.on_knobs`, `.on_refresh` (called before the facts are written),
  `.on_step` and `.on_idle` what you want to hear. Later, `scheduler_side.of(scheduler)` finds it.
- `server_module(side)`: called once in the server process; returns a coroutine function that sees each request for
  the model (`asgi.Request`: path, body without our field, dispatch) before SGLang does, and may change its body, raise
  `asgi.RefusedError` or `asgi.BadFieldError`, or look at the answer through `respond_through`. `side` is
  `server_side.ServerSide`: settings, knobs, `schedulers()` with their facts, `refusals` to count.
- `features.declare_deflected({...})` for the table of what works with what.

Clocks and measurements differ between the ranks of one engine: what follows from them is decided on rank 0 and travels
with the requests that SGLang broadcasts. Knobs do: every rank applies them between the same two requests.
"""

from __future__ import annotations


def register() -> None:
    """Hook Duet into this process, where it is part of an engine that Duet runs."""
    import os

    if "DUET_ROLE" in os.environ:
        from duet_engine.plugin.registration import register_here

        register_here()
