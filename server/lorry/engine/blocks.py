"""KV accounting: which sequence owns which blocks of the cache. No torch: numbers only.

A block holds the keys and values of `block_size` consecutive tokens of one sequence, in every
layer.
"""

from __future__ import annotations

from collections.abc import Iterable


class BlockPool:
    """Allocates and frees blocks."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        assert num_blocks >= 1 and block_size >= 1
        self.num_blocks = num_blocks
        self.block_size = block_size
        # The block freed last is used first: its memory is the most likely to be cached.
        self._free = list(range(num_blocks - 1, -1, -1))
        self._taken: set[int] = set()

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        return len(self._taken)

    def blocks_for(self, num_tokens: int) -> int:
        """Return the number of blocks that hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def grow(self, blocks: list[int], num_tokens: int) -> bool:
        """Extend `blocks` to hold `num_tokens`. Return False and take nothing if there are too
        few."""
        missing = self.blocks_for(num_tokens) - len(blocks)
        if missing > len(self._free):
            return False
        for _ in range(missing):
            block = self._free.pop()
            self._taken.add(block)
            blocks.append(block)
        return True

    def give_back(self, blocks: Iterable[int]) -> None:
        for block in blocks:
            self._taken.remove(block)
            self._free.append(block)
