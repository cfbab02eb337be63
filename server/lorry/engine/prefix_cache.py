"""Finds blocks of a sequence that were computed earlier, by it or by another. Pure Python.

A sequence reads up to its last token but one: the last is always computed, as its logits are
wanted. It reads whole blocks, so it never writes to a block that it shares. It reads when it is
admitted, and again before each further part of its prompt: of ten equal prompts that come at once,
one is computed.

A sequence enters its full blocks after each step that succeeded. If one of its results is not
finite, all of its blocks lose their keys, those of others too: one of them may be the reason.

Not read by: a request that wants log-probabilities of its prompt or the mean of its hidden states,
as each token has to run for that. Neither read nor entered by: a request with `cache_prompt` false,
and the rest of a prompt that changes its path (a prompt in parts runs as the base's rows do, except
the last part if a vector is wanted).
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as AbstractSequence

from lorry.core import Pooling
from lorry.engine import block_keys
from lorry.engine.blocks import BlockPool
from lorry.engine.sequence import Sequence

PathOf = Callable[[AbstractSequence[str], Pooling | None], str | None]
"""Returns a name of the path of rows with these digests and pooling. Rows of one path have the
same rounding. None if it is not known yet, because an adapter is in no slot."""


class PrefixCache:
    """The scheduler's view of the blocks that have a key."""

    def __init__(
        self, blocks: BlockPool, path_of: PathOf | None, *, per_caller: bool = False
    ) -> None:
        """`path_of` is None if there is no prefix cache. `per_caller`: callers do not share."""
        self._blocks = blocks
        self._path_of = path_of
        self._per_caller = per_caller

    def found(self, sequence: Sequence) -> list[int]:
        """Return the blocks that `take` would give to the sequence."""
        return self._found(sequence)[1]

    def take(self, sequence: Sequence) -> None:
        """Give the sequence the blocks that are found, in place of its own."""
        if not self._searches(sequence):
            return
        sequence.cached = sequence.cached or 0
        first, found = self._found(sequence)
        if not found:
            return
        blocks, own = self._blocks, sequence.blocks[first : first + len(found)]
        blocks.share(found)
        blocks.give_back(own)
        sequence.blocks[first : first + len(found)] = found
        sequence.entered = first + len(found)
        sequence.skip_to(sequence.entered * blocks.block_size)

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
            digests = (one.digest for one in sequence.adapters if one.start < (index + 1) * size)
            self._blocks.enter(sequence.blocks[index], self._key(sequence, index), digests)
            sequence.entered = index + 1

    def withdraw(self, sequence: Sequence) -> None:
        """Remove the keys of all its blocks."""
        self._blocks.withdraw(sequence.blocks)

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
        found = self._blocks.find(self._key(sequence, index) for index in range(first, last))
        return (first, found) if (first + len(found)) * size > done else (first, [])

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
        """Return the key of the sequence's block at `index`, which is full of its tokens."""
        keys, size = sequence.keys, self._blocks.block_size
        while len(keys) <= index + 1:
            begin = (len(keys) - 1) * size
            token_ids = sequence.tokens_at(begin, begin + size)
            changes = block_keys.changes_in(sequence.adapters, begin, begin + size)
            keys.append(block_keys.next_key(keys[-1], token_ids, changes))
        return keys[index + 1]
