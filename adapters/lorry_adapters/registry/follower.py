"""Shows the changes that other servers make in a shared catalog.

Records are shown at once; running requests keep their leases. Afterwards the contents that are new
here are looked at. One that is missing or does not fit the base is marked as broken, and until then
reading it fails, so it is never served as something else. What is in a store is fetched when it
is needed.

The thread also says in the catalog which contents running requests use here: they stay in a store
that the servers share, and no server retires their versions.
"""

from __future__ import annotations

import logging
import math
import queue
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Protocol

from lorry_adapters.errors import AdapterBroken, UnknownAdapter
from lorry_adapters.lora.base import BaseLayout
from lorry_adapters.registry.host_cache import AdapterCache
from lorry_adapters.registry.inventory import Inventory
from lorry_adapters.registry.ledgers import News
from lorry_adapters.registry.record import VersionRecord
from lorry_adapters.registry.startup_check import fingerprint, is_here, why_not
from lorry_adapters.registry.storage import Storage

if TYPE_CHECKING:
    from lorry_adapters.registry.shared.shared_ledger import SharedLedger

RENEWAL: Final = 10.0
"""Seconds after which the leases on contents are renewed. They last longer. What is newly used is
leased at the next look."""

_log = logging.getLogger(__name__)


class Followed(Protocol):
    """What `follow` returns."""

    def close(self) -> None: ...


class _Nobody:
    """Follows a catalog that only this server changes."""

    def close(self) -> None: ...


def follow(
    storage: Storage,
    inventory: Inventory,
    cache: AdapterCache,
    layout: BaseLayout,
    max_rank: int,
) -> Followed:
    """Show other servers' changes from now on, if there are others."""
    if not storage.ledger.is_shared:
        return _Nobody()
    from lorry_adapters.registry.shared.shared_ledger import SharedLedger

    assert isinstance(storage.ledger, SharedLedger)
    return _Follower(storage, storage.ledger, inventory, cache, layout, max_rank)


class _Follower:
    def __init__(
        self,
        storage: Storage,
        ledger: SharedLedger,
        inventory: Inventory,
        cache: AdapterCache,
        layout: BaseLayout,
        max_rank: int,
    ) -> None:
        self._storage = storage
        self._ledger = ledger
        self._inventory = inventory
        self._cache = cache
        self._layout = layout
        self._fingerprint = fingerprint(layout)
        self._max_rank = max_rank
        self._arrived: queue.SimpleQueue[VersionRecord] = queue.SimpleQueue()
        self._over = False
        self._renewed = -math.inf
        storage.on_news = self._show
        self._watch = ledger.watch(self._look)

    def close(self) -> None:
        self._over = True
        self._watch.close()

    def _look(self) -> None:
        if self._ledger.behind():
            with self._storage.lock:
                self._show(self._ledger.news())
        self._check_arrived()
        used = self._inventory.in_use()
        if used - self._ledger.leased or time.monotonic() - self._renewed > RENEWAL:
            self._ledger.lease(used)
            self._renewed = time.monotonic()

    def _show(self, news: News) -> None:
        """Called under the storage's lock."""
        for record in news.changed:
            old = self._inventory.find(record.name)
            before = old.versions if old is not None else ()
            known = {version.digest for version in before}
            numbers = {version.version for version in record.versions}
            self._inventory.show(record)
            for version in record.versions:
                if version.digest not in known:
                    self._arrived.put(version)
            self._lose(record.name, [v for v in before if v.version not in numbers])
        for name in news.removed:
            old = self._inventory.find(name)
            self._inventory.forget(name)
            self._lose(name, old.versions if old is not None else ())
        if news:
            self._cache.pin(self._inventory.pinned())

    def _lose(self, name: str, versions: Sequence[VersionRecord]) -> None:
        for version in versions:
            self._storage.on_lost(name, version.version)

    def _check_arrived(self) -> None:
        with suppress(queue.Empty):
            while not self._over:
                facts = self._arrived.get_nowait()
                with suppress(UnknownAdapter, AdapterBroken):
                    self._check(facts)

    def _check(self, facts: VersionRecord) -> None:
        """Mark a content as broken if it is. Raises UnknownAdapter if it is gone again,
        AdapterBroken if it is marked already."""
        digest = facts.digest
        with self._inventory.holding(digest):
            generation = self._inventory.generation(digest)
            content = self._ledger.content(digest)
            if content is None:
                return
            why = why_not(
                content,
                facts,
                self._storage.blobs,
                self._layout,
                self._fingerprint,
                self._max_rank,
            )
            if why is None:
                if content.layout != self._fingerprint and is_here(content, self._storage.blobs):
                    fitting = replace(content, layout=self._fingerprint)
                    self._ledger.save_content(facts, fitting)
                return
            # An upload of the same files may have come in meanwhile.
            if self._inventory.mark_files_broken(digest, why, generation) is not None:
                _log.warning("the adapter %s cannot be served here: %s", digest, why)
