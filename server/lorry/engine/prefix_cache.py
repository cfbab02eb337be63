"""Finds blocks of a sequence that were computed earlier, by it or by another. Pure Python.

A sequence reads up to its last token but one: the last is always computed, as its logits are
wanted. It shares whole blocks, so it never writes to a block that others read. Of the block behind
them it copies what another one begins with: the end of an answer that the next turn of a chat goes
on with, or of a system prompt. It reads when it is admitted, and again before each further part of
its prompt: of ten equal prompts that come at once, one is computed.

A sequence enters its full blocks after each step that succeeded, and the last one when it ends.
If one of its results is not finite, all of its blocks lose their keys, those of others too, and
so does what it copied from: one of them may be the reason.

Not read by: a request that wants log-probabilities of its prompt or the mean of its hidden states,
as each token has to run for that. Neither read nor entered by: a request with `cache_prompt` false,
and the rest of a prompt that changes its path (a prompt in parts runs as the base's rows do, except
the last part if a vector is wanted).
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass

from lorry.core import BlockCopy, Pooling
from lorry.engine import block_keys
from lorry.engine.block_keys import BlockContent
from lorry.engine.blocks import BlockPool
from lorry.engine.sequence import Sequence

PathOf = Callable[[AbstractSequence[str], Pooling | None], str | None]
"""Returns a name of the path of rows with these digests and pooling. Rows of one path have the
same rounding. None if it is not known yet, because an adapter is in no slot."""


WORTH = 4
"""A copy has to save at least 1 / WORTH of a block."""


@dataclass(frozen=True, slots=True)
class _Beginning:
    """Of a block, which a sequence copies."""

    source: int
    index: int
    """Among the sequence's blocks."""
    count: int
    """Tokens."""


