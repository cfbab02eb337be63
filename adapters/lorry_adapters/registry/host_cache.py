"""Adapter weights in host memory within a byte budget; the least recently used go first.

Rules, in this order:

- Pinned digests are never evicted, even if they alone exceed the budget.
- Everything else fits beside them: `bytes <= max(budget, bytes of pinned)` always holds, and the
  same for the count. Weights that cannot fit are loaded and returned, but not kept.
- A digest is loaded once at a time: a concurrent call waits for that load and shares its result
  or its error. An error is not remembered; the next call tries again.

Returned weights live as long as somebody holds them, even after eviction. This budget does not
cover them.

The cache is a part of the memory of all adapters (`lorry_adapters.lora.adapter_memory`), and gives
way to slots: it keeps nothing that does not fit there, and drops the least recently used if a slot
needs the room, pinned digests last.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from lorry_adapters.lora.adapter_memory import AdapterMemory

if TYPE_CHECKING:
    # Only needed for the annotation: this module does not import torch.
    from lorry_adapters.lora.weights import AdapterWeights


@dataclass(frozen=True, slots=True)
class HostCacheStats:
    entries: int
    bytes: int
    capacity_bytes: int
    hits: int
    """Calls that read no disk, including those that waited for another's load."""
    misses: int
    """Loads started."""
    evictions: int
    """Entries dropped to make room, without removed adapters."""


class AdapterCache(Protocol):
    """The registry's view of a host cache; the engine's process may have its own. Thread-safe."""

    def pin(self, digests: frozenset[str]) -> None: ...

    def discard(self, digest: str) -> None: ...

    def __contains__(self, digest: str) -> bool: ...

    def stats(self) -> HostCacheStats: ...


@dataclass(slots=True, eq=False)
class _Flight:
    """A load in progress."""

    result: Future[AdapterWeights] = field(default_factory=Future)
    discarded: bool = False


class HostCache:
    """Thread-safe. `load` runs outside the lock, so a slow disk delays only its own digest."""

    def __init__(
        self,
        load: Callable[[str], AdapterWeights],
        *,
        max_bytes: int,
        max_entries: int | None = None,
        memory: AdapterMemory | None = None,
    ) -> None:
        """At most `max_bytes` of tensors and `max_entries` adapters (None: any number) are kept,
        within `memory`."""
        assert max_bytes >= 0 and (max_entries is None or max_entries >= 0)
        self._load = load
        self._max_bytes = max_bytes
        self._max_entries = max_entries
        self._lock = threading.Lock()
        # The lock guards everything below. Least recently used first.
        self._entries: OrderedDict[str, AdapterWeights] = OrderedDict()
        self._bytes = 0
        self._pinned: frozenset[str] = frozenset()
        self._flights: dict[str, _Flight] = {}
        self._hits = 0
        self._misses = 0
        self._evictions = 0
        # Its lock is taken below ours.
        self._memory = memory or AdapterMemory()
        self._memory.use_cache(self.shrink)

    def get(self, digest: str) -> AdapterWeights:
        """Return the weights, loading them if necessary. Raises whatever `load` raises."""
        with self._lock:
            kept = self._entries.get(digest)
            if kept is not None:
                self._entries.move_to_end(digest)
                self._hits += 1
                return kept
            flight = self._flights.get(digest)
            if flight is not None:
                self._hits += 1
                ours = None
            else:
                self._misses += 1
                ours = flight = self._flights[digest] = _Flight()
        if ours is None:
            return flight.result.result()
        try:
            weights = self._load(digest)
        except BaseException as error:
            with self._lock:
                del self._flights[digest]
            ours.result.set_exception(error)
            raise
        with self._lock:
            del self._flights[digest]
            # A discard during the load must win, or the entry would outlive its adapter.
            if not ours.discarded:
                self._keep(digest, weights)
        ours.result.set_result(weights)
        return weights

    def pin(self, digests: frozenset[str]) -> None:
        """Pin exactly these from now on, whether they are in the cache or not."""
        with self._lock:
            self._pinned = digests
            self._make_room(0, 0)

    def pinned(self) -> frozenset[str]:
        with self._lock:
            return self._pinned

    def shrink(self, enough: Callable[[], bool], pinned: bool) -> bool:
        """Drop what no slot holds until `enough()`: the least recently used first, and pinned ones
        only if `pinned`, and last. Returns whether it is enough."""
        with self._lock:
            order = [one for one in self._entries if one not in self._pinned]
            order += [one for one in self._entries if one in self._pinned] if pinned else []
            for digest in order:
                if enough():
                    return True
                if self._memory.frees(digest):
                    self._drop(digest)
                    self._evictions += 1
            return enough()

    def discard(self, digest: str) -> None:
        """Forget an adapter, even one that is being loaded."""
        with self._lock:
            if digest in self._entries:
                self._drop(digest)
            if digest in self._flights:
                self._flights[digest].discarded = True

    def digests(self) -> tuple[str, ...]:
        """Return the cached digests, least recently used first."""
        with self._lock:
            return tuple(self._entries)

    def __contains__(self, digest: str) -> bool:
        with self._lock:
            return digest in self._entries

    def stats(self) -> HostCacheStats:
        with self._lock:
            return HostCacheStats(
                entries=len(self._entries),
                bytes=self._bytes,
                capacity_bytes=self._max_bytes,
                hits=self._hits,
                misses=self._misses,
                evictions=self._evictions,
            )

    def _keep(self, digest: str, weights: AdapterWeights) -> None:
        if digest not in self._pinned:
            pinned = [self._entries[one].bytes for one in self._pinned & self._entries.keys()]
            # Nothing is evicted for an entry that would not fit even then.
            if not self._fits(sum(pinned) + weights.bytes, len(pinned) + 1):
                return
        self._make_room(weights.bytes, 1)
        for other in [one for one in self._entries if one not in self._pinned]:
            if self._memory.keep(digest, weights.bytes):
                break
            if self._memory.frees(other):
                self._drop(other)
                self._evictions += 1
        if not self._memory.keep(digest, weights.bytes):
            return
        self._entries[digest] = weights
        self._bytes += weights.bytes

    def _make_room(self, size: int, count: int) -> None:
        for digest in list(self._entries):
            if self._fits(self._bytes + size, len(self._entries) + count):
                return
            if digest not in self._pinned:
                self._drop(digest)
                self._evictions += 1

    def _fits(self, size: int, count: int) -> bool:
        return size <= self._max_bytes and (self._max_entries is None or count <= self._max_entries)

    def _drop(self, digest: str) -> None:
        self._bytes -= self._entries.pop(digest).bytes
        self._memory.drop(digest)
