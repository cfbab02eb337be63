"""Keys and the audit of several servers over one PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from lorry.access.access_control import AccessControl
from lorry.access.access_database import SharedAccess, has_keys
from lorry.access.access_tables import SCHEMA, metadata
from lorry.access.api_key import KeyLimits, Scope
from lorry.access.audit import AuditEntry
from lorry.errors import KeyConflict, LorryError
from lorry_adapters.errors import CatalogUnavailable, HomeUnusable
from lorry_adapters.registry.registry import Registry
from support.adapter_files import layout, save_adapter, upload
from support.patience import wait_until
from support.postgres import Postgres

ADMIN = frozenset({Scope.ADMIN})
UPLOAD = frozenset({Scope.UPLOAD})

Server = tuple[AccessControl, Registry]


@pytest.fixture
def servers(tmp_path: Path, catalog_url: str) -> Iterator[tuple[Server, Server]]:
    opened = []
    for name in ("one", "two"):
        access = AccessControl(None)
        registry = Registry(
            tmp_path / name,
            layout(),
            max_rank=8,
            max_upload=1 << 20,
            max_host_bytes=1 << 20,
            policy=access.policy,
            catalog=catalog_url,
        )
        access.open(tmp_path / name, registry, catalog_url)
        opened.append((access, registry))
    yield opened[0], opened[1]
    for access, registry in opened:
        access.close()
        registry.close()


def test_a_key_is_in_force_and_revoked_everywhere(servers: tuple[Server, Server]) -> None:
    (one, _), (two, _) = servers
    assert not two.keyring.asks
    boss, text = one.keyring.create("boss", ADMIN, None, KeyLimits(max_rank=3), "d")
    wait_until(lambda: two.keyring.asks)
    assert two.keyring.find(text.encode()) == boss
    _, other = two.keyring.create("other", ADMIN, ["a-*"], KeyLimits(), "")
    wait_until(lambda: one.keyring.find(other.encode()))
    two.keyring.change("boss", description="new")
    wait_until(lambda: one.keyring.get("boss").description == "new")
    _, renewed = two.keyring.rotate("boss", 0)
    wait_until(lambda: one.keyring.find(text.encode()) is None)
    assert one.keyring.find(renewed.encode()) is not None
    one.keyring.revoke("other")
    assert one.keyring.find(other.encode()) is None
    wait_until(lambda: two.keyring.find(other.encode()) is None)


def test_a_name_is_given_once_and_the_last_admin_stays(servers: tuple[Server, Server]) -> None:
    (one, _), (two, _) = servers
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda n: _made(servers[n % 2][0], "boss"), range(8)))
    assert sum(made) == 1
    one.keyring.create("second", ADMIN, None, KeyLimits(), "")
    with ThreadPoolExecutor(2) as pool:
        gone = list(pool.map(lambda which: _revoked(*which), [(one, "boss"), (two, "second")]))
    assert sum(gone) == 1
    one.keyring.refresh()
    two.keyring.refresh()
    assert one.keyring.records() == two.keyring.records()
    assert len(one.keyring.records()) == 1


def _made(access: AccessControl, name: str) -> bool:
    try:
        access.keyring.create(name, ADMIN, None, KeyLimits(), "")
    except KeyConflict:
        return False
    return True


def _revoked(access: AccessControl, name: str) -> bool:
    try:
        access.keyring.revoke(name)
    except LorryError:
        return False
    return True


def test_the_audit_of_all_servers_is_one(servers: tuple[Server, Server], tmp_path: Path) -> None:
    (one, first), (two, second) = servers
    one.keyring.create("boss", ADMIN, None, KeyLimits(), "")
    first.add("a", upload(save_adapter(tmp_path / "0", 0)), description="of \u0000 it")
    second.add("a", upload(save_adapter(tmp_path / "1", 1)), replace=True)
    first.remove("a")

    def told(access: AccessControl) -> list[tuple[str, str]]:
        entries: list[AuditEntry] = access.audit.page(limit=10)
        return [(entry.kind, entry.action) for entry in entries]

    expected = [
        ("adapter", "removed"),
        ("adapter", "replaced"),
        ("adapter", "added"),
        ("key", "created"),
    ]
    assert told(one) == told(two) == expected
    (entry,) = two.audit.page(limit=1)
    assert entry.at is not None and entry.at.utcoffset() is not None


def test_without_the_database_keys_are_known_and_not_changed(
    servers: tuple[Server, Server], postgres: Postgres
) -> None:
    (one, _), (two, _) = servers
    _, text = one.keyring.create("boss", ADMIN, None, KeyLimits(), "")
    wait_until(lambda: two.keyring.asks)
    postgres.stop()
    try:
        assert two.keyring.find(text.encode()) is not None
        with pytest.raises(CatalogUnavailable):
            two.keyring.create("x", UPLOAD, None, KeyLimits(), "")
        assert two.keyring.find(text.encode()) is not None
    finally:
        postgres.start()
    two.keyring.create("x", UPLOAD, None, KeyLimits(), "")
    wait_until(lambda: len(one.keyring.records()) == 2)


def test_the_tables_are_what_the_migrations_make(catalog_url: str) -> None:
    assert not has_keys(Path("/nowhere"), catalog_url)
    database = SharedAccess(catalog_url)
    with database.reading() as connection:
        context = MigrationContext.configure(
            connection, opts={"version_table": SCHEMA.version_table}
        )
        assert compare_metadata(context, metadata) == []
    database.close()


def test_newer_keys_are_refused_by_name(servers: tuple[Server, Server], catalog_url: str) -> None:
    servers[0][0].keyring.create("boss", ADMIN, None, KeyLimits(), "")
    assert has_keys(Path("/nowhere"), catalog_url)
    with psycopg.connect(catalog_url) as admin:
        admin.execute("UPDATE access_version SET version_num = '9999'")
    with pytest.raises(HomeUnusable, match="written by a newer Lorry"):
        SharedAccess(catalog_url)