class PrefixCache:
    """The scheduler's view of the blocks that have a key."""

    def __init__(
        self, blocks: BlockPool, path_of: PathOf | None, *, per_caller: bool = False
    ) -> None:
        """`path_of` is None if there is no prefix cache. `per_caller`: callers do not share."""
        self._blocks = blocks
        self._path_of = path_of
        self._per_caller = per_caller
        self._copies: dict[Sequence, _Beginning] = {}
        """That no batch has yet."""

    def found(self, sequence: Sequence) -> list[int]:
        """Return the blocks that `take` would at least give to the sequence."""
        first, found = self._found(sequence)
        end = (first + len(found)) * self._blocks.block_size
        return found if end > sequence.num_computed else []

    def take(self, sequence: Sequence) -> None:
        """Give the sequence the blocks that are found, in place of its own."""
        if not self._searches(sequence):
            return
        if sequence in self._copies:
            return
        sequence.cached = sequence.cached or 0
        first, found = self._found(sequence)
        blocks, last = self._blocks, first + len(found)
        beginning = self._beginning(sequence, last)
        position = last * blocks.block_size + (beginning.count if beginning else 0)
        if position <= sequence.num_computed:
            return
        own = sequence.blocks[first:last]
        blocks.share(found)
        blocks.give_back(own)
        sequence.blocks[first:last] = found
        sequence.entered = last
        sequence.skip_to(position)
        if beginning:
            self._copies[sequence] = beginning
            sequence.copied_from = beginning.source
            blocks.take_half(beginning.source, beginning.count)

    def copies(self) -> tuple[BlockCopy, ...]:
        """Return what to copy before the next step. All sequences have their blocks."""
        copies, self._copies = self._copies, {}
        return tuple(
            BlockCopy(one.source, sequence.blocks[one.index], one.count)
            for sequence, one in copies.items()
        )

    def leave(self, sequence: Sequence) -> None:
        """Enter the last block of a sequence that is about to give its blocks back."""
        size, done = self._blocks.block_size, sequence.num_computed
        index, count = divmod(done, size)
        waits = self._copies.pop(sequence, None) is not None
        if waits or count < size // WORTH or count == 0 or sequence.entered != index:
            return
        if not sequence.keyed or not self._begun(sequence):
            return
        content = self._content(sequence, index, done)
        known = self._blocks.beginning(content)
        if known is None or known[1] < count:
            digests = (one.digest for one in sequence.adapters if one.start < done)
            self._blocks.enter(sequence.blocks[index], None, digests, content)

    def enter(self, sequence: Sequence, pooling: Pooling | None) -> None:
        """Enter the blocks that the last step filled. `pooling` is that of the step's row."""
        if self._path_of is None or not sequence.keyed:
            return
        if pooling is not sequence.request.pooling:
            path = self._path_of(sequence.digests, pooling)
            if path != self._path_of(sequence.digests, sequence.request.pooling):
                sequence.keyed = False
                return
        size = self._blocks.block_size
        if sequence.num_computed // size <= sequence.entered or not self._begun(sequence):
            return
        for index in range(sequence.entered, sequence.num_computed // size):
            end = (index + 1) * size
            digests = (one.digest for one in sequence.adapters if one.start < end)
            key, content = self._key(sequence, index), self._content(sequence, index, end)
            self._blocks.enter(sequence.blocks[index], key, digests, content)
            sequence.entered = index + 1

    def withdraw(self, sequence: Sequence) -> None:
        """Remove the keys of all its blocks."""
        self._blocks.withdraw(sequence.blocks)
        if sequence.copied_from is not None:
            # It may be another's by now, which is no reason to keep it.
            self._blocks.withdraw([sequence.copied_from])
        sequence.keyed = False

    def forget(self, digest: str) -> None:
        """Free what was computed with this adapter: it can never be found again."""
        self._blocks.forget(digest)

    def _found(self, sequence: Sequence) -> tuple[int, list[int]]:
        """Return the place among the sequence's blocks of the first one found, and all of them."""
        if not self._searches(sequence):
            return 0, []
        size, done = self._blocks.block_size, sequence.num_computed
        # A prefix is in its blocks only after the first row has run.
        first = 0 if done == sequence.prefix else done // size
        last = (sequence.num_tokens - 1) // size
        return first, self._blocks.find(self._key(sequence, index) for index in range(first, last))

    def _beginning(self, sequence: Sequence, index: int) -> _Beginning | None:
        """Return what the sequence can copy of its block at `index`, if it pays."""
        size = self._blocks.block_size
        begin, end = index * size, min((index + 1) * size, sequence.num_tokens - 1)
        worth = max(1, size // WORTH)
        if end - max(begin, sequence.num_computed) < worth:
            return None
        found = self._blocks.beginning(self._content(sequence, index, end))
        if found is None or begin + found[1] - max(begin, sequence.num_computed) < worth:
            return None
        return _Beginning(found[0], index, found[1])

    def _content(self, sequence: Sequence, index: int, end: int) -> BlockContent:
        """Of the sequence's block at `index`, up to the position `end`."""
        begin = index * self._blocks.block_size
        return BlockContent(
            self._key(sequence, index - 1),
            tuple(sequence.tokens_at(begin, end)),
            block_keys.changes_in(sequence.adapters, begin, end),
        )

    def _searches(self, sequence: Sequence) -> bool:
        return sequence.reads and self._begun(sequence)

    def _begun(self, sequence: Sequence) -> bool:
        """Return whether the sequence has keys; make the first one if it can be made."""
        if self._path_of is None or not sequence.keyed:
            return False
        if not sequence.keys:
            request = sequence.request
            path = self._path_of(sequence.digests, request.pooling)
            if path is None:
                return False
            caller = request.caller if self._per_caller else None
            sequence.keys.append(block_keys.first_key(path, request.caching.salt, caller))
        return True

    def _key(self, sequence: Sequence, index: int) -> bytes:
        """Return the key of the sequence's block at `index`, which is full of its tokens; -1: the
        one before its first."""
        keys, size = sequence.keys, self._blocks.block_size
        while len(keys) <= index + 1:
            begin = (len(keys) - 1) * size
            token_ids = sequence.tokens_at(begin, begin + size)
            changes = block_keys.changes_in(sequence.adapters, begin, begin + size)
            keys.append(block_keys.next_key(keys[-1], token_ids, changes))
        return keys[index + 1]
