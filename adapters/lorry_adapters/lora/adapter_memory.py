"""The memory of all adapters, counted within one limit. No torch.

An adapter counts from before it is read until nothing holds it: what it takes in a slot or on the
way there, by part, and its tensors in the host cache. Where a slot holds the very tensors that the
host cache has, they count once.

The total never exceeds the limit. What does not fit is refused, after the host cache was asked to
drop what no slot holds.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields

UNLIMITED = sys.maxsize
HOST_CACHE = "host_cache"
"""The part of what only the host cache holds."""

Shrink = Callable[[Callable[[], bool], bool], bool]
"""(enough, pinned): drop entries until `enough()`; those that users pinned only if `pinned`, and
last. Returns whether it is enough."""


@dataclass(frozen=True, slots=True)
class AdapterBytes:
    """What one adapter takes in a slot."""

    weights: int = 0
    """Its tensors as in the file, without virtual tokens, while the slot holds them."""
    pairs: int = 0
    """Pairs of matrices as a step reads them."""
    deltas: int = 0
    """Everything else that was made for a step: vectors, measured changes, pairs of experts."""
    heads: int = 0
    """The same of embeddings, output heads and classifiers."""
    virtual_tokens: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.pairs + self.deltas + self.heads + self.virtual_tokens

    def plus(self, more: AdapterBytes) -> AdapterBytes:
        return AdapterBytes(
            *(getattr(self, one.name) + getattr(more, one.name) for one in fields(self))
        )

    def capped(self, limit: int) -> AdapterBytes:
        """Return the same, or `limit` bytes in all if that is less."""
        if self.total <= limit:
            return self
        weights = min(self.weights, limit)
        return AdapterBytes(weights=weights, deltas=limit - weights)


PARTS = (*(field.name for field in fields(AdapterBytes)), HOST_CACHE)


class AdapterMemory:
    """Thread-safe."""

    def __init__(self, limit: int = UNLIMITED) -> None:
        assert limit >= 0
        self.limit = limit
        self._shrink: Shrink = lambda enough, pinned: enough()
        self._lock = threading.Lock()
        # The lock guards everything below, and is held for no call to anything else.
        self._placed: dict[str, AdapterBytes] = {}
        self._cached: dict[str, int] = {}
        self._total = 0
        self.changes = 0
        """Grows with every change."""

    def use_cache(self, shrink: Shrink) -> None:
        """The host cache, which gives way to slots."""
        self._shrink = shrink

    # Slots

    def take(self, digest: str, size: AdapterBytes, *, pinned: bool = False) -> bool:
        """Count `size` for an adapter from now on, instead of what it took before. Return False,
        and change nothing, if it does not fit even after the host cache has dropped what it can,
        with `pinned` also what users pinned."""
        return self._try(digest, size) or self._shrink(lambda: self._try(digest, size), pinned)

    def give_back(self, digest: str) -> None:
        """No slot and no load holds the adapter any more. Ignored if none did."""
        with self._lock:
            self._set(digest, None, self._cached.get(digest))

    def of(self, digest: str) -> AdapterBytes | None:
        """Return what is counted for an adapter, beside the host cache."""
        with self._lock:
            return self._placed.get(digest)

    def could_fit(self, digest: str, size: AdapterBytes, going: Collection[str]) -> bool:
        """Return whether it would fit if the host cache were empty and nothing held `going`."""
        with self._lock:
            rest = sum(
                one.total for d, one in self._placed.items() if d != digest and d not in going
            )
        return rest + size.total <= self.limit

    # The host cache

    def keep(self, digest: str, size: int) -> bool:
        """Count an adapter in the host cache; False, and nothing changes, if it does not fit."""
        with self._lock:
            return self._set(digest, self._placed.get(digest), size)

    def drop(self, digest: str) -> None:
        """It is not in the host cache any more."""
        with self._lock:
            self._set(digest, self._placed.get(digest), None)

    def frees(self, digest: str) -> bool:
        """Return whether dropping it from the host cache makes room: a slot may hold it too."""
        with self._lock:
            placed = self._placed.get(digest) or AdapterBytes()
            return self._cached.get(digest, 0) > placed.weights

    # Looking

    @property
    def total(self) -> int:
        with self._lock:
            return self._total

    def by_part(self) -> Mapping[str, int]:
        """Return the bytes of each of PARTS."""
        found = dict.fromkeys(PARTS, 0)
        with self._lock:
            for one in self._placed.values():
                for part in PARTS[:-1]:
                    found[part] += getattr(one, part)
            found[HOST_CACHE] = self._total - sum(found.values())
        return found

    def _try(self, digest: str, size: AdapterBytes) -> bool:
        with self._lock:
            return self._set(digest, size, self._cached.get(digest))

    def _set(self, digest: str, placed: AdapterBytes | None, cached: int | None) -> bool:
        before = _counted(self._placed.get(digest), self._cached.get(digest))
        after = _counted(placed, cached)
        total = self._total - before + after
        # What became smaller is always accepted.
        if total > self.limit and after > before:
            return False
        self._total = total
        self.changes += 1
        if placed is None:
            self._placed.pop(digest, None)
        else:
            self._placed[digest] = placed
        if cached is None:
            self._cached.pop(digest, None)
        else:
            self._cached[digest] = cached
        return True


def _counted(placed: AdapterBytes | None, cached: int | None) -> int:
    held = placed or AdapterBytes()
    return held.total + max(0, (cached or 0) - held.weights)
