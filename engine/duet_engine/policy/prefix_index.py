"""Which worker likely holds the beginning of a prompt in its cache: an approximate index, from what was sent there.

A prompt is a chain of blocks, each hashed together with all before it, so that equal blocks behind different beginnings
differ. What a worker has evicted since isn't known: blocks that nobody used for long are forgotten here too, and an
estimate that was too good costs one prompt's prefill, never an answer.

Invariant: at most `most_blocks` blocks are kept. A match is a beginning: whoever lacks a block has none behind it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

BLOCK_BYTES = 512
"""About a hundred tokens of text: what is shared behind the last whole block is too short to matter."""
MOST_BLOCKS = 200_000
"""About 20 million tokens, in 30 MB."""


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
    """

    __slots__ = ("_bits", "_keys", "_most_blocks", "_old", "_young")

    def __init__(self, *, most_blocks: int = MOST_BLOCKS) -> None:
        if most_blocks < 2:
            raise ValueError(f"most_blocks: must be at least 2, got {most_blocks}")
        self._most_blocks = most_blocks
        self._young: dict[int, int] = {}
        self._old: dict[int, int] = {}
        self._bits: dict[str, int] = {}
        self._keys: dict[int, str] = {}

    def __len__(self) -> int:
        """Blocks that are kept, those of both generations counted twice."""
        return len(self._young) + len(self._old)

    def add(self, worker: str, blocks: Iterable[int]) -> None:
        """The worker has computed this chain, or will have when it's next asked for."""
        bit = self._bit(worker)
        for block in blocks:
            holders = self._young.get(block)
            if holders is None:
                self._make_room()
                holders = self._old.get(block, 0)
            self._young[block] = holders | bit

    def match(self, blocks: Sequence[int]) -> dict[str, int]:
        """How many blocks of the chain each worker holds, from its beginning on; workers with none are left out."""
        young, old = self._young, self._old
        found: dict[str, int] = {}
        holding = -1
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
        bit = self._bits.pop(worker, None)
        if bit is None:
            return
        del self._keys[bit]
        for generation in (self._young, self._old):
            for block in [block for block, holders in generation.items() if holders & bit]:
                generation[block] &= ~bit

    def _bit(self, worker: str) -> int:
        bit = self._bits.get(worker)
        if bit is None:
            bit = 1
            while bit in self._keys:
                bit <<= 1
            self._bits[worker], self._keys[bit] = bit, worker
        return bit

    def _workers(self, holders: int) -> Iterable[str]:
        while holders:
            bit = holders & -holders
            yield self._keys[bit]
            holders ^= bit

    def _make_room(self) -> None:
        if len(self._young) >= self._most_blocks // 2:
            self._old, self._young = self._young, {}


def warm_tokens(matched: Mapping[str, int], *, blocks: int, prompt_tokens: int) -> dict[str, int]:
    """Tokens of the prompt that each worker likely holds, from its share of the prompt's blocks."""
    return {worker: prompt_tokens * count // blocks for worker, count in matched.items()} if blocks else {}
