"""Adapters that requests merged: contents without a name, the last used ones kept.

What a merge is of is told by digests, weights and recipe, so a repeated request finds the
content of the first, whatever has happened to names and versions meanwhile. The catalog
knows none of them: a restart begins without.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final

from lorry_adapters.registry.inventory import Inventory

LIMIT: Final = 32
"""Contents kept. Each takes the disk that an adapter of its rank takes."""

Make = Callable[[], AbstractContextManager[str]]
"""Publishes a content; its digest, and a hold on it for the block."""


class Merges:
    """Thread-safe."""

    def __init__(self, inventory: Inventory, limit: int = LIMIT) -> None:
        self._inventory = inventory
        self._limit = limit
        self._lock = threading.Lock()
        self._making = threading.Lock()
        # By key, least recently used first: the digest, and the number that owns it.
        self._kept: OrderedDict[str, tuple[str, int]] = OrderedDict()
        self._made = 0

    def digest(self, key: str, make: Make) -> str:
        """What `key` stands for, made where it is not kept; whatever `make` raises."""
        found = self._find(key)
        if found is not None:
            return found
        # One at a time: a merge takes every core as it is, and the same one waits for the first.
        with self._making:
            found = self._find(key)
            if found is not None:
                return found
            with make() as digest, self._lock:
                self._made += 1
                # Owned while it is still held, or it would be free, and gone, in between.
                self._inventory.keep(digest, self._made)
                self._kept[key] = (digest, self._made)
                self._make_room()
            return digest

    def _find(self, key: str) -> str | None:
        with self._lock:
            if key not in self._kept:
                return None
            digest, number = self._kept[key]
            if self._inventory.why_broken(digest) is not None:
                # Its files were damaged: nobody but us can mend them, by making them again.
                del self._kept[key]
                self._inventory.drop(digest, number)
                return None
            self._kept.move_to_end(key)
            return digest

    def _make_room(self) -> None:
        while len(self._kept) > self._limit:
            _, (digest, number) = self._kept.popitem(last=False)
            self._inventory.drop(digest, number)
