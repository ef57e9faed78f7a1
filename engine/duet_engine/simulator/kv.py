"""The KV pool of one worker, prefix cache included, counted without looking at each running request in each step.

Invariant: held and cached tokens together never exceed the capacity. Promised tokens only make admission cautious: each
running request uses up its promise with the tokens it generates. Cached blocks that nobody holds make room for whoever
asks, the least recently used first and a prompt's later blocks before its earlier ones.
"""

from __future__ import annotations

from collections import OrderedDict
from heapq import heappop, heappush
from itertools import count

BLOCK_TOKENS = 512
"""Prefixes are known by the hashes of blocks of this size."""


class Holding:
    """What one request holds of a pool."""

    __slots__ = ("blocks", "exhausted_step", "joined_step", "reserved_tokens", "tokens")

    def __init__(self) -> None:
        self.tokens = 0
        """Its own, as of the step in which it joined."""
        self.reserved_tokens = 0
        self.blocks: tuple[int, ...] = ()
        """Shared ones, kept in the cache while it lasts."""
        self.joined_step = -1
        """The pool's step count when it joined the running batch; -1: it doesn't run."""
        self.exhausted_step = -1
        """When a running one has used up its promise; -1: it has."""


class KvPool:
    """Counts of tokens. `steps` counts decode steps: in each every running request takes one token."""

    __slots__ = (
        "_cached",
        "_exhaust",
        "_held",
        "_order",
        "_promised_fixed",
        "_promised_running",
        "_promised_until",
        "caches",
        "capacity_tokens",
        "running",
        "steps",
        "used_tokens",
    )

    def __init__(self, capacity_tokens: int, *, caches: bool = False) -> None:
        self.capacity_tokens = capacity_tokens
        self.caches = caches
        self.used_tokens = 0
        """Held by requests; shared blocks count once."""
        self.steps = 0
        self.running = 0
        self._promised_fixed = 0
        self._promised_running = 0
        """Running requests with some of their promise left,"""
        self._promised_until = 0
        """and the sum of the steps in which they will have used it up."""
        self._exhaust: list[tuple[int, int, Holding]] = []
        self._order = count()
        self._held: dict[int, int] = {}
        """Shared blocks by the number of requests that hold them,"""
        self._cached: OrderedDict[int, None] = OrderedDict()
        """and those that nobody holds, least recently used first."""

    @property
    def reserved_tokens(self) -> int:
        """Promised and not used yet."""
        return self._promised_fixed + self._promised_until - self._promised_running * self.steps

    @property
    def free_tokens(self) -> int:
        """Neither held nor promised; cached blocks count as free."""
        return self.capacity_tokens - self.used_tokens - self.reserved_tokens

    @property
    def cached_tokens(self) -> int:
        """In blocks that nobody holds."""
        return BLOCK_TOKENS * len(self._cached)

    @property
    def growth_tokens(self) -> int:
        """What the next decode step takes of the free tokens."""
        return self.running - self._promised_running

    @property
    def full(self) -> bool:
        """Whether there is no room for one more step of the present batch."""
        return self.used_tokens + (self.running or 1) > self.capacity_tokens

    @property
    def room_steps(self) -> int:
        """Decode steps of the present batch until the pool is full."""
        return (self.capacity_tokens - self.used_tokens) // max(self.running, 1)

    # --- admission ---

    def matched_tokens(self, blocks: tuple[int, ...]) -> int:
        """How much of a prompt with these blocks lies in the cache."""
        matched = 0
        if not self.caches:
            return 0
        for block in blocks:
            if block not in self._held and block not in self._cached:
                break
            matched += BLOCK_TOKENS
        return matched

    def admit(self, holding: Holding, *, tokens: int, reserve_tokens: int, cached_blocks: tuple[int, ...] = ()) -> bool:
        """Hold `tokens`, of them the cached blocks shared, and promise more; or change nothing and say False."""
        own_tokens, revived = tokens, 0
        if cached_blocks:
            own_tokens -= BLOCK_TOKENS * len(cached_blocks)
            revived = BLOCK_TOKENS * sum([block in self._cached for block in cached_blocks])
        if own_tokens + revived + reserve_tokens > self.free_tokens:
            return False
        holding.tokens, holding.reserved_tokens = own_tokens, reserve_tokens
        self.used_tokens += own_tokens
        self._promised_fixed += reserve_tokens
        holding.blocks = cached_blocks
        if cached_blocks:
            self._hold(cached_blocks)
        if self._cached:
            self._make_room()
        return True

    def share(self, holding: Holding, blocks: tuple[int, ...]) -> None:
        """A computed prompt's blocks become shared; what another request had computed meanwhile isn't kept twice."""
        if not self.caches:
            return
        new = blocks[len(holding.blocks) :]
        known = [block for block in new if block in self._held or block in self._cached]
        self.used_tokens -= BLOCK_TOKENS * len(known)
        for block in new:
            if block not in self._held and block not in self._cached:
                self._held[block] = 0
        holding.tokens -= BLOCK_TOKENS * len(new)
        self._hold(new)
        holding.blocks += new

    def _hold(self, blocks: tuple[int, ...]) -> None:
        for block in blocks:
            if block in self._cached:
                del self._cached[block]
                self._held[block] = 1
                self.used_tokens += BLOCK_TOKENS
            else:
                self._held[block] += 1

    def _make_room(self) -> None:
        while self._cached and self.used_tokens + BLOCK_TOKENS * len(self._cached) > self.capacity_tokens:
            self._cached.popitem(last=False)

    # --- the running batch ---

    def join(self, holding: Holding) -> None:
        """The request generates a token in each step from now on."""
        self.running += 1
        holding.joined_step = self.steps
        reserved, holding.reserved_tokens = holding.reserved_tokens, 0
        self._promised_fixed -= reserved
        if reserved:
            holding.exhausted_step = self.steps + reserved
            self._promised_running += 1
            self._promised_until += holding.exhausted_step
            heappush(self._exhaust, (holding.exhausted_step, next(self._order), holding))

    def advance(self, steps: int) -> None:
        """So many decode steps of the present batch."""
        self.used_tokens += steps * self.running
        self.steps += steps
        while self._exhaust and self._exhaust[0][0] <= self.steps:
            step, _, holding = heappop(self._exhaust)
            if holding.exhausted_step == step:
                self._forget_promise(holding)
        if self._cached:
            self._make_room()

    def leave(self, holding: Holding) -> int:
        """The request generates no more here; how many tokens it did since it joined."""
        generated = self.steps - holding.joined_step
        self.running -= 1
        holding.tokens += generated
        holding.joined_step = -1
        if holding.exhausted_step >= 0:
            self._forget_promise(holding)
        return generated

    def _forget_promise(self, holding: Holding) -> None:
        self._promised_running -= 1
        self._promised_until -= holding.exhausted_step
        holding.exhausted_step = -1

    def release(self, holding: Holding) -> None:
        """Give back everything; the request doesn't run. Its shared blocks stay in the cache."""
        self.used_tokens -= holding.tokens
        self._promised_fixed -= holding.reserved_tokens
        holding.tokens = holding.reserved_tokens = 0
        for block in reversed(holding.blocks):
            self._held[block] -= 1
            if self._held[block] == 0:
                del self._held[block]
                self._cached[block] = None
                self.used_tokens -= BLOCK_TOKENS
        holding.blocks = ()
