"""Which worker likely holds the beginning of a prompt in its cache: an approximate index, from what was sent there.

A prompt is a chain of blocks, each hashed together with all before it, so that equal blocks behind different beginnings
differ. What a worker has evicted since isn't told, but follows from what it was sent: a cache drops what was used least
lately, so behind as many new blocks as it can hold there is nothing left of older ones. To believe in blocks that are
gone is worse than to know nothing: a long prompt passes for a short one, and others queue behind it.

Invariant: at most `most_blocks` blocks are kept. A match is a beginning: whoever lacks a block has none behind it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

BLOCK_BYTES = 512
"""About a hundred tokens of text: what is shared behind the last whole block is too short to matter."""
MOST_BLOCKS = 200_000
"""About 20 million tokens, in 40 MB."""
AGES = 4
"""In so many parts of its room a worker's blocks are told apart by when they were used."""


def text_blocks(text: bytes, *, block_bytes: int = BLOCK_BYTES) -> list[int]:
    """The chain of whole blocks of a prompt. Hashes are this process's own."""
    blocks, chain = [], 0
    for start in range(0, len(text) - block_bytes + 1, block_bytes):
        chain = hash((chain, text[start : start + block_bytes]))
        blocks.append(chain)
    return blocks


class PrefixIndex:
    """Blocks in two generations: what was used since the last turn, and what was used in the one before.

    Workers are bits of one number for each block, so that a match costs one look-up a block however many there are.
    Each has several: the newest stands for what it used lately, and the oldest is given up when as much has been
    computed since as its cache holds. A bit that was given up is free again when no block can have it any more.
    """

    __slots__ = (
        "_bits",
        "_free",
        "_fresh",
        "_highest",
        "_live",
        "_most_blocks",
        "_old",
        "_owners",
        "_retired",
        "_young",
    )

    def __init__(self, *, most_blocks: int = MOST_BLOCKS) -> None:
        if most_blocks < 2:
            raise ValueError(f"most_blocks: must be at least 2, got {most_blocks}")
        self._most_blocks = most_blocks
        self._young: dict[int, int] = {}
        self._old: dict[int, int] = {}
        self._bits: dict[str, list[int]] = {}
        """Of each worker, the newest last."""
        self._fresh: dict[str, float] = {}
        """The share of its cache that is newer than the newest bit."""
        self._owners: dict[int, str] = {}
        self._live, self._highest = 0, 1
        self._free: list[int] = []
        self._retired: tuple[list[int], list[int]] = ([], [])
        """Bits that blocks may still have: given up before the last turn, and since."""

    def __len__(self) -> int:
        """Blocks that are kept, those of both generations counted twice."""
        return len(self._young) + len(self._old)

    def add(self, worker: str, blocks: Sequence[int], *, room_blocks: float = math.inf) -> None:
        """The worker has computed this chain, or will have when it's next asked for; its cache holds `room_blocks`."""
        bit, own, new = self._newest(worker), sum(self._bits[worker]), 0
        young, old, live = self._young, self._old, self._live
        for block in blocks:
            holders = young.get(block)
            if holders is None:
                self._make_room()
                young, old = self._young, self._old
                holders = old.get(block, 0) & live
            new += not holders & own
            young[block] = holders | bit
        self._fresh[worker] += new / max(room_blocks, 1.0)

    def match(self, blocks: Sequence[int]) -> dict[str, int]:
        """How many blocks of the chain each worker holds, from its beginning on; workers with none are left out."""
        young, old = self._young, self._old
        found: dict[str, int] = {}
        holding = self._live
        for depth, block in enumerate(blocks):
            holders = holding & (young.get(block, 0) | old.get(block, 0))
            if holders != holding and depth:
                found |= dict.fromkeys(self._workers(holding & ~holders), depth)
            holding = holders
            if not holding:
                return found
        return found | dict.fromkeys(self._workers(holding), len(blocks)) if blocks else found

    def forget(self, worker: str) -> None:
        """The worker is gone, and its cache with it."""
        for bit in self._bits.pop(worker, ()):
            self._retire(bit)
        self._fresh.pop(worker, None)

    def _newest(self, worker: str) -> int:
        """The bit for what it uses now."""
        bits = self._bits.setdefault(worker, [])
        fresh = self._fresh.get(worker, 0.0)
        parts = 1 if not bits else min(int(fresh * AGES), AGES - 1)
        for _ in range(parts):
            bits.append(self._new_bit(worker))
            if len(bits) > AGES:
                self._retire(bits.pop(0))
        self._fresh[worker] = 0.0 if parts else fresh
        return bits[-1]

    def _new_bit(self, worker: str) -> int:
        if self._free:
            bit = self._free.pop()
        else:
            bit, self._highest = self._highest, self._highest << 1
        self._owners[bit] = worker
        self._live |= bit
        return bit

    def _retire(self, bit: int) -> None:
        del self._owners[bit]
        self._live &= ~bit
        self._retired[1].append(bit)

    def _workers(self, holders: int) -> Iterable[str]:
        while holders:
            bit = holders & -holders
            yield self._owners[bit]
            holders ^= bit

    def _make_room(self) -> None:
        if len(self._young) >= self._most_blocks // 2:
            self._old, self._young = self._young, {}
            self._free += self._retired[0]
            self._retired = (self._retired[1], [])


def warm_tokens(matched: Mapping[str, int], *, blocks: int, prompt_tokens: int) -> dict[str, int]:
    """Tokens of the prompt that each worker likely holds, from its share of the prompt's blocks."""
    return {worker: prompt_tokens * count // blocks for worker, count in matched.items()} if blocks else {}
