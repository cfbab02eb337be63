"""Adapters that requests merged: contents without a name, of which the most recently used are kept.

A merge is identified by digests, weights and recipe. So a repeated request finds the content of the
first, whatever has happened to names and versions meanwhile. The catalog does not contain
them, and a restart begins without them.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final

from lorry_adapters.registry.inventory import Inventory

LIMIT: Final = 32
"""Number of contents kept. Each takes as much disk space as an adapter of its rank."""

Make = Callable[[], AbstractContextManager[str]]
"""Publishes a content, and yields its digest and holds it during the block."""


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
        """Return the content for `key`, made by `make` if it is not kept."""
        found = self._find(key)
        if found is not None:
            return found
        # One at a time: a merge uses every core, and an equal one waits for the first.
        with self._making:
            found = self._find(key)
            if found is not None:
                return found
            with make() as digest, self._lock:
                self._made += 1
                # Owned while it is still held; otherwise it would be freed in between.
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
                # Its files were damaged. Only making it again can repair them.
                del self._kept[key]
                self._inventory.drop(digest, number)
                return None
            self._kept.move_to_end(key)
            return digest

    def _make_room(self) -> None:
        while len(self._kept) > self._limit:
            _, (digest, number) = self._kept.popitem(last=False)
            self._inventory.drop(digest, number)
