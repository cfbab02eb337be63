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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from lorry_adapters.errors import HomeUnusable, StorageFull
from lorry_adapters.registry.record import AdapterRecord, VersionRecord
from lorry_adapters.registry.reserve import Reserve

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
    # Only causal language models' LoRAs were let in until then: the defaults are true of them.
    (
        "ALTER TABLE contents ADD COLUMN task_type TEXT NOT NULL DEFAULT 'CAUSAL_LM'",
        "ALTER TABLE contents ADD COLUMN virtual_tokens INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE contents ADD COLUMN invocation TEXT NOT NULL DEFAULT '[]'",
        "ALTER TABLE contents ADD COLUMN scalable INTEGER NOT NULL DEFAULT 1",
    ),
    ("ALTER TABLE contents ADD COLUMN warnings TEXT NOT NULL DEFAULT '[]'",),
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
        self._reserve = Reserve(path.with_name("reserve"))
        try:
            self._db = self._open()
        except sqlite3.Error as error:
            # Opening writes a little too, so a full disk would stop the start.
            damaged = _kind(error) in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)
            if damaged or not self._reserve.spend():
                raise self._unusable(error) from error
            try:
                self._db = self._open()
            except sqlite3.Error as again:
                raise self._unusable(again) from again
        self._reserve.fill()

    def adapters(self) -> tuple[AdapterRecord, ...]:
        """Everything stored, by name."""
        with self._lock, self._reading():
            versions: dict[str, list[VersionRecord]] = {}
            for row in self._db.execute(
                "SELECT name, version, digest, peft_type, rank, target_modules, parameters, bytes,"
                " base_model, created_at, task_type, virtual_tokens, invocation, scalable, warnings"
                " FROM versions JOIN contents USING (digest) ORDER BY name, version"
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
        with self._lock, self._reading():
            rows = self._db.execute("SELECT digest, stored_bytes, layout FROM contents")
            return tuple(StoredContent(*row) for row in rows)

    def next_version(self, name: str) -> int:
        """One more than the highest number ever given under `name`; 1 for a new name."""
        with self._lock, self._reading():
            row = self._db.execute(
                "SELECT last_version FROM adapters WHERE name = ?", (name,)
            ).fetchone()
            return 1 if row is None else int(row[0]) + 1

    def save(self, record: AdapterRecord, content: StoredContent | None = None) -> None:
        """Make the stored adapter equal `record`; `content` is that of a new version."""
        with self._lock:
            self._write(lambda: self._save(record, content), spending=content is None)

    def save_content(self, facts: VersionRecord, content: StoredContent) -> None:
        """Replace what is known of one content, after it was verified again."""
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
            [(record.name, v.version, v.digest, v.created_at.isoformat()) for v in record.versions],
        )
        self._drop_unused_contents()

    def _forget(self, name: str) -> None:
        self._db.execute("DELETE FROM adapters WHERE name = ?", (name,))
        self._drop_unused_contents()

    def _save_content(self, facts: VersionRecord, content: StoredContent) -> None:
        self._db.execute(
            "INSERT INTO contents (digest, peft_type, rank, target_modules, parameters, bytes,"
            " base_model, stored_bytes, layout, task_type, virtual_tokens, invocation, scalable,"
            " warnings) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (digest) DO UPDATE SET peft_type = excluded.peft_type,"
            " rank = excluded.rank, target_modules = excluded.target_modules,"
            " parameters = excluded.parameters, bytes = excluded.bytes,"
            " base_model = excluded.base_model, stored_bytes = excluded.stored_bytes,"
            " layout = excluded.layout, task_type = excluded.task_type,"
            " virtual_tokens = excluded.virtual_tokens, invocation = excluded.invocation,"
            " scalable = excluded.scalable, warnings = excluded.warnings",
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
            ),
        )

    def _drop_unused_contents(self) -> None:
        self._db.execute("DELETE FROM contents WHERE digest NOT IN (SELECT digest FROM versions)")

    def _write(self, statements: Callable[[], None], *, spending: bool) -> None:
        """One transaction; `spending`: worth the reserve where the disk is full."""
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
                    f"{self._path} was written by a newer Lorry (schema {found}; this one reads "
                    f"up to {SCHEMA_VERSION}); upgrade, or choose another --home"
                )
            if found < SCHEMA_VERSION:
                db.execute("BEGIN IMMEDIATE")
                for statements in _MIGRATIONS[found:]:
                    for statement in statements:
                        db.execute(statement)
                db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
                db.execute("COMMIT")
        except BaseException:
            # Closing rolls back what was not committed.
            db.close()
            raise
        return db

    def _unusable(self, error: sqlite3.Error) -> HomeUnusable:
        what = f"the adapter catalogue {self._path} cannot be used ({error})"
        if _kind(error) in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            return HomeUnusable(f"{what}; restore it from a backup, or move it away to start empty")
        return HomeUnusable(f"{what}; see that its disk is writable and not full")


def _kind(error: sqlite3.Error) -> int:
    """SQLite's primary result code; 0 for errors of Python's own."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


_VersionRow = tuple[
    int, str, str, int, str, int, int, str | None, str, str, int, str, int, str
]  # fmt: skip


def _version(row: _VersionRow) -> VersionRecord:
    version, digest, peft_type, rank, modules, parameters, size, base_model, created_at = row[:9]
    task_type, virtual_tokens, invocation, scalable, warnings = row[9:]
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
        task_type=task_type,
        virtual_tokens=virtual_tokens,
        invocation=tuple(json.loads(invocation)),
        scalable=bool(scalable),
        warnings=tuple(json.loads(warnings)),
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
