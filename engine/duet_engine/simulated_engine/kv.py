"""The KV pool of one worker: how many tokens are held, and how many are promised to those that run.

Invariant: held tokens never exceed the capacity. Promised tokens (SGLang's `num_reserved_decode_tokens` for each
request) only make admission cautious: a running request that outgrows its promise takes free tokens, and where there
are none somebody is retracted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from duet_engine.simulated_engine.request import Request


@dataclass(slots=True)
class KvPool:
    """Counts of tokens; requests carry their own shares."""

    capacity_tokens: int
    used_tokens: int = 0
    reserved_tokens: int = 0

    @property
    def free_tokens(self) -> int:
        """Free of both held and promised tokens."""
        return self.capacity_tokens - self.used_tokens - self.reserved_tokens

    def admit(self, request: Request, *, tokens: int, reserve_tokens: int) -> bool:
        """Hold `tokens` and promise `reserve_tokens` more, or change nothing and say False."""
        if tokens + reserve_tokens > self.free_tokens:
            return False
        request.kv_tokens = tokens
        request.kv_reserved_tokens = reserve_tokens
        self.used_tokens += tokens
        self.reserved_tokens += reserve_tokens
        return True

    def grow(self, request: Request) -> None:
        """Hold one token more for a running request; the caller has made sure that there is one."""
        request.kv_tokens += 1
        self.used_tokens += 1
        if request.kv_reserved_tokens:
            request.kv_reserved_tokens -= 1
            self.reserved_tokens -= 1

    def release(self, request: Request) -> None:
        """Give back everything that a request holds or was promised."""
        self.used_tokens -= request.kv_tokens
        self.reserved_tokens -= request.kv_reserved_tokens
        request.kv_tokens = request.kv_reserved_tokens = 0
