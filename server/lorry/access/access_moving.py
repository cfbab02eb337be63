"""Copies a home's keys and audit to a database that servers share."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import func, insert, select, update

from lorry.access.access_database import FILE, AccessFile, SharedAccess
from lorry.access.access_tables import audit, keys, state
from lorry.errors import KeyConflict


def copy_keys(home: Path, url: str) -> int:
    """Add the keys and the audit of a home, which must be locked, to the database of the URL.
    Return the number of keys. A second call adds nothing again.

    Raises KeyConflict for a name that another key has there; then nothing is added. Raises
    HomeUnusable, CatalogUnavailable.
    """
    if not (home / FILE).exists():
        return 0
    ours = AccessFile(home / FILE)
    try:
        with ours.reading() as connection:
            found = [dict(row._mapping) for row in connection.execute(select(keys))]
            told = [dict(row._mapping) for row in connection.execute(select(audit))]
    finally:
        ours.close()
    shared = SharedAccess(url)
    try:
        with shared.alone(), shared.writing() as connection:
            theirs = {
                row.id: row.name for row in connection.execute(select(keys.c.id, keys.c.name))
            }
            new = [row for row in found if row["id"] not in theirs]
            for row in new:
                if row["name"] in theirs.values():
                    raise KeyConflict(
                        f"there is a key {row['name']!r} in the shared catalog already; revoke one "
                        "of the two first"
                    )
            if new:
                connection.execute(insert(keys), new)
                connection.execute(update(state).values(revision=state.c.revision + 1))
            # Numbered anew, in their order.
            for row in sorted(told, key=lambda row: int(row.pop("id"))):
                same = [audit.c[name] == row[name] for name in ("at", "kind", "name", "action")]
                query = select(func.count()).select_from(audit).where(*same)
                if not connection.execute(query).scalar_one():
                    connection.execute(insert(audit).values(**row))
    finally:
        shared.close()
    return len(new)
