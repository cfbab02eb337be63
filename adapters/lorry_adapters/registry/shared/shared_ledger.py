"""The registered adapters of several servers, in one PostgreSQL database.

A change locks the one row of `catalog_state`, reads what other servers changed before, and commits
with the next revision. So changes of all servers have one order, a version number is drawn once,
and whoever changes something has seen everything before it. A record is stored as in a file of
`records/`.

The other servers hear of a change by NOTIFY, and ask for the revision anyway (`watch`). What they
then read (`news`) are the rows with a higher revision than their own.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, delete, func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from lorry_adapters.errors import CatalogUnavailable
from lorry_adapters.registry.catalog import StoredContent
from lorry_adapters.registry.ledgers import News
from lorry_adapters.registry.record import AdapterRecord, VersionRecord
from lorry_adapters.registry.shared.database import Database
from lorry_adapters.registry.shared.database_watch import DatabaseWatch
from lorry_adapters.registry.shared.shared_tables import (
    SCHEMA,
    adapters,
    fits,
    leases,
    state,
    unnamed,
    versions,
)
from lorry_adapters.registry.sidecars import Sidecar, document_of, sidecar_of

CHANNEL: Final = "lorry_catalog"

LEASE: Final = timedelta(seconds=60)
"""How long a server's word counts that it uses a content."""

REMOVED: Final = timedelta(seconds=60)
"""How long the store keeps what no record names any more: servers need a moment to say that they
still use it."""


@dataclass(frozen=True, slots=True)
class _Fresh:
    """What other servers changed since the last look."""

    revision: int
    found: tuple[Sidecar, ...]
    removed: tuple[str, ...]
    fitting: set[str]
    """Contents that were verified against this server's base."""


