"""Names, versions and their state, durable in one SQLite file. No torch.

An adapter has versions, a version has content, and what verification found out
about a content (rank, parameters, the base it was checked against) is stored once
per digest. Version numbers are never given twice while the name exists, so
`legal@2` cannot come to mean something else.

Every call is one transaction that is on disk when the call returns (write-ahead
log, `synchronous=FULL`). The file carries its schema's number: a file written by a
newer server is refused, an older one is migrated.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from lorry_adapters.errors import HomeUnusable, StorageFull
from lorry_adapters.registry.record import AdapterRecord, VersionRecord

# Entry n takes a file from schema n to schema n + 1; only ever appended to.
_MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE adapters (
            name TEXT PRIMARY KEY,
            current INTEGER NOT NULL,
            last_version INTEGER NOT NULL,
            enabled INTEGER NOT NULL,
            scale REAL NOT NULL,
            pinned INTEGER NOT NULL,
            description TEXT NOT NULL,
            created_at TEXT NOT NULL,
            updated_at TEXT NOT NULL)""",
        """CREATE TABLE contents (
            digest TEXT PRIMARY KEY,
            peft_type TEXT NOT NULL,
            rank INTEGER NOT NULL,
            target_modules TEXT NOT NULL,
            parameters INTEGER NOT NULL,
            bytes INTEGER NOT NULL,
            base_model TEXT,
            stored_bytes INTEGER NOT NULL,
            layout TEXT NOT NULL)""",
        """CREATE TABLE versions (
            name TEXT NOT NULL REFERENCES adapters (name) ON DELETE CASCADE,
            version INTEGER NOT NULL,
            digest TEXT NOT NULL REFERENCES contents (digest),
            created_at TEXT NOT NULL,
            PRIMARY KEY (name, version))""",
        "CREATE INDEX versions_by_digest ON versions (digest)",
    ),
)

SCHEMA_VERSION = len(_MIGRATIONS)


@dataclass(frozen=True, slots=True)
class StoredContent:
    """What start-up needs to know of a content without reading it."""

    digest: str
    stored_bytes: int
    """Size of its files together."""
    layout: str
    """Fingerprint of the base layout against which it was last verified."""


