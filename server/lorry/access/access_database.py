"""The database of keys and of the audit: opened, migrated, and its errors as ours.

It is a SQLite file of its own in the home folder. A lost catalog is rebuilt from its second copy.
Keys have none, and a server must never take a damaged file for one without keys, which would let
everybody in: it does not start.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, create_engine, event, inspect, text
from sqlalchemy.exc import SQLAlchemyError

from lorry.access.access_tables import HEAD
from lorry_adapters.errors import HomeUnusable, Problem, Remedy, StorageFull

FILE: Final = "access.sqlite3"

_VERSION: Final = "access_version"


class AccessDatabase:
    """Thread-safe. Every storage error is HomeUnusable or StorageFull."""

    def __init__(self, path: Path) -> None:
        """Open or create `path`, and migrate it. Raises HomeUnusable if it is damaged or was
        written by a newer server."""
        self._path = path
        self._engine = create_engine(f"sqlite:///{path}")
        event.listen(self._engine, "connect", _durable)
        event.listen(self._engine, "begin", _begin)
        try:
            with self.writing() as connection:
                self._migrate(connection)
        except BaseException:
            self._engine.dispose()
            raise

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        with self._translated(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """One transaction, which is on disk after the block."""
        with self._translated(), self._engine.begin() as connection:
            yield connection

    def close(self) -> None:
        self._engine.dispose()

    def _migrate(self, connection: Connection) -> None:
        found = _version_in(connection)
        if found == HEAD:
            return
        # Imported here: an ordinary start needs none of it.
        from alembic import command
        from alembic.config import Config
        from alembic.script import ScriptDirectory

        config = Config()
        config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
        config.attributes["connection"] = connection
        known = {one.revision for one in ScriptDirectory.from_config(config).walk_revisions()}
        if found is not None and found not in known:
            raise HomeUnusable(
                Problem(
                    f"{self._path} was written by a newer Lorry (migration {found[:40]!r}; this "
                    f"one knows up to {HEAD}); upgrade, or choose another home folder",
                    Remedy.OTHER_HOME,
                    path=str(self._path.parent),
                )
            )
        command.upgrade(config, "head")

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


def has_keys(home: Path) -> bool:
    """Return whether the home has API keys, without changing it. Raises HomeUnusable."""
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


def _version_in(connection: Connection) -> str | None:
    if not inspect(connection).has_table(_VERSION):
        return None
    return connection.execute(text(f"SELECT version_num FROM {_VERSION}")).scalar()


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
