"""The database of keys and of the audit: opened, migrated, and its errors as ours.

It is a SQLite file of its own in the home folder, or in the database that servers share. A lost
catalog is rebuilt from its second copy. Keys have none, and a server must never take a damaged file
for one without keys, which would let everybody in: it does not start.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

from sqlalchemy import Connection, create_engine, event, func, select
from sqlalchemy.exc import SQLAlchemyError

from lorry.access.access_tables import SCHEMA, keys
from lorry_adapters.errors import HomeUnusable, Problem, Remedy, StorageFull
from lorry_adapters.registry.shared.database import Database, NewerSchema, migrate
from lorry_adapters.registry.shared.database_watch import DatabaseWatch

FILE: Final = "access.sqlite3"

_CHANNEL: Final = "lorry_access"

_KEYS: Final = 2
"""Number of the lock on changes of keys."""


class AccessDatabase(Protocol):
    """Thread-safe. Every storage error is HomeUnusable, StorageFull or CatalogUnavailable."""

    def reading(self) -> AbstractContextManager[Connection]: ...

    def writing(self) -> AbstractContextManager[Connection]:
        """One transaction, which is on disk after the block."""

    def alone(self) -> AbstractContextManager[None]:
        """Guard a block that changes keys: no other server changes any meanwhile."""

    def watch(self, look: Callable[[], None]) -> None:
        """Call `look` when another server may have changed something, until `close`."""

    def close(self) -> None: ...


class AccessFile:
    """The file in the home folder."""

    def __init__(self, path: Path) -> None:
        """Open or create `path`, and migrate it. Raises HomeUnusable if it is damaged or was
        written by a newer server."""
        self._path = path
        self._engine = create_engine(f"sqlite:///{path}")
        event.listen(self._engine, "connect", _durable)
        event.listen(self._engine, "begin", _begin)
        try:
            with self.writing() as connection:
                migrate(connection, SCHEMA)
        except NewerSchema as error:
            self._engine.dispose()
            raise HomeUnusable(
                Problem(f"{path} {error} home folder", Remedy.OTHER_HOME, path=str(path.parent))
            ) from error
        except BaseException:
            self._engine.dispose()
            raise

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        with self._translated(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        with self._translated(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def alone(self) -> Iterator[None]:
        yield

    def watch(self, look: Callable[[], None]) -> None:
        """Nobody else changes the file."""

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (SQLAlchemyError, sqlite3.Error) as error:
            raise self._error(error) from error

    def _error(self, error: Exception) -> HomeUnusable | StorageFull:
        original = getattr(error, "orig", error)
        if getattr(original, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL:
            return StorageFull(f"no room on the disk of {self._path}; free some and try again")
        return HomeUnusable(
            f"the keys and the audit in {self._path} cannot be used ({original}); make sure that "
            "its disk is writable and not full, or restore the file from a backup"
        )


class SharedAccess:
    """The database that servers share."""

    def __init__(self, url: str) -> None:
        """Raises CatalogUnavailable, and HomeUnusable if a newer server wrote it."""
        self._database = Database(url, SCHEMA)
        self._watch: DatabaseWatch | None = None

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        with self._database.transaction() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        with self._database.transaction() as connection:
            yield connection
            connection.execute(select(func.pg_notify(_CHANNEL, "")))
            connection.commit()

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._database.alone(_KEYS):
            yield

    def watch(self, look: Callable[[], None]) -> None:
        self._watch = DatabaseWatch(self._database, _CHANNEL, look)

    def close(self) -> None:
        if self._watch is not None:
            self._watch.close()
        self._database.close()


def has_keys(home: Path, catalog: str | None = None) -> bool:
    """Return whether there are API keys: in the database of the URL `catalog`, or in the home
    folder, without changing it. Raises HomeUnusable, CatalogUnavailable."""
    if catalog is not None:
        database = SharedAccess(catalog)
        try:
            with database.reading() as connection:
                return connection.execute(select(keys.c.id).limit(1)).first() is not None
        finally:
            database.close()
    path = home / FILE
    if not path.exists():
        return False
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as db:
            known = db.execute("SELECT name FROM sqlite_master WHERE name = 'keys'").fetchone()
            return known is not None and db.execute("SELECT 1 FROM keys").fetchone() is not None
    except sqlite3.Error as error:
        raise HomeUnusable(
            f"the keys in {path} cannot be read ({error}); restore the file from a backup"
        ) from error


def _durable(connection: Any, _: object) -> None:
    # Otherwise the driver would begin a transaction only before the first INSERT, and half a
    # migration could stay.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("journal_mode = WAL", "synchronous = FULL"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN")
