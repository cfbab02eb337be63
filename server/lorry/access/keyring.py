"""The API keys: found by their text, and changed. Changes are in force when they return."""

from __future__ import annotations

import hmac
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final

from sqlalchemy import Connection, delete, insert, select, update

from lorry.access.access_database import AccessDatabase
from lorry.access.access_tables import keys as table
from lorry.access.access_tables import state
from lorry.access.api_key import (
    KeyLimits,
    KeyRecord,
    Scope,
    digest_of_key,
    id_in,
    new_id,
    new_secret,
)
from lorry.access.audit import KEY, Action, Audit, AuditEntry, log
from lorry.errors import KeyConflict, KeyNotFound

SETTINGS_KEY: Final = KeyRecord("settings", "LORRY_API_KEY", frozenset({Scope.ADMIN}))
"""The key of `--api-key`. It is in no database and has no limits."""

_NO_DIGEST: Final = bytes(32)
"""Compared where there is no digest, so that a comparison takes place in every case."""


@dataclass(frozen=True, slots=True)
class _Stored:
    record: KeyRecord
    digest: bytes
    old_digest: bytes | None
    old_until: float | None


class Keyring:
    """Thread-safe. Looking up does no I/O; changes block."""

    def __init__(self, api_key: str | None, *, clock: Callable[[], float] = time.time) -> None:
        """`api_key`: the settings' key."""
        self._own = None if api_key is None else digest_of_key(api_key.encode())
        self._clock = clock
        self._refreshing = threading.Lock()
        self._stored: Mapping[str, _Stored] = MappingProxyType({})
        """By id. Replaced as a whole by each change."""

    def open(
        self,
        database: AccessDatabase,
        audit: Audit,
        writing: Callable[[], AbstractContextManager[None]],
    ) -> None:
        """Read the stored keys. `writing` guards each change; one at a time. Raises
        HomeUnusable, CatalogUnavailable."""
        self._database, self._audit, self._writing = database, audit, writing
        self._seen = -1
        self.refresh()

    def refresh(self) -> None:
        """Show what other servers changed. Raises HomeUnusable, CatalogUnavailable."""
        with self._refreshing, self._database.reading() as connection:
            # Before the keys: if they change in between, they are read again.
            revision = connection.execute(select(state.c.revision)).scalar_one()
            if revision != self._seen:
                rows = [dict(row._mapping) for row in connection.execute(select(table))]
                self._stored = MappingProxyType({row["id"]: _stored(row) for row in rows})
                self._seen = revision

    @property
    def asks(self) -> bool:
        """True if requests need a key."""
        return self._own is not None or bool(self._stored)

    @property
    def has_stored(self) -> bool:
        """True if there are keys beside the settings' own."""
        return bool(self._stored)

    def find(self, text: bytes) -> KeyRecord | None:
        """Return the key with this text. Digests are compared in constant time."""
        given = digest_of_key(text)
        if hmac.compare_digest(given, self._own or _NO_DIGEST):
            return SETTINGS_KEY
        stored = self._stored.get(id_in(text) or "")
        matches = hmac.compare_digest(given, stored.digest if stored else _NO_DIGEST)
        old = stored.old_digest if stored else None
        until = stored.old_until if stored else None
        if hmac.compare_digest(given, old or _NO_DIGEST) and self._clock() < (until or 0.0):
            matches = True
        return stored.record if stored is not None and matches else None

    def records(self) -> tuple[KeyRecord, ...]:
        """Return all stored keys, by name."""
        found = (one.record for one in self._stored.values())
        return tuple(sorted(found, key=lambda record: record.name))

    def get(self, name: str) -> KeyRecord:
        """Return a key by its name or id. Raises KeyNotFound."""
        return self._find(name).record

    def create(
        self,
        name: str,
        scopes: frozenset[Scope],
        adapters: Sequence[str] | None,
        limits: KeyLimits,
        description: str,
    ) -> tuple[KeyRecord, str]:
        """Store a new key. Return it with its text, which nothing keeps. Raises KeyConflict,
        StorageFull, HomeUnusable."""
        with self._exclusive():
            known = {one.name for one in self.records()} | {SETTINGS_KEY.name}
            if name in known or name in self._stored:
                raise KeyConflict(f"there is a key {name!r} already; choose another name")
            if Scope.ADMIN not in scopes and not self.asks:
                raise KeyConflict(
                    "from the first key on every request needs one, so the first must have the "
                    "scope admin; make that one first"
                )
            id = new_id()
            while id in self._stored:
                id = new_id()
            text = new_secret(id)
            now = datetime.now(UTC)
            shown = None if adapters is None else tuple(adapters)
            record = KeyRecord(id, name, scopes, shown, limits, description, now, now)
            entry = AuditEntry(Action.CREATED, KEY, name, detail=_new(record))
            with self._changing(entry) as connection:
                connection.execute(
                    insert(table).values(
                        **_columns(record),
                        id=id,
                        created_at=now,
                        digest=digest_of_key(text.encode()),
                    )
                )
            return record, text

    def change(self, name: str, **given: Any) -> KeyRecord:
        """Change the given fields of a key: scopes, adapters, limits, description. Raises
        KeyNotFound, KeyConflict, StorageFull, HomeUnusable."""
        with self._exclusive():
            old = self._find(name).record
            record = replace(old, **given)
            if record == old:
                return old
            record = replace(record, updated_at=datetime.now(UTC))
            if Scope.ADMIN not in record.scopes:
                self._check_admin_without(old)
            before, after = _shown(old), _shown(record)
            detail = {key: [before[key], after[key]] for key in after if before[key] != after[key]}
            entry = AuditEntry(Action.CHANGED, KEY, old.name, detail=detail)
            with self._changing(entry) as connection:
                connection.execute(
                    update(table).where(table.c.id == old.id).values(**_columns(record))
                )
            return record

    def rotate(self, name: str, keep_old: float) -> tuple[KeyRecord, str]:
        """Give a key a new text and return it; the old one is good for `keep_old` seconds more.
        Raises KeyNotFound, StorageFull, HomeUnusable."""
        with self._exclusive():
            stored = self._find(name)
            record = replace(stored.record, updated_at=datetime.now(UTC))
            text = new_secret(record.id)
            entry = AuditEntry(Action.ROTATED, KEY, record.name, detail={"keep_old": keep_old})
            with self._changing(entry) as connection:
                connection.execute(
                    update(table)
                    .where(table.c.id == record.id)
                    .values(
                        digest=digest_of_key(text.encode()),
                        old_digest=stored.digest if keep_old > 0 else None,
                        old_until=self._clock() + keep_old if keep_old > 0 else None,
                        updated_at=record.updated_at,
                    )
                )
            return record, text

    def revoke(self, name: str) -> KeyRecord:
        """Delete a key. Raises KeyNotFound, KeyConflict, StorageFull, HomeUnusable."""
        with self._exclusive():
            record = self._find(name).record
            self._check_admin_without(record)
            with self._changing(AuditEntry(Action.REVOKED, KEY, record.name)) as connection:
                connection.execute(delete(table).where(table.c.id == record.id))
            return record

    @contextmanager
    def _changing(self, entry: AuditEntry) -> Iterator[Connection]:
        """Yield a transaction, with the change's entry in the audit. In force after the block."""
        with self._database.writing() as connection:
            yield connection
            connection.execute(update(state).values(revision=state.c.revision + 1))
            self._audit.write(connection, entry)
        self.refresh()
        log(entry)

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Guard a change, which sees every change before it."""
        with self._writing(), self._database.alone():
            self.refresh()
            yield

    def _find(self, name: str) -> _Stored:
        for id, stored in self._stored.items():
            if name in (id, stored.record.name):
                return stored
        raise KeyNotFound(f"no key is named {name[:140]!r}; lorry keys list shows all")

    def _check_admin_without(self, gone: KeyRecord) -> None:
        others = [one for one in self.records() if one.id != gone.id]
        if self._own is None and not any(Scope.ADMIN in one.scopes for one in others):
            raise KeyConflict(
                f"{gone.name!r} is the only key with the scope admin, and without one nobody could "
                "manage keys; make another first"
            )


def _columns(record: KeyRecord) -> dict[str, Any]:
    return {
        "name": record.name,
        "scopes": sorted(record.scopes),
        "adapters": None if record.adapters is None else list(record.adapters),
        "limits": record.limits.given(),
        "description": record.description,
        "updated_at": record.updated_at,
    }


def _shown(record: KeyRecord) -> dict[str, Any]:
    """Return the part of a key that the audit has."""
    shown = _columns(record)
    return {key: shown[key] for key in ("scopes", "adapters", "limits", "description")}


def _new(record: KeyRecord) -> dict[str, Any]:
    return {field: [None, value] for field, value in _shown(record).items()}


def _stored(row: Mapping[str, Any]) -> _Stored:
    record = KeyRecord(
        row["id"],
        row["name"],
        frozenset(map(Scope, row["scopes"])),
        None if row["adapters"] is None else tuple(row["adapters"]),
        KeyLimits(**row["limits"]),
        row["description"],
        # SQLite stores no time zone; every time is in UTC.
        row["created_at"].replace(tzinfo=UTC),
        row["updated_at"].replace(tzinfo=UTC),
    )
    return _Stored(record, row["digest"], row["old_digest"], row["old_until"])
