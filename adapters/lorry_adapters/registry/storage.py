"""The opened home folder: the lock, the files, the ledger, and contents without an owner.

This module defines the order in which they are opened and changed; they do not know each other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from lorry_adapters.errors import HomeUnusable
from lorry_adapters.registry.blobs import Blobs, Users
from lorry_adapters.registry.catalog import StoredContent
from lorry_adapters.registry.home import Home
from lorry_adapters.registry.ledgers import AdapterLedger, News, open_ledger
from lorry_adapters.registry.record import AdapterRecord
from lorry_adapters.registry.unclaimed_contents import UnclaimedContent, UnclaimedContents


class Storage:
    """Thread-safe, except calls that must be in `writing`."""

    def __init__(
        self,
        home: Path,
        keep_unclaimed: timedelta,
        catalog: str | None = None,
        layout: str = "",
        make_blobs: Callable[[Path], Blobs] = Blobs,
    ) -> None:
        """Open or create `home`, which no other process may use until `close`. `catalog`, `layout`:
        see `open_ledger`. Raises HomeUnusable, CatalogUnavailable."""
        self.on_news: Callable[[News], None] = lambda news: None
        """Shows what other servers changed. Called under the lock."""
        self.on_lost: Callable[[str, int], None] = lambda name, version: None
        """Called with each version that an adapter loses at another server."""
        self.lock = threading.Lock()
        """Held during a change."""
        with ExitStack() as opened:
            self._home = Home(home)
            opened.callback(self._home.close)
            try:
                self.blobs = make_blobs(home)
                opened.callback(self.blobs.close)
                self.blobs.clean()
                self._unclaimed = UnclaimedContents(home, self.blobs, keep_unclaimed)
                to_stay = self.blobs.digests() - self._unclaimed.expendable()
                self.ledger: AdapterLedger = open_ledger(
                    home, to_stay.__contains__, catalog, layout
                )
                opened.callback(self.ledger.close)
                owned = {content.digest for content in self.ledger.contents()}
                self._unclaimed.collect(owned, datetime.now(UTC), sure=self.ledger.remembers)
                self._home.watch(*self.ledger.places, *self.blobs.places)
            except OSError as error:
                raise HomeUnusable(f"cannot use the home folder {home}: {error}") from error
            self._opened = opened.pop_all()

    def begin(self, users: Users) -> None:
        """Keep the object store in order from now on, if there is one. Raises HomeUnusable."""
        self.blobs.deleting = self.ledger.deleting
        self.blobs.begin(
            users,
            lambda: [content.digest for content in self.ledger.contents()],
            sure=self.ledger.remembers,
        )

    def watch(self, path: Path) -> None:
        """Watch a file of the server's in the home folder, which must not be replaced either.
        Raises HomeUnusable."""
        try:
            self._home.watch(path)
        except OSError as error:
            raise HomeUnusable(f"cannot use {path}: {error}") from error

    def trouble(self) -> str | None:
        """Return why nothing can be stored and what to do, or None."""
        return self._home.trouble()

    def warning(self) -> str | None:
        """Return what prevents changes although adapters are served, or may soon, or None."""
        return self.ledger.warning() or self.blobs.warning() or self._home.warning()

    def catalog_answers(self) -> bool | None:
        """Return whether a catalog that servers share can be used; None if it is in the home."""
        return self.ledger.warning() is None if self.ledger.is_shared else None

    def unusable(self, error: OSError) -> HomeUnusable:
        """Return the error for a system error while storing."""
        return self._home.unusable(error)

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """Like `Blobs.staging`, for a block that stores something. Raises HomeUnusable,
        StorageFull."""
        with self._home.guarded(), self.blobs.staging() as folder:
            yield folder

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Guard a block that stores files; one at a time. Raises HomeUnusable."""
        with self.lock, self._home.guarded():
            yield

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Guard a block that changes an adapter; one at a time, of all servers. What others
        changed before is shown when it begins. Raises HomeUnusable, CatalogUnavailable."""
        with self.writing(), self.ledger.changing() as news:
            self.on_news(news)
            yield

    def publish(self, folder: Path, digest: str) -> bool:
        """Like `Blobs.publish`. A new content is deleted at the next start unless it is saved; one
        that was there before is not."""
        if self.ledger.is_shared:
            # Another server may have deleted it from the store meanwhile, and cannot do so now.
            self.blobs.put(digest, folder)
        if not self.blobs.folder(digest).exists():
            self._unclaimed.expend(digest)
        return self.blobs.publish(folder, digest)

    def save(self, record: AdapterRecord, content: StoredContent | None = None) -> None:
        """Save a record in the ledger, and keep `content`, which belongs to a new version."""
        self.ledger.save(record, content)
        if content is not None:
            # After the record. Without a mark and a record, a crash would leave a content that
            # looks like a lost adapter.
            self._unclaimed.claim(content.digest)
            self.blobs.claim(content.digest)

    @contextmanager
    def removing(self, digests: Sequence[str]) -> Iterator[None]:
        """Guard the block that records the removal of the last adapters with `digests`. A crash may
        come before they are deleted, and the next start need not keep them."""
        for digest in digests:
            self._unclaimed.expend(digest)
            self.blobs.expend(digest)
        try:
            yield
        except BaseException:
            for digest in digests:
                self._unclaimed.gone(digest)
                self.blobs.claim(digest)
            raise

    def free(self, digest: str) -> None:
        """Free a content without owners and leases. Quick, never raises."""
        self.blobs.retire(digest)
        self._unclaimed.gone(digest)
        self.blobs.forget(digest)

    def unclaimed(self, known: Collection[str]) -> tuple[UnclaimedContent, ...]:
        """Return the contents in the home folder that are not among `known`."""
        return self._unclaimed.listing(self.blobs.digests().difference(known))

    def unclaimed_in_store(self, users: Users) -> tuple[UnclaimedContent, ...]:
        """Return the contents that are only in the store and that nothing here knows. Raises
        StoreUnavailable, HomeUnusable."""
        # In this order: what gets an adapter meanwhile is known then.
        found = self.blobs.in_store()
        with self.writing():
            known = users.digests() | self.blobs.digests()
        return tuple(
            UnclaimedContent(digest, found[digest], None, None)
            for digest in sorted(found.keys() - known)
        )

    def close(self) -> None:
        self._opened.close()
