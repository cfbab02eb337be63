"""Names, versions and their state, durable in one SQLite file. No torch.

Each adapter's data is stored a second time in a file of its own (`sidecars`); the ledger keeps the
two consistent.

An adapter has versions, and a version has content. The facts that verification found about a
content (rank, parameters, the base it was checked against) are stored once per digest. A version
number is never reused while the name exists, so `legal@2` cannot change its meaning.

Every call is one transaction that is on disk when the call returns (write-ahead log,
`synchronous=FULL`). `revision` counts the changes of adapters. The file contains its schema's
number: a file from a newer server is refused, and an older one is migrated.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lorry_adapters.errors import HomeUnusable, Problem, Remedy, StorageFull
from lorry_adapters.registry.record import AdapterRecord, VersionRecord
from lorry_adapters.registry.reserve import Reserve
from lorry_adapters.registry.rows import (
    ADAPTER_COLUMNS,
    VERSION_COLUMNS,
    adapter_of,
    version_of,
)
from lorry_adapters.registry.schema import MIGRATIONS, SCHEMA_VERSION
from lorry_adapters.registry.version_rules import rules_value


@dataclass(frozen=True, slots=True)
class StoredContent:
    """The facts about a content that start-up needs without reading its files."""

    digest: str
    stored_bytes: int
    """Total size of its files."""
    layout: str
    """Fingerprint of the base layout against which it was last verified."""


class CatalogDamaged(HomeUnusable):
    """The file exists but is not a catalog, or not a complete one."""


class Catalog:
    """Thread-safe. Every storage error is HomeUnusable or StorageFull."""

    def __init__(self, path: Path) -> None:
        """Open or create `path`, and migrate it. Raises HomeUnusable if it is newer,
        CatalogDamaged."""
        self._path = path
        self.is_new = False
        """True if there was no file or an empty one."""
        self._lock = threading.Lock()
        self._reserve = Reserve(path.with_name("reserve"))
        try:
            self._db = self._open()
        except sqlite3.Error as error:
            # Opening writes a little too, so a full disk would prevent the start.
            if _kind(error) in _DAMAGE or not self._reserve.spend():
                raise self._unusable(error) from error
            try:
                self._db = self._open()
            except sqlite3.Error as again:
                raise self._unusable(again) from again
        self._reserve.fill()

    def adapters(self) -> tuple[AdapterRecord, ...]:
        """Return all stored adapters, by name."""
        with self._lock, self._reading():
            versions: dict[str, list[VersionRecord]] = {}
            for row in self._db.execute(
                f"SELECT name, {VERSION_COLUMNS} FROM versions JOIN contents USING (digest)"
                " ORDER BY name, version"
            ):
                versions.setdefault(row[0], []).append(version_of(row[1:]))
            return tuple(
                adapter_of(row, tuple(versions[row[0]]))
                for row in self._db.execute(f"SELECT {ADAPTER_COLUMNS} FROM adapters ORDER BY name")
            )

    def contents(self) -> tuple[StoredContent, ...]:
        with self._lock, self._reading():
            rows = self._db.execute("SELECT digest, stored_bytes, layout FROM contents")
            return tuple(StoredContent(*row) for row in rows)

    def next_version(self, name: str) -> int:
        """Return the highest number ever used under `name` plus one; 1 for a new name."""
        with self._lock, self._reading():
            row = self._db.execute(
                "SELECT last_version FROM adapters WHERE name = ?", (name,)
            ).fetchone()
            return 1 if row is None else int(row[0]) + 1

    def revision(self) -> int:
        """Return the number of changes of adapters; 0 for a new file or one that did not count
        yet."""
        with self._lock, self._reading():
            return int(self._db.execute("SELECT revision FROM home").fetchone()[0])

    def count(self) -> None:
        """Increase the revision by one."""
        with self._lock:
            self._write(self._count, spending=True)

    def sizes(self, digests: Collection[str]) -> dict[str, int]:
        """Return the sizes in bytes of the known contents among `digests`."""
        with self._lock, self._reading():
            found = {}
            for digest in digests:
                row = self._db.execute(
                    "SELECT stored_bytes FROM contents WHERE digest = ?", (digest,)
                ).fetchone()
                if row is not None:
                    found[digest] = int(row[0])
            return found

    def spend_reserve(self) -> bool:
        """Free a little space on a full disk for an important change. Return False if none is
        left."""
        return self._reserve.spend()

    def verify(self) -> None:
        """Read everything. Raises CatalogDamaged if something is missing or damaged."""
        with self._lock, self._reading():
            found = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
            if found == "ok" and self._db.execute("PRAGMA foreign_key_check").fetchone():
                found = "its tables contradict each other"
        try:
            if found == "ok":
                self.revision()
                self.contents()
                self.adapters()
        except (ValueError, KeyError, TypeError) as error:
            # A page can be intact although its contents are not.
            found = str(error) or type(error).__name__
        if found != "ok":
            raise CatalogDamaged(self._damage(str(found)))

    def save(self, record: AdapterRecord, content: StoredContent | None = None) -> None:
        """Make the stored adapter equal `record`; `content` belongs to a new version."""
        with self._lock:
            self._write(lambda: self._save(record, content), spending=content is None)

    def rebuild(
        self, adapters: Iterable[tuple[AdapterRecord, int, Mapping[str, int]]], revision: int
    ) -> None:
        """Replace all data by records, the highest numbers ever used under their names, and sizes
        of contents by digest. No content counts as verified against a base."""

        def everything() -> None:
            self._db.execute("DELETE FROM adapters")
            self._db.execute("DELETE FROM contents")
            for record, last_version, sizes in adapters:
                for version in record.versions:
                    content = StoredContent(version.digest, sizes[version.digest], "")
                    self._save_content(version, content)
                self._save(record, None)
                self._db.execute(
                    "UPDATE adapters SET last_version = ? WHERE name = ?",
                    (last_version, record.name),
                )
            self._db.execute("UPDATE home SET revision = ?", (revision,))

        with self._lock:
            self._write(everything, spending=True)

    def save_content(self, facts: VersionRecord, content: StoredContent) -> None:
        """Replace the facts about one content after it was verified again."""
        with self._lock:
            self._write(lambda: self._save_content(facts, content), spending=False)

    def forget(self, name: str) -> None:
        """Remove an adapter with all its versions."""
        with self._lock:
            self._write(lambda: self._forget(name), spending=True)

    def close(self) -> None:
        with self._lock:
            self._db.close()
            self._reserve.fill()

    def _save(self, record: AdapterRecord, content: StoredContent | None) -> None:
        if content is not None:
            facts = next(v for v in record.versions if v.digest == content.digest)
            self._save_content(facts, content)
        self._db.execute(
            "INSERT INTO adapters (name, current, last_version, enabled, scale, pinned,"
            " description, created_at, updated_at, rules) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (name) DO UPDATE SET current = excluded.current,"
            " last_version = max(last_version, excluded.last_version),"
            " enabled = excluded.enabled, scale = excluded.scale, pinned = excluded.pinned,"
            " description = excluded.description, updated_at = excluded.updated_at,"
            " rules = excluded.rules",
            (
                record.name,
                record.current.version,
                max(version.version for version in record.versions),
                record.enabled,
                record.scale,
                record.pinned,
                record.description,
                record.created_at.isoformat(),
                record.updated_at.isoformat(),
                json.dumps(rules_value(record.rules)),
            ),
        )
        stored = self._db.execute("SELECT version FROM versions WHERE name = ?", (record.name,))
        gone = {row[0] for row in stored} - {version.version for version in record.versions}
        self._db.executemany(
            "DELETE FROM versions WHERE name = ? AND version = ?",
            [(record.name, version) for version in gone],
        )
        self._db.executemany(
            "INSERT INTO versions (name, version, digest, created_at)"
            " VALUES (?, ?, ?, ?) ON CONFLICT (name, version) DO NOTHING",
            [(record.name, v.version, v.digest, v.created_at.isoformat()) for v in record.versions],
        )
        self._drop_unused_contents()
        self._count()

    def _forget(self, name: str) -> None:
        self._db.execute("DELETE FROM adapters WHERE name = ?", (name,))
        self._drop_unused_contents()
        self._count()

    def _count(self) -> None:
        self._db.execute("UPDATE home SET revision = revision + 1")

    def _save_content(self, facts: VersionRecord, content: StoredContent) -> None:
        self._db.execute(
            "INSERT INTO contents (digest, peft_type, rank, target_modules, parameters, bytes,"
            " base_model, stored_bytes, layout, task_type, virtual_tokens, invocation, scalable,"
            " warnings, words) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (digest) DO UPDATE SET peft_type = excluded.peft_type,"
            " rank = excluded.rank, target_modules = excluded.target_modules,"
            " parameters = excluded.parameters, bytes = excluded.bytes,"
            " base_model = excluded.base_model, stored_bytes = excluded.stored_bytes,"
            " layout = excluded.layout, task_type = excluded.task_type,"
            " virtual_tokens = excluded.virtual_tokens, invocation = excluded.invocation,"
            " scalable = excluded.scalable, warnings = excluded.warnings,"
            " words = excluded.words",
            (
                content.digest,
                facts.peft_type,
                facts.rank,
                json.dumps(facts.target_modules),
                facts.parameters,
                facts.bytes,
                facts.base_model,
                content.stored_bytes,
                content.layout,
                facts.task_type,
                facts.virtual_tokens,
                json.dumps(facts.invocation),
                facts.scalable,
                json.dumps(facts.warnings),
                json.dumps(facts.words),
            ),
        )

    def _drop_unused_contents(self) -> None:
        self._db.execute("DELETE FROM contents WHERE digest NOT IN (SELECT digest FROM versions)")

    def _write(self, statements: Callable[[], None], *, spending: bool) -> None:
        """Run one transaction. `spending`: it may use the reserve if the disk is full."""
        self._reserve.fill()
        try:
            with self._transaction():
                statements()
        except StorageFull:
            if not (spending and self._reserve.spend()):
                raise
            with self._transaction():
                statements()

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back()
            if _kind(error) == sqlite3.SQLITE_FULL:
                raise StorageFull(
                    f"no room on the disk of {self._path}; free some and try again"
                ) from error
            raise self._unusable(error) from error
        except BaseException:
            self._roll_back()
            raise

    def _roll_back(self) -> None:
        # A failed COMMIT may or may not have ended the transaction.
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA foreign_keys = ON")
            found = int(db.execute("PRAGMA user_version").fetchone()[0])
            if found > SCHEMA_VERSION:
                raise HomeUnusable(
                    Problem(
                        f"{self._path} was written by a newer Lorry (schema {found}; this one "
                        f"reads up to {SCHEMA_VERSION}); upgrade, or choose another home folder",
                        Remedy.OTHER_HOME,
                        path=str(self._path.parent),
                    )
                )
            self.is_new = found == 0
            if found < SCHEMA_VERSION:
                db.execute("BEGIN IMMEDIATE")
                for statements in MIGRATIONS[found:]:
                    for statement in statements:
                        db.execute(statement)
                db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
                db.execute("COMMIT")
        except BaseException:
            # Closing rolls back uncommitted changes.
            db.close()
            raise
        return db

    def _unusable(self, error: sqlite3.Error) -> HomeUnusable:
        if _kind(error) in _DAMAGE:
            return CatalogDamaged(self._damage(str(error)))
        return HomeUnusable(
            f"the adapter catalog {self._path} cannot be used ({error}); make sure that its disk "
            "is writable and not full"
        )

    def _damage(self, what: str) -> str:
        return (
            f"the adapter catalog {self._path} cannot be used ({what}); restart the server, which "
            "rebuilds it from the records beside it, or restore it from a backup"
        )


_DAMAGE = frozenset({sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_ERROR})
"""SQLITE_ERROR: a table or a column is missing, or exists already."""


def _kind(error: sqlite3.Error) -> int:
    """Return SQLite's primary result code; 0 for errors of Python's own."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF
