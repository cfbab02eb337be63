"""How long the audit is kept."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import update

from lorry.access.access_database import FILE, AccessDatabase, AccessFile, SharedAccess
from lorry.access.access_tables import audit as table
from lorry.access.audit import ADAPTER, Audit, AuditEntry
from lorry.retiring import Retiring
from lorry_adapters.errors import HomeUnusable
from lorry_adapters.registry.registry import Registry
from support.adapter_files import layout
from support.patience import wait_until

NOW = datetime(2026, 5, 4, 12, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture(params=["file", "shared"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[AccessDatabase]:
    opened: AccessDatabase
    if request.param == "file":
        opened = AccessFile(tmp_path / FILE)
    else:
        opened = SharedAccess(request.getfixturevalue("catalog_url"))
    yield opened
    opened.close()


@pytest.fixture
def audit(database: AccessDatabase) -> Audit:
    """With entries of `a10`, `a7` and `a1`, so many days ago."""
    audit = Audit(database)
    for days in (10, 7, 1):
        name = f"a{days}"
        with audit.around(AuditEntry("added", ADAPTER, name)):
            pass
        with database.writing() as connection:
            row = update(table).where(table.c.name == name)
            connection.execute(row.values(at=NOW - days * DAY))
    return audit


def names(audit: Audit) -> list[str]:
    return [entry.name for entry in audit.page(limit=10)]


def test_older_entries_go_and_the_others_stay_as_they_are(audit: Audit) -> None:
    before = audit.page(limit=10)
    assert audit.shorten(11 * DAY, NOW) == 0
    assert names(audit) == ["a1", "a7", "a10"]
    assert audit.shorten(7 * DAY, NOW) == 1
    assert audit.page(limit=10) == before[:2]
    assert audit.shorten(timedelta(seconds=1), NOW) == 2
    assert names(audit) == [] and audit.shorten(DAY, NOW) == 0
    with audit.around(AuditEntry("added", ADAPTER, "new")):
        pass
    # Numbers are not used again.
    assert audit.page(limit=10)[0].id > before[0].id


def test_nothing_is_written_if_nothing_is_old(
    audit: Audit, database: AccessDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused() -> None:
        raise HomeUnusable("a change")

    monkeypatch.setattr(database, "writing", refused)
    assert audit.shorten(11 * DAY, NOW) == 0
    with pytest.raises(HomeUnusable):
        audit.shorten(7 * DAY, NOW)


@pytest.mark.parametrize(("days", "left"), [(0.0, ["a1", "a7", "a10"]), (1.0, [])])
def test_the_server_does_it_if_it_is_told_to(
    audit: Audit, tmp_path: Path, days: float, left: list[str]
) -> None:
    registry = Registry(
        tmp_path / "home", layout(), max_rank=8, max_upload=1 << 20, max_host_bytes=1 << 20
    )
    retired = []
    registry.retire = lambda now=None: retired.append(1)  # type: ignore[method-assign, assignment]
    retiring = Retiring(registry, audit, days)
    retiring.start()
    wait_until(lambda: retired and names(audit) == left)
    retiring.stop()
    assert names(audit) == left
    registry.close()
