"""KV accounting: which sequences use which blocks of the cache. No torch: numbers only.

A block holds the keys and values of `block_size` consecutive tokens, in every layer. Its contents
are final once it is full. A full block may be entered under a key (`lorry.engine.block_keys`) that
says everything its contents depend on. From then on any number of sequences may use it.

A block that a sequence leaves half full may be entered without a key. Nobody uses such a block; but
from any entered block that begins as a sequence goes on, the sequence may copy the beginning.

    free     used by nobody, not entered. They are taken first.
    idle     used by nobody, entered. They are taken next, the least recently used first.
    used     by one sequence or more, entered or not.

`num_free` counts the free and the idle ones.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from collections.abc import Sequence as AbstractSequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import islice

from lorry.engine.block_keys import BlockContent

MAX_CANDIDATES = 32
"""Blocks behind one block that are looked at for a beginning, the latest first."""


@dataclass(frozen=True, slots=True)
class _Entry:
    key: bytes | None
    """None: it is not full."""
    digests: tuple[str, ...]
    """The adapters that changed its contents."""
    content: BlockContent | None
    """None: nobody copies from it."""


class BlockPool:
    """Allocates, shares and frees blocks."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        assert num_blocks >= 1 and block_size >= 1
        self.num_blocks = num_blocks
        self.block_size = block_size
        # The block freed last is used first: its memory is the most likely to be cached.
        self._free = list(range(num_blocks - 1, -1, -1))
        # The least recently used first.
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._uses: dict[int, int] = {}
        self._block_of: dict[bytes, int] = {}
        self._entries: dict[int, _Entry] = {}
        self._of_digest: dict[str, set[int]] = {}
        # By the key of the block before them; in the order in which they were entered.
        self._behind: dict[bytes, dict[int, None]] = {}

    @property
    def num_free(self) -> int:
        return len(self._free) + len(self._idle)

    @property
    def num_used(self) -> int:
        return len(self._uses)

    @property
    def num_entered(self) -> int:
        """The number of blocks with a key, used or idle."""
        return len(self._block_of)

    def blocks_for(self, num_tokens: int) -> int:
        """Return the number of blocks that hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def grow(self, blocks: list[int], num_tokens: int) -> bool:
        """Extend `blocks` to hold `num_tokens`. Return False and take nothing if there are too
        few."""
        missing = self.blocks_for(num_tokens) - len(blocks)
        if missing > self.num_free:
            return False
        for _ in range(missing):
            block = self._free.pop() if self._free else self._evicted()
            self._uses[block] = 1
            blocks.append(block)
        return True

    def shorten(self, blocks: list[int], num_tokens: int) -> None:
        """Give back those of a sequence's `blocks` that are behind `num_tokens`."""
        kept = self.blocks_for(num_tokens)
        if kept < len(blocks):
            self.give_back(blocks[kept:])
            del blocks[kept:]

    def give_back(self, blocks: AbstractSequence[int]) -> None:
        """Stop using `blocks`, which are a sequence's in order.

        The last one is the first to become idle: a block is of no use without those before it."""
        for block in reversed(blocks):
            uses = self._uses[block] - 1
            if uses:
                self._uses[block] = uses
                continue
            del self._uses[block]
            if block in self._entries:
                self._idle[block] = None
            else:
                self._free.append(block)

    # ---- blocks with a key

    def enter(
        self,
        block: int,
        key: bytes | None,
        digests: Iterable[str] = (),
        content: BlockContent | None = None,
    ) -> None:
        """Enter a block in use. `key`: None if it is not full. `digests`: the adapters that changed
        its contents.

        If another block has the key, this one stays without: one of them is enough."""
        assert block in self._uses and block not in self._entries
        if key in self._block_of:
            return
        entry = _Entry(key, tuple(dict.fromkeys(digests)), content)
        if key is not None:
            self._block_of[key] = block
        self._entries[block] = entry
        for digest in entry.digests:
            self._of_digest.setdefault(digest, set()).add(block)
        if content is not None:
            self._behind.setdefault(content.before, {})[block] = None

    def beginning(self, wanted: BlockContent) -> tuple[int, int] | None:
        """Return the block that begins most like `wanted`, and the number of equal tokens; None if
        none does."""
        best: tuple[int, int] | None = None
        for block in islice(reversed(self._behind.get(wanted.before, {})), MAX_CANDIDATES):
            content = self._entries[block].content
            assert content is not None
            count = wanted.equal_tokens(content)
            if count > (best[1] if best else 0):
                best = block, count
        return best

    def take_half(self, block: int, count: int) -> None:
        """Withdraw a block that was found to have `count` equal tokens, if these are all it has:
        the copy has them, too."""
        entry = self._entries[block]
        assert entry.content is not None
        if entry.key is None and len(entry.content.token_ids) == count:
            self.withdraw([block])

    def find(self, keys: Iterable[bytes]) -> list[int]:
        """Return the blocks of `keys`, up to the first key that no block has."""
        found: list[int] = []
        for key in keys:
            block = self._block_of.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def share(self, blocks: Iterable[int]) -> None:
        """Use `blocks`, which `find` returned, in one more sequence."""
        for block in blocks:
            uses = self._uses.get(block, 0)
            if not uses:
                del self._idle[block]
            self._uses[block] = uses + 1

    def num_idle(self, blocks: Iterable[int]) -> int:
        """Return how many of `blocks`, which were found, are idle."""
        return sum(block in self._idle for block in blocks)

    def num_freed(self, blocks: Iterable[int], kept: AbstractSet[int] = frozenset()) -> int:
        """Return how many of a sequence's `blocks` nobody else uses and are not in `kept`."""
        return sum(self._uses[block] == 1 and block not in kept for block in blocks)

    def withdraw(self, blocks: Iterable[int]) -> None:
        """Remove the keys of `blocks`, so that no sequence finds them again."""
        for block in blocks:
            if block in self._entries:
                self._remove(block)
                if block in self._idle:
                    del self._idle[block]
                    self._free.append(block)

    def forget(self, digest: str) -> None:
        """Withdraw the blocks whose contents the adapter `digest` changed."""
        self.withdraw(list(self._of_digest.get(digest, ())))

    def _evicted(self) -> int:
        block, _ = self._idle.popitem(last=False)
        self._remove(block)
        return block

    def _remove(self, block: int) -> None:
        entry = self._entries.pop(block)
        if entry.key is not None:
            del self._block_of[entry.key]
        if entry.content is not None:
            behind = self._behind[entry.content.before]
            del behind[block]
            if not behind:
                del self._behind[entry.content.before]
        for digest in entry.digests:
            others = self._of_digest[digest]
            others.remove(block)
            if not others:
                del self._of_digest[digest]
