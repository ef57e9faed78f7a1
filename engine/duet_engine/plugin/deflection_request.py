"""What makes a request a deflected one, from the HTTP process to the scheduler.

Invariant: the mark is written only by this engine's own intake and is taken off before SGLang looks at the request, so
no client can set it and no part of SGLang sees it. It travels where SGLang keeps such private notes of its own, among
the sampling parameters, because these follow a request on every path.
"""

from __future__ import annotations

import time
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from duet_engine.plugin.sglang_types import Request, SamplingParams

if TYPE_CHECKING:
    from duet_engine.protocol import Dispatch

MARK = "__duet_deflected"
"""Key among the sampling parameters' custom ones; its value is [chunk budget or -1, chunk, chunk, …]."""
ATTRIBUTE = "duet_deflection"
"""Attribute of SGLang's request that holds its `Deflection`."""
NO_BUDGET = -1


@dataclass(slots=True)
class Deflection:
    """What the scheduler knows of one deflected request."""

    chunk_budget_tokens: int | None = None
    chunk_schedule_tokens: tuple[int, ...] = ()
    arrived_at: float = field(default_factory=time.monotonic)
    chunks_done: int = 0
    kv_short: bool = False
    """SGLang had no room for its first chunk when it last looked."""

    @property
    def begun(self) -> bool:
        return self.chunks_done > 0

    def bound_tokens(self) -> int | None:
        """The gateway's bound for the next chunk; None leaves it to the worker."""
        bounds = [] if self.chunk_budget_tokens is None else [self.chunk_budget_tokens]
        if self.chunks_done < len(self.chunk_schedule_tokens):
            bounds.append(max(1, self.chunk_schedule_tokens[self.chunks_done]))
        return min(bounds, default=None)

    def start_again(self) -> None:
        """Its KV is gone: it is computed anew, prompt and output, and the gateway's plan no longer fits."""
        self.chunk_schedule_tokens, self.chunks_done = (), 0
        self.arrived_at = time.monotonic()


def deflection_of(request: Request) -> Deflection | None:
    """A request's deflection; None for requests that come by way of a prefill worker."""
    return getattr(request, ATTRIBUTE, None)


def awaits_prefill(request: Request) -> bool:
    """Whether it waits here for its prompt to be computed: it holds no KV yet, neither computed nor transferred."""
    return deflection_of(request) is not None and not request.kv.holds_kv


def mark(custom: MutableMapping[str, Any] | None, dispatch: Dispatch | None) -> dict[str, Any] | None:
    """Custom sampling parameters with the mark of this dispatch, and never with another."""
    kept = {name: value for name, value in (custom or {}).items() if name != MARK}
    if dispatch is not None and dispatch.deflected:
        budget = NO_BUDGET if dispatch.chunk_budget_tokens is None else dispatch.chunk_budget_tokens
        kept[MARK] = [budget, *dispatch.chunk_schedule_tokens]
    return kept or None


def take_mark(sampling: SamplingParams, *, now: Callable[[], float] = time.monotonic) -> Deflection | None:
    """Take the mark off a request's sampling parameters."""
    custom = sampling.custom_params
    if not isinstance(custom, dict) or MARK not in custom:
        return None
    budget, *schedule = custom[MARK]
    sampling.custom_params = {name: value for name, value in custom.items() if name != MARK} or None
    return Deflection(None if budget == NO_BUDGET else budget, tuple(schedule), arrived_at=now())