class Catalog:
    """Thread-safe; every error of the storage is HomeUnusable or StorageFull."""

    def __init__(self, path: Path) -> None:
        """Open or create `path`, and migrate it. HomeUnusable: newer, or not a catalogue."""
        self._path = path
        self._lock = threading.Lock()
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            raise HomeUnusable(f"cannot open the adapter catalogue {path}: {error}") from error
        try:
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA foreign_keys = ON")
            self._migrate()
        except sqlite3.Error as error:
            self._db.close()
            raise HomeUnusable(
                f"{path} cannot be used as an adapter catalogue ({error}); "
                "restore it from a backup, or move it away to start empty"
            ) from error
        except BaseException:
            self._db.close()
            raise

    def adapters(self) -> tuple[AdapterRecord, ...]:
        """Everything stored, by name."""
        with self._lock:
            versions: dict[str, list[VersionRecord]] = {}
            for row in self._db.execute(
                "SELECT name, version, digest, peft_type, rank, target_modules, parameters, bytes,"
                " base_model, created_at FROM versions JOIN contents USING (digest)"
                " ORDER BY name, version"
            ):
                versions.setdefault(row[0], []).append(_version(row[1:]))
            return tuple(
                _adapter(row, tuple(versions[row[0]]))
                for row in self._db.execute(
                    "SELECT name, current, enabled, scale, pinned, description, created_at,"
                    " updated_at FROM adapters ORDER BY name"
                )
            )

    def contents(self) -> tuple[StoredContent, ...]:
        with self._lock:
            rows = self._db.execute("SELECT digest, stored_bytes, layout FROM contents")
            return tuple(StoredContent(*row) for row in rows)

    def next_version(self, name: str) -> int:
        """One more than the highest number ever given under `name`; 1 for a new name."""
        with self._lock:
            row = self._db.execute(
                "SELECT last_version FROM adapters WHERE name = ?", (name,)
            ).fetchone()
            return 1 if row is None else int(row[0]) + 1

    def save(self, record: AdapterRecord, content: StoredContent | None = None) -> None:
        """Make the stored adapter equal `record`; `content` is that of a new version."""
        with self._lock, self._transaction():
            if content is not None:
                facts = next(v for v in record.versions if v.digest == content.digest)
                self._save_content(facts, content)
            self._db.execute(
                "INSERT INTO adapters (name, current, last_version, enabled, scale, pinned,"
                " description, created_at, updated_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
                " ON CONFLICT (name) DO UPDATE SET current = excluded.current,"
                " last_version = max(last_version, excluded.last_version),"
                " enabled = excluded.enabled, scale = excluded.scale, pinned = excluded.pinned,"
                " description = excluded.description, updated_at = excluded.updated_at",
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
                [
                    (record.name, v.version, v.digest, v.created_at.isoformat())
                    for v in record.versions
                ],
            )
            self._drop_unused_contents()

    def save_content(self, facts: VersionRecord, content: StoredContent) -> None:
        """Replace what is known of one content, after it was verified again."""
        with self._lock, self._transaction():
            self._save_content(facts, content)

    def forget(self, name: str) -> None:
        """Remove an adapter with all its versions."""
        with self._lock, self._transaction():
            self._db.execute("DELETE FROM adapters WHERE name = ?", (name,))
            self._drop_unused_contents()

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def _save_content(self, facts: VersionRecord, content: StoredContent) -> None:
        self._db.execute(
            "INSERT INTO contents (digest, peft_type, rank, target_modules, parameters, bytes,"
            " base_model, stored_bytes, layout) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (digest) DO UPDATE SET peft_type = excluded.peft_type,"
            " rank = excluded.rank, target_modules = excluded.target_modules,"
            " parameters = excluded.parameters, bytes = excluded.bytes,"
            " base_model = excluded.base_model, stored_bytes = excluded.stored_bytes,"
            " layout = excluded.layout",
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
            ),
        )

    def _drop_unused_contents(self) -> None:
        self._db.execute("DELETE FROM contents WHERE digest NOT IN (SELECT digest FROM versions)")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back()
            if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_FULL:
                raise StorageFull(
                    f"no room on the disk of {self._path}; free some and try again"
                ) from error
            raise HomeUnusable(f"cannot write the catalogue {self._path}: {error}") from error
        except BaseException:
            self._roll_back()
            raise

    def _roll_back(self) -> None:
        # A failed COMMIT may or may not have ended the transaction.
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def _migrate(self) -> None:
        found = int(self._db.execute("PRAGMA user_version").fetchone()[0])
        if found > SCHEMA_VERSION:
            raise HomeUnusable(
                f"{self._path} was written by a newer Lorry (schema {found}; this one reads up to "
                f"{SCHEMA_VERSION}); upgrade, or choose another --home"
            )
        if found == SCHEMA_VERSION:
            return
        with self._transaction():
            for statements in _MIGRATIONS[found:]:
                for statement in statements:
                    self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


_VersionRow = tuple[int, str, str, int, str, int, int, str | None, str]


def _version(row: _VersionRow) -> VersionRecord:
    version, digest, peft_type, rank, modules, parameters, size, base_model, created_at = row
    return VersionRecord(
        version=version,
        digest=digest,
        peft_type=peft_type,
        rank=rank,
        target_modules=tuple(json.loads(modules)),
        parameters=parameters,
        bytes=size,
        base_model=base_model,
        created_at=datetime.fromisoformat(created_at),
    )


_AdapterRow = tuple[str, int, int, float, int, str, str, str]


def _adapter(row: _AdapterRow, versions: tuple[VersionRecord, ...]) -> AdapterRecord:
    name, current, enabled, scale, pinned, description, created_at, updated_at = row
    return AdapterRecord(
        name=name,
        enabled=bool(enabled),
        scale=scale,
        pinned=bool(pinned),
        description=description,
        current=next(version for version in versions if version.version == current),
        versions=versions,
        created_at=datetime.fromisoformat(created_at),
        updated_at=datetime.fromisoformat(updated_at),
    )
