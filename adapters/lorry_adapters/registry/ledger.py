"""Stores the registered adapters twice: in the catalog, and in a file for each adapter.

A change is made in this order, and a crash may come between any two steps:

1. the adapter's new file is written to disk beside its old one; 2. the catalog commits with the
next revision, and the change has happened; 3. the new file replaces the old one (for a removal, the
file is deleted).

At start the copy with the higher revision is used, as a whole. After a crash between 2 and 3 that
is the catalog. It is the files if the catalog was lost: deleted, emptied, damaged, restored from
an old backup, or without its write-ahead log, which SQLite silently drops if it is damaged.
The other copy is then rebuilt. Damaged files are moved aside, and nothing of them is deleted.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from lorry_adapters.errors import StorageFull
from lorry_adapters.registry.blobs import storage_full_named
from lorry_adapters.registry.catalog import Catalog, CatalogDamaged, StoredContent
from lorry_adapters.registry.document import Pending
from lorry_adapters.registry.ledgers import CATALOG, News
from lorry_adapters.registry.record import AdapterRecord, VersionRecord
from lorry_adapters.registry.sidecars import FOLDER, FoundSidecars, Sidecar, Sidecars

_log = logging.getLogger(__name__)


class Ledger:
    """One writer at a time; reading is thread-safe."""

    recovery: str | None
    """A line for people about lost data that was restored."""
    remembers: bool
    """False if earlier removals are unknown, as neither copy is complete."""

    def __init__(self, home: Path, has_blob: Callable[[str], bool]) -> None:
        """Open or create both copies under `home`, and make them consistent.

        `has_blob(digest)` returns whether its files exist. Raises HomeUnusable, and OSError if the
        disk fails.
        """
        self._home = home
        self.is_shared = self.began = False
        self.places: tuple[Path, ...] = (home / CATALOG, home / FOLDER)
        """Paths that must not be replaced."""
        self._sidecars = Sidecars(home)
        found = self._sidecars.read()
        self._catalog, aside = _opened(home / CATALOG)
        try:
            behind = self._catalog.revision() < found.revision
            begins = self._catalog.is_new or aside is not None
            self.remembers = not begins or (found.revision > 0 and not found.damaged)
            self.recovery = None
            if behind or aside is not None:
                self.recovery = self._rebuild(found, has_blob, aside)
            self._write_copies(found)
        except BaseException:
            self._catalog.close()
            raise

    def adapters(self) -> tuple[AdapterRecord, ...]:
        """Return all stored adapters, by name."""
        return self._catalog.adapters()

    def contents(self) -> tuple[StoredContent, ...]:
        return self._catalog.contents()

    def next_version(self, name: str) -> int:
        """Return the highest number ever used under `name` plus one; 1 for a new name."""
        return self._catalog.next_version(name)

    @contextmanager
    def changing(self) -> Iterator[News]:
        """Guard a change. Only this process makes any."""
        yield News()

    def save(self, record: AdapterRecord, content: StoredContent | None = None) -> None:
        """Make the stored adapter equal `record`; `content` belongs to a new version. Raises
        StorageFull, HomeUnusable."""
        pending = self._prepare(record, content)
        try:
            self._catalog.save(record, content)
        except BaseException:
            pending.drop()
            raise
        self._put(pending)

    def save_content(self, facts: VersionRecord, content: StoredContent) -> None:
        """Replace the facts about one content after it was verified again. The files are not
        changed:
        a content that was restored from them is verified anyway."""
        self._catalog.save_content(facts, content)

    def forget(self, name: str) -> None:
        """Remove an adapter with all its versions. Raises StorageFull, HomeUnusable."""
        self._catalog.forget(name)
        try:
            self._sidecars.remove(name, self._catalog.revision())
        except OSError:
            self._behind(name)

    def used_elsewhere(self, digests: Collection[str]) -> frozenset[str]:
        """Return nothing: only this process uses the home."""
        return frozenset()

    @contextmanager
    def deleting(self, digest: str) -> Iterator[bool]:
        """Guard a deletion from the store, which is this server's alone."""
        yield True

    def warning(self) -> str | None:
        """Return None: whatever keeps it from changing is the home folder's trouble."""
        return None

    def close(self) -> None:
        self._catalog.close()

    def _rebuild(
        self, found: FoundSidecars, has_blob: Callable[[str], bool], aside: Path | None
    ) -> str:
        kept = list(found.sidecars.values())
        owned = {version.digest for one in kept for version in one.record.versions}
        for one in self.stored():
            # Its file is missing. A removal also deletes the content, so an adapter whose content
            # still exists was not removed: its file was lost.
            digests = {version.digest for version in one.record.versions} - owned
            if one.record.name not in found.sidecars and any(map(has_blob, digests)):
                kept.append(one)
        why = "was empty or missing" if self._catalog.is_new else "was not up to date"
        if aside is not None:
            why = f"was damaged (it is kept as {aside.name})"
        self._catalog.rebuild(
            [(one.record, one.last_version, one.sizes) for one in kept], found.revision + 1
        )
        return f"the adapter catalog {why}: {len(kept)} adapters were restored from {FOLDER}/"

    def _write_copies(self, found: FoundSidecars) -> None:
        """Make the files equal to the catalog."""
        stored = self.stored()
        if stored and not self._catalog.revision():
            # The catalog is from before changes were counted; the files' numbers begin with 1.
            self._catalog.count()
        revision = self._catalog.revision()
        try:
            for one in stored:
                if found.sidecars.get(one.record.name) != one:
                    with storage_full_named(self._home):
                        self._sidecars.prepare(one, revision).put()
            for name in found.sidecars.keys() - {one.record.name for one in stored}:
                self._sidecars.remove(name, revision)
        except StorageFull:
            _log.warning("the disk is full: the next start writes %s/ again", FOLDER)

    def stored(self) -> tuple[Sidecar, ...]:
        sizes = {content.digest: content.stored_bytes for content in self._catalog.contents()}
        return tuple(
            Sidecar(
                record,
                self._catalog.next_version(record.name) - 1,
                {version.digest: sizes[version.digest] for version in record.versions},
            )
            for record in self._catalog.adapters()
        )

    def _prepare(self, record: AdapterRecord, content: StoredContent | None) -> Pending:
        sizes = self._catalog.sizes([version.digest for version in record.versions])
        if content is not None:
            sizes[content.digest] = content.stored_bytes
        numbers = [version.version for version in record.versions]
        last = max(self._catalog.next_version(record.name) - 1, *numbers)
        sidecar = Sidecar(record, last, sizes)
        revision = self._catalog.revision() + 1
        try:
            with storage_full_named(self._home):
                return self._sidecars.prepare(sidecar, revision)
        except StorageFull:
            if content is not None or not self._catalog.spend_reserve():
                raise
            with storage_full_named(self._home):
                return self._sidecars.prepare(sidecar, revision)

    def _put(self, pending: Pending) -> None:
        try:
            pending.put()
        except OSError:
            self._behind(pending.path.name)

    def _behind(self, what: str) -> None:
        # The change has happened. The catalog has the higher revision, so the next start, or the
        # next change of the same adapter, updates the file.
        _log.warning("the second copy of %s could not be written", what, exc_info=True)


def _opened(path: Path) -> tuple[Catalog, Path | None]:
    """Open the catalog. Return it with the path of a damaged one that was moved aside, if any."""
    if not _size(path) and _size(path.with_name(path.name + "-wal")):
        # SQLite would delete a log without its file.
        return _replaced(path)
    try:
        catalog = Catalog(path)
    except CatalogDamaged:
        return _replaced(path)
    try:
        catalog.verify()
    except CatalogDamaged:
        with suppress(sqlite3.Error):
            catalog.close()
        return _replaced(path)
    except BaseException:
        catalog.close()
        raise
    return catalog, None


def _replaced(path: Path) -> tuple[Catalog, Path]:
    aside = _set_aside(path)
    return Catalog(path), aside


def _set_aside(path: Path) -> Path:
    """Rename the file and SQLite's files beside it, so that SQLite can still open them."""
    aside = path.with_name(f"{path.name}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")
    for end in ("", "-wal", "-shm", "-journal"):
        with suppress(FileNotFoundError):
            os.rename(path.with_name(path.name + end), aside.with_name(aside.name + end))
    return aside


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
