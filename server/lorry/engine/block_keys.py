"""Keys of full KV blocks: two blocks with equal keys have equal contents. Pure Python.

A key is a BLAKE2b hash, which nobody can make collide, over

    the key of the block before it     so all tokens before it and their positions
    its token ids                      -1 for virtual ones, which are the adapter's
    the adapters active in it          digest, scale, and the first token, in the request's order

The first key of a chain is a hash over what is the same for all blocks of a request: the path
through the model (paths differ in rounding), the request's salt, and the caller if callers do not
share. The base, its quantization and the cache's type are fixed while the process lives, and the
chains die with it.

An adapter is active from its start on. Before that its blocks have the base's keys, so that
an activated LoRA shares them with the base. An adapter at scale 0 is not active at all.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

from lorry.core import AdapterUse

VIRTUAL = -1
"""The id of a virtual token."""

_SIZE = 32
"""Size of a key in bytes."""

Change = tuple[str, float, int]
"""The digest and the scale of an adapter, and the token of the block that it begins with."""


@dataclass(frozen=True, slots=True)
class BlockContent:
    """What the tokens of a block depend on, full or not."""

    before: bytes
    """The key of the block before it."""
    token_ids: Sequence[int]
    changes: Sequence[Change]
    """Of these tokens."""

    def equal_tokens(self, other: BlockContent) -> int:
        """Return how many of the first tokens depend on the same in both."""
        assert self.before == other.before
        pairs = zip(self.token_ids, other.token_ids, strict=False)
        count = next((at for at, (a, b) in enumerate(pairs) if a != b), None)
        if count is None:
            count = min(len(self.token_ids), len(other.token_ids))
        while _until(self.changes, count) != _until(other.changes, count):
            # An adapter that changes only one of them, or in another order, is in the way.
            both = (*self.changes, *other.changes)
            count = max(begin for *_, begin in both if begin < count)
        return count


def _until(changes: Sequence[Change], count: int) -> list[Change]:
    return [change for change in changes if change[-1] < count]


def first_key(path: str, salt: str, caller: str | None) -> bytes:
    """Return the key before the first block. `caller`: None if callers share."""
    return _hash(repr((path, salt, caller)).encode())


def next_key(before: bytes, token_ids: Sequence[int], changes: Sequence[Change]) -> bytes:
    """Return the key of a block, given the key before it. The number of its tokens is always the
    same, and `repr` of strings and numbers is unambiguous."""
    return _hash(before + array("q", token_ids).tobytes() + repr(tuple(changes)).encode())


def changes_in(adapters: Sequence[AdapterUse], begin: int, end: int) -> tuple[Change, ...]:
    """Return the changes at the positions `begin` to `end` - 1 of a sequence."""
    return tuple(
        (one.digest, one.scale, max(one.start - begin, 0)) for one in adapters if one.start < end
    )


def _hash(data: bytes) -> bytes:
    return blake2b(data, digest_size=_SIZE).digest()
