"""A PostgreSQL database by URL: connected, migrated, listened to, and its errors as ours.

Whoever stores something in it brings its own tables and migrations (`Schema`); two of them may live
in one database. The connections are given up early on purpose: a server that waits for a lost
or frozen database would be worse than one that refuses changes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sqlalchemy import URL, Connection, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from lorry_adapters.errors import CatalogUnavailable, HomeUnusable

QUIET: Final = 15.0
"""Seconds without an answer after which `warning` says that the database is lost."""

REFUSING: Final = 1.0
"""Seconds for which a silent database is not asked again: changes that waited for one another must
not each wait for it."""

_DRIVER: Final = "postgresql+psycopg"

_CONNECT: Final = {
    "application_name": "lorry",
    "connect_timeout": 3,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 8000,
}

_SESSION: Final = (
    # Both below what a connection waits for an answer (`limited_connection`).
    "SET statement_timeout = '12s'",
    # Another server's change takes milliseconds, or as long as it stores its files.
    "SET lock_timeout = '10s'",
    # A server that hangs in the middle of a change must not keep the others out.
    "SET idle_in_transaction_session_timeout = '60s'",
    "SET TIME ZONE 'UTC'",
)


@dataclass(frozen=True, slots=True)
class Schema:
    """Tables with migrations of their own."""

    migrations: Path
    """Folder of Alembic's scripts."""
    version_table: str
    head: str
    """The newest migration."""


class Database:
    """Thread-safe. Every error is CatalogUnavailable, except while opening."""

    def __init__(self, url: str, schema: Schema) -> None:
        """Connect and migrate. Raises CatalogUnavailable, and HomeUnusable for a URL that cannot
        be used or tables of a newer server."""
        parsed = _parsed(url)
        self.name = f"postgresql://{parsed.host or ''}/{parsed.database or ''}"
        """What anyone may know of the URL."""
        self._trouble: str | None = None
        self._heard = time.monotonic()
        self._silent: tuple[float, str] | None = None
        """When the database was last found silent, and the refusal."""
        try:
            # psycopg is an extra.
            from lorry_adapters.registry.shared.limited_connection import (
                SILENCES,
                LimitedConnection,
            )

            self._silences = SILENCES
            self._engine = create_engine(
                parsed, connect_args=_CONNECT, pool_size=4, pool_recycle=600, pool_use_lifo=True
            )
        except ImportError as error:
            raise HomeUnusable(
                "a catalog in PostgreSQL needs psycopg: pip install 'lorry[postgres]'"
            ) from error
        event.listen(
            self._engine,
            "do_connect",
            lambda dialect, record, args, options: LimitedConnection.connect(*args, **options),
        )
        event.listen(self._engine, "connect", _set_up)
        try:
            with self.transaction() as connection:
                # Several servers may start at once.
                connection.execute(text("SELECT pg_advisory_xact_lock(7207, 1)"))
                migrate(connection, schema)
                connection.commit()
        except NewerSchema as error:
            self._engine.dispose()
            raise HomeUnusable(f"the catalog {self.name} {error}") from error
        except BaseException:
            self._engine.dispose()
            raise

    @contextmanager
    def transaction(self, *, snapshot: bool = False) -> Iterator[Connection]:
        """Yield a connection with a transaction, which is rolled back after the block unless it
        was committed. `snapshot`: every statement sees the state of the first."""
        self._refuse_while_silent()
        with self.translated(), self._engine.connect() as connection:
            if snapshot:
                connection.execution_options(isolation_level="REPEATABLE READ")
            yield connection

    @contextmanager
    def listening(self, channel: str) -> Iterator[Listener]:
        self._refuse_while_silent()
        with self.translated(), self._engine.connect() as connection:
            connection.execution_options(isolation_level="AUTOCOMMIT")
            connection.execute(text(f"LISTEN {channel}"))
            try:
                yield Listener(connection)
            finally:
                # Other users of the pool should not get its messages.
                connection.invalidate()

    @contextmanager
    def alone(self, number: int) -> Iterator[None]:
        """Keep every other server out of blocks with this number."""
        with self.transaction() as connection:
            connection.execute(
                text("SELECT pg_advisory_xact_lock(7207, :number)"), {"number": number}
            )
            yield

    @contextmanager
    def translated(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            # The other connections are probably lost too.
            self._engine.dispose()
            self._trouble = f"the catalog {self.name} cannot be used now"
            original = getattr(error, "orig", None) or error
            why = " ".join(str(original).split())
            refusal = (
                f"the catalog {self.name} cannot be used ({why[:300]}); adapters that are known "
                "here are served, and changes are refused until it is back"
            )
            if isinstance(original, self._silences):
                self._silent = (time.monotonic(), refusal)
            raise CatalogUnavailable(refusal) from error
        self._trouble = self._silent = None
        self._heard = time.monotonic()

    def _refuse_while_silent(self) -> None:
        silent = self._silent
        if silent is not None and time.monotonic() - silent[0] < REFUSING:
            raise CatalogUnavailable(silent[1])

    def warning(self) -> str | None:
        """Return what anyone may know of why changes are refused, or None. Needs someone who asks
        the database all the time."""
        trouble, silent = self._trouble, time.monotonic() - self._heard
        if trouble is None and silent > QUIET:
            trouble = f"the catalog {self.name} has not answered for {silent:.0f} s"
        return None if trouble is None else f"{trouble}: changes are refused; the log has more"

    def close(self) -> None:
        self._engine.dispose()


class Listener:
    """A connection that hears a channel's messages."""

    def __init__(self, connection: Connection) -> None:
        self._raw: Any = connection.connection.driver_connection
        self._error: type[Exception] = connection.dialect.loaded_dbapi.Error

    def wait(self, seconds: float) -> None:
        """Return after the next message, or after that time. Raises CatalogUnavailable."""
        try:
            for _ in self._raw.notifies(timeout=seconds, stop_after=1):
                pass
        except self._error as error:
            raise SQLAlchemyError(str(error)) from error


class NewerSchema(Exception):
    """The message goes on from the database's name."""


def migrate(connection: Connection, schema: Schema) -> None:
    """Bring a schema's tables up to date, in the connection's transaction. Raises NewerSchema."""
    found = None
    if inspect(connection).has_table(schema.version_table):
        query = text(f"SELECT version_num FROM {schema.version_table}")
        found = connection.execute(query).scalar()
    if found == schema.head:
        return
    # Imported here: an ordinary start needs none of it.
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(schema.migrations).replace("%", "%%"))
    config.attributes["connection"] = connection
    known = {one.revision for one in ScriptDirectory.from_config(config).walk_revisions()}
    if found is not None and found not in known:
        raise NewerSchema(
            f"was written by a newer Lorry (migration {found[:40]!r}; this one knows up to "
            f"{schema.head}); upgrade, or choose another"
        )
    command.upgrade(config, "head")


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:
        raise HomeUnusable("the catalog's URL cannot be read; it is like " + _EXAMPLE) from error
    if parsed.drivername not in (_DRIVER, "postgresql", "postgres"):
        raise HomeUnusable(
            f"a catalog cannot be in {parsed.drivername!r}, only in PostgreSQL: its URL is like "
            + _EXAMPLE
        )
    return parsed.set(drivername=_DRIVER)


_EXAMPLE: Final = "postgresql://user:password@host/database"


def _set_up(connection: Any, _: object) -> None:
    before = connection.autocommit
    connection.autocommit = True
    for statement in _SESSION:
        connection.execute(statement)
    connection.autocommit = before
