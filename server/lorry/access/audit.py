"""The audit: every change of adapters and keys, with the key and the address that made it.

An adapter's entry is written before the change and deleted if the change fails. So a crash can
leave an entry of a change that did not happen, never a change without its entry. Keys are in the
same database, so a key and its entry change together. If the disk is full, an adapter may still be
removed, and the entry is in the log alone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import Connection, Row, delete, insert, select

from lorry.access import caller
from lorry.access.access_database import AccessDatabase
from lorry.access.access_tables import audit as table
from lorry_adapters.errors import AdapterError
from lorry_adapters.registry.record import AdapterRecord, VersionRules
from lorry_adapters.registry.version_rules import rules_value

ADAPTER: Final = "adapter"
KEY: Final = "key"

MAX_PAGE: Final = 1000
"""Entries of one answer."""


class Action(StrEnum):
    """docs/operations.md explains each."""

    ADDED = "added"
    REPLACED = "replaced"
    """An adapter has a new version."""
    CHANGED = "changed"
    """An adapter or a key."""
    REMOVED = "removed"
    CREATED = "created"
    """A key, as the next two."""
    ROTATED = "rotated"
    REVOKED = "revoked"


_STATE: Final = ("enabled", "scale", "pinned", "description")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AuditEntry:
    action: str
    """One of `Action`, or what a newer server wrote."""
    kind: str
    """`adapter` or `key`."""
    name: str
    """The adapter's or the key's."""
    digest_before: str | None = None
    """An adapter's current digest before the change; None if it did not exist."""
    digest_after: str | None = None
    """None if it no longer exists."""
    detail: Mapping[str, Any] | None = None
    """What changed: by field, the value before and after."""
    key_id: str = ""
    """Of the key that made the change; empty without a key."""
    key_name: str = ""
    address: str = ""
    """Of the client; empty for what the server did by itself."""
    at: datetime | None = None
    id: int = 0


class Audit:
    """Thread-safe."""

    def __init__(self, database: AccessDatabase) -> None:
        self._database = database

    def write(self, connection: Connection, entry: AuditEntry) -> int:
        """Insert an entry, made by the current caller now, in a transaction. Return its number."""
        made = connection.execute(insert(table).values(**_values(entry)))
        key = made.inserted_primary_key
        assert key is not None
        return int(key[0])

    @contextmanager
    def around(self, entry: AuditEntry) -> Iterator[None]:
        """Write an entry around the block that makes its change."""
        number = None
        try:
            with self._database.writing() as connection:
                number = self.write(connection, entry)
        except AdapterError as error:
            logger.warning("the audit could not be written: %s", error.message)
        try:
            yield
        except BaseException:
            if number is not None:
                with suppress(AdapterError), self._database.writing() as connection:
                    connection.execute(delete(table).where(table.c.id == number))
            raise
        log(entry)

    def shorten(self, keep: timedelta, now: datetime | None = None) -> int:
        """Delete the entries that are older than `keep`. Return their number."""
        before = (now or datetime.now(UTC)) - keep
        oldest = select(table.c.at).order_by(table.c.id).limit(1)
        with self._database.reading() as connection:
            first = connection.execute(oldest).scalar()
        # A look costs nothing; a change would wake every server of the catalog.
        if first is None or first.replace(tzinfo=UTC) >= before:
            return 0
        with self._database.writing() as connection:
            deleted = connection.execute(delete(table).where(table.c.at < before)).rowcount
        logger.info("deleted %d entries of the audit from before %s", deleted, before.isoformat())
        return deleted

    def page(
        self,
        *,
        limit: int,
        before: int | None = None,
        adapter: str | None = None,
        key: str | None = None,
    ) -> list[AuditEntry]:
        """Return the newest entries first, older than number `before`. `key`: the id or name of the
        key that made the changes, or that was changed."""
        query = select(table).order_by(table.c.id.desc()).limit(limit)
        if before is not None:
            query = query.where(table.c.id < before)
        if adapter is not None:
            query = query.where(table.c.kind == ADAPTER, table.c.name == adapter)
        if key is not None:
            changed = (table.c.kind == KEY) & (table.c.name == key)
            query = query.where((table.c.key_id == key) | (table.c.key_name == key) | changed)
        with self._database.reading() as connection:
            return [_entry(row) for row in connection.execute(query)]


def of_adapters(before: AdapterRecord | None, after: AdapterRecord | None) -> AuditEntry:
    """Return the entry of an adapter's change."""
    record = after or before
    assert record is not None
    digest_before = None if before is None else before.current.digest
    if after is None:
        return AuditEntry(Action.REMOVED, ADAPTER, record.name, digest_before)
    versions = [] if before is None else [one.version for one in before.versions]
    detail: dict[str, Any] = {}
    if before is None or before.current.version != after.current.version:
        old = None if before is None else before.current.version
        detail["version"] = [old, after.current.version]
    for name in _STATE:
        old, new = getattr(before, name, None), getattr(after, name)
        if old != new:
            detail[name] = [old, new]
    rules = rules_value(VersionRules() if before is None else before.rules)
    for name, value in rules_value(after.rules).items():
        if rules[name] != value:
            detail[name] = [rules[name], value]
    gone = sorted(set(versions) - {one.version for one in after.versions})
    if gone:
        detail["removed_versions"] = gone
    action = Action.CHANGED
    if before is None:
        action = Action.ADDED
    elif after.versions[-1].version not in versions:
        action = Action.REPLACED
        if after.versions[-1] != after.current:
            # As the name is split.
            detail["new_version"] = after.versions[-1].version
    digest_after = after.current.digest
    return AuditEntry(action, ADAPTER, record.name, digest_before, digest_after, detail)


def log(entry: AuditEntry) -> None:
    """Write an entry's line to the log."""
    values = _values(entry)
    told = {
        "key": values["key_name"],
        "client": values["address"],
        "digest_before": entry.digest_before,
        "digest_after": entry.digest_after,
        "detail": values["detail"],
    }
    logger.info(
        "%s %s %s",
        entry.kind,
        entry.name,
        entry.action,
        extra={name: value for name, value in told.items() if value},
    )


def _values(entry: AuditEntry) -> dict[str, Any]:
    who = caller.current()
    return {
        "at": datetime.now(UTC),
        "key_id": "" if who is None else who.key.id,
        "key_name": "" if who is None else who.key.name,
        "address": "" if who is None else who.address[:100],
        "action": str(entry.action),
        "kind": entry.kind,
        "name": entry.name,
        "digest_before": entry.digest_before,
        "digest_after": entry.digest_after,
        "detail": dict(entry.detail or {}),
    }


def _entry(row: Row[Any]) -> AuditEntry:
    values = dict(row._mapping)
    # SQLite stores no time zone; every time is in UTC.
    values["at"] = values["at"].replace(tzinfo=UTC)
    return AuditEntry(**values)