class SharedLedger:
    """One change at a time in this process; reading is thread-safe."""

    def __init__(self, url: str, layout: str) -> None:
        """Connect, migrate, and read everything. `layout`: fingerprint of this server's base.
        Raises CatalogUnavailable, HomeUnusable."""
        self.is_shared = True
        self.recovery: str | None = None
        self.remembers = True
        self.places: tuple[Path, ...] = ()
        self.database = Database(url, SCHEMA)
        self._layout = layout
        self._seen = 0
        self._known: dict[str, Sidecar] = {}
        self._fits: set[str] = set()
        self._connection: Connection | None = None
        self._server = uuid.uuid4().hex
        self.leased: frozenset[str] = frozenset()
        """The contents that `lease` was last called with."""
        try:
            self.news()
            self.began = self._seen > 0
        except BaseException:
            self.database.close()
            raise

    def adapters(self) -> tuple[AdapterRecord, ...]:
        """Return all adapters that were there at the last look, by name."""
        return tuple(self._known[name].record for name in sorted(self._known))

    def contents(self) -> tuple[StoredContent, ...]:
        """Return their contents; `layout` is this server's or empty."""
        sizes = {d: size for one in tuple(self._known.values()) for d, size in one.sizes.items()}
        return tuple(
            StoredContent(digest, size, self._layout if digest in self._fits else "")
            for digest, size in sizes.items()
        )

    def content(self, digest: str) -> StoredContent | None:
        """Return one of `contents`, in whichever thread."""
        for one in tuple(self._known.values()):
            if digest in one.sizes:
                layout = self._layout if digest in self._fits else ""
                return StoredContent(digest, one.sizes[digest], layout)
        return None

    def next_version(self, name: str) -> int:
        """Return the highest number ever used under `name` plus one; 1 for a new name. Within
        `changing`."""
        return self._known[name].last_version + 1 if name in self._known else 1

    @contextmanager
    def changing(self) -> Iterator[News]:
        """Keep other servers from changing anything during the block, or until `save` or `forget`,
        of which it may call one. Yields what they changed before. Raises CatalogUnavailable."""
        with self.database.transaction() as connection:
            connection.execute(select(state.c.revision).with_for_update())
            news = self._take(self._read(connection))
            self._connection = connection
            try:
                yield news
            finally:
                self._connection = None

    def news(self) -> News:
        """Look again. Not during `changing`. Raises CatalogUnavailable."""
        with self.database.transaction(snapshot=True) as connection:
            fresh = self._read(connection)
        # Only now: the end of the transaction may fail, and then nobody would show the news.
        return self._take(fresh)

    def watch(self, look: Callable[[], None]) -> DatabaseWatch:
        """Call `look` when there may be something to look at, in a thread."""
        return DatabaseWatch(self.database, CHANNEL, look)

    def behind(self) -> bool:
        """Return whether there is something to look at. Raises CatalogUnavailable."""
        with self.database.transaction() as connection:
            return bool(connection.execute(select(state.c.revision)).scalar_one() != self._seen)

    def save(self, record: AdapterRecord, content: StoredContent | None = None) -> None:
        """Make the stored adapter equal `record`; `content` belongs to a new version. Within
        `changing`, which is over for the other servers. Raises CatalogUnavailable."""
        old = self._known.get(record.name)
        sizes = dict(old.sizes) if old is not None else {}
        if content is not None:
            sizes[content.digest] = content.stored_bytes
        sizes = {version.digest: sizes[version.digest] for version in record.versions}
        last = max(self.next_version(record.name) - 1, *(v.version for v in record.versions))
        fitting = [] if content is None else [content]
        self.store(Sidecar(record, last, sizes), fitting)

    def store(self, sidecar: Sidecar, fitting: Sequence[StoredContent]) -> None:
        """As `save`: all that is known of an adapter, and contents that were verified."""
        record = sidecar.record
        old = self._known.get(record.name)
        before = {(v.version, v.digest) for v in old.record.versions} if old else set()
        after = {(v.version, v.digest) for v in record.versions}
        with self._committing(removal=False) as (connection, revision):
            values = {"revision": revision, "document": document_of(sidecar, revision)}
            connection.execute(
                upsert(adapters)
                .values(name=record.name, **values)
                .on_conflict_do_update(index_elements=["name"], set_=values)
            )
            for version, digest in before - after:
                its = (versions.c.name == record.name) & (versions.c.version == version)
                connection.execute(delete(versions).where(its))
                self._let_go(connection, [digest])
            if after - before:
                rows = [{"name": record.name, "version": v, "digest": d} for v, d in after - before]
                connection.execute(insert(versions), rows)
            for content in fitting:
                self._fit(connection, content)
        self._known[record.name] = sidecar
        self._fits |= {one.digest for one in fitting if one.layout == self._layout}

    def save_content(self, facts: VersionRecord, content: StoredContent) -> None:
        """Remember that a content was verified against its layout. Raises CatalogUnavailable."""
        with self.database.transaction() as connection:
            self._fit(connection, content)
            connection.commit()
        self._fits.add(content.digest)

    def forget(self, name: str) -> None:
        """Remove an adapter with all its versions. As `save`."""
        digests = sorted({version.digest for version in self._known[name].record.versions})
        with self._committing(removal=True) as (connection, _):
            connection.execute(delete(adapters).where(adapters.c.name == name))
            self._let_go(connection, digests)
        del self._known[name]

    def used_elsewhere(self, digests: Collection[str]) -> frozenset[str]:
        """Return those of the contents on which other servers have a lease. Within `changing`."""
        assert self._connection is not None, "outside of `changing`"
        leased = select(leases.c.digest).where(leases.c.digest.in_(digests), self._others())
        return frozenset(self._connection.execute(leased).scalars())

    @contextmanager
    def deleting(self, digest: str) -> Iterator[bool]:
        """Guard the deletion of a content from the store. Yields true if no record names it, no
        other server has a lease on it, and no record named it a moment ago."""
        with self.database.transaction() as connection:
            connection.execute(select(state.c.revision).with_for_update())
            needed = (
                select(versions.c.digest).where(versions.c.digest == digest),
                select(leases.c.digest).where(leases.c.digest == digest, self._others()),
                select(unnamed.c.digest).where(
                    unnamed.c.digest == digest, unnamed.c.until > func.now()
                ),
            )
            unused = all(connection.execute(query.limit(1)).first() is None for query in needed)
            yield unused
            if unused:
                connection.execute(delete(unnamed).where(unnamed.c.digest == digest))
                connection.commit()

    def lease(self, digests: Collection[str]) -> None:
        """Say that this server uses these contents, and no others, for a while. Raises
        CatalogUnavailable."""
        if not digests and not self.leased:
            return
        until = func.now() + LEASE
        with self.database.transaction() as connection:
            over = (leases.c.server == self._server) & leases.c.digest.not_in(digests)
            connection.execute(delete(leases).where(over | (leases.c.until < func.now())))
            if digests:
                row = upsert(leases).values(
                    [{"server": self._server, "digest": one, "until": until} for one in digests]
                )
                connection.execute(
                    row.on_conflict_do_update(
                        index_elements=["server", "digest"], set_={"until": row.excluded.until}
                    )
                )
            connection.commit()
        self.leased = frozenset(digests)

    def warning(self) -> str | None:
        """Return why changes are refused, or None."""
        return self.database.warning()

    def close(self) -> None:
        self.database.close()

    def _others(self) -> ColumnElement[bool]:
        """The leases of other servers that are not over."""
        return (leases.c.until > func.now()) & (leases.c.server != self._server)

    @contextmanager
    def _committing(self, *, removal: bool) -> Iterator[tuple[Connection, int]]:
        connection = self._connection
        assert connection is not None, "a change outside of `changing`"
        revision = self._seen + 1
        given = {"revision": revision} | ({"removal": revision} if removal else {})
        with self.database.translated():
            connection.execute(update(state).values(**given))
            yield connection, revision
            connection.execute(select(func.pg_notify(CHANNEL, "")))
            connection.commit()
        self._seen = revision
        self._connection = None

    def _read(self, connection: Connection) -> _Fresh | None:
        """Return what is newer than what is known here; None if nothing is."""
        revision, removal = connection.execute(select(state)).one()
        if revision == self._seen:
            return None
        # A lower one: somebody restored a backup. Everything may be different.
        seen = self._seen if revision > self._seen else -1
        query = select(adapters.c.name, adapters.c.document).where(adapters.c.revision > seen)
        found = tuple(self._parsed(*row) for row in connection.execute(query))
        removed: tuple[str, ...] = ()
        if removal > seen:
            names = set(connection.execute(select(adapters.c.name)).scalars())
            removed = tuple(sorted(self._known.keys() - names))
        digests = {version.digest for one in found for version in one.record.versions}
        ours = select(fits.c.digest).where(
            fits.c.layout == self._layout, fits.c.digest.in_(digests - self._fits)
        )
        return _Fresh(revision, found, removed, set(connection.execute(ours).scalars()))

    def _take(self, fresh: _Fresh | None) -> News:
        """Make it known here. Whoever calls this shows the news."""
        if fresh is None:
            return News()
        self._fits |= fresh.fitting
        self._known |= {one.record.name: one for one in fresh.found}
        for name in fresh.removed:
            del self._known[name]
        self._seen = fresh.revision
        return News(tuple(one.record for one in fresh.found), fresh.removed)

    def _parsed(self, name: str, document: dict[str, Any]) -> Sidecar:
        try:
            return sidecar_of(document)[0]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CatalogUnavailable(
                f"the catalog {self.database.name} has a record of {name!r} that this server "
                f"cannot read ({error}); upgrade it, or restore the record from a backup"
            ) from error

    def _fit(self, connection: Connection, content: StoredContent) -> None:
        if content.layout:
            row = upsert(fits).values(digest=content.digest, layout=content.layout)
            connection.execute(row.on_conflict_do_nothing())

    def _let_go(self, connection: Connection, digests: Sequence[str]) -> None:
        """Let the store delete those of the contents that no record names now."""
        for digest in digests:
            named = select(versions.c.digest).where(versions.c.digest == digest).limit(1)
            if connection.execute(named).first() is None:
                row = upsert(unnamed).values(digest=digest, until=func.now() + REMOVED)
                until = {"until": row.excluded.until}
                connection.execute(row.on_conflict_do_update(index_elements=["digest"], set_=until))
