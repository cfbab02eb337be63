"""The file of keys and of the audit: made, migrated, refused."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from lorry.access import access_database
from lorry.access.access_control import AccessControl
from lorry.access.access_database import FILE, AccessFile, has_keys
from lorry.access.access_tables import SCHEMA, metadata
from lorry.access.api_key import (
    KeyLimits,
    KeyRecord,
    Scope,
    check_pattern,
    id_in,
    new_id,
    new_secret,
)
from lorry_adapters.errors import HomeUnusable
from lorry_adapters.registry.registry import Registry
from support.adapter_files import layout

ADMIN = frozenset({Scope.ADMIN})


def opened(home: Path) -> tuple[AccessControl, Registry]:
    access = AccessControl(None)
    registry = Registry(
        home,
        layout(),
        max_rank=8,
        max_upload=1 << 20,
        max_host_bytes=1 << 20,
        policy=access.policy,
    )
    access.open(home, registry)
    return access, registry


def test_the_tables_are_what_the_migrations_make(tmp_path: Path) -> None:
    database = AccessFile(tmp_path / FILE)
    with database.reading() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": "access_version"})
        assert compare_metadata(context, metadata) == []
    database.close()
    config = Config()
    folder = Path(access_database.__file__).with_name("migrations")
    config.set_main_option("script_location", str(folder))
    assert ScriptDirectory.from_config(config).get_heads() == [SCHEMA.head]


def test_a_home_without_the_file_gets_one_and_keeps_its_keys(tmp_path: Path) -> None:
    home = tmp_path / "home"
    registry = Registry(home, layout(), max_rank=8, max_upload=1 << 20, max_host_bytes=1 << 20)
    registry.close()
    assert not has_keys(home)
    access, registry = opened(home)
    assert not has_keys(home) and not access.keyring.asks
    limits = KeyLimits(max_rank=4, max_scale=0.5)
    record, text = access.keyring.create("boss", ADMIN, None, KeyLimits(), "")
    team, _ = access.keyring.create("t", frozenset({Scope.UPLOAD}), ["a-*"], limits, "of a team")
    access.close()
    registry.close()
    assert has_keys(home)
    access, registry = opened(home)
    assert access.keyring.find(text.encode()) == record
    assert access.keyring.get("t") == team
    assert access.keyring.records() == (record, team)
    access.close()
    registry.close()


def test_a_newer_file_is_refused_by_name(tmp_path: Path) -> None:
    AccessFile(tmp_path / FILE).close()
    with closing(sqlite3.connect(tmp_path / FILE)) as db:
        db.execute("UPDATE access_version SET version_num = '0099'")
        db.commit()
    with pytest.raises(HomeUnusable, match="written by a newer Lorry"):
        AccessFile(tmp_path / FILE)


def test_half_a_migration_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from alembic import op

    def fail(*given: object, **more: object) -> None:
        raise RuntimeError("in the middle")

    with monkeypatch.context() as broken:
        broken.setattr(op, "create_index", fail)
        with pytest.raises(RuntimeError):
            AccessFile(tmp_path / FILE)
    AccessFile(tmp_path / FILE).close()


@pytest.mark.parametrize(
    "spoil", [lambda old: b"x" * 8192, lambda old: old[:4096] + b"\xff" * 8192]
)
def test_a_damaged_file_stops_the_start(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    """It is not taken for a server without keys."""
    home = tmp_path / "home"
    access, registry = opened(home)
    access.keyring.create("boss", ADMIN, None, KeyLimits(), "")
    access.close()
    registry.close()
    file = home / FILE
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(HomeUnusable, match="restore the file from a backup"):
        opened(home)
    with pytest.raises(HomeUnusable):
        has_keys(home)


def test_a_file_deleted_under_a_server_is_noticed(tmp_path: Path) -> None:
    access, registry = opened(tmp_path / "home")
    (tmp_path / "home" / FILE).unlink()
    assert FILE in (registry.storage.trouble() or "")
    with pytest.raises(HomeUnusable):
        access.keyring.create("boss", ADMIN, None, KeyLimits(), "")
    assert not access.keyring.asks
    access.close()
    registry.close()


def test_keys_have_256_random_bits_and_an_id() -> None:
    id = new_id()
    made = {new_secret(id) for _ in range(100)}
    assert len(made) == 100
    for text in made:
        assert id_in(text.encode()) == id
        assert len(bytes.fromhex(text.rpartition("-")[2])) == 32
    for text in (b"", b"lorry", b"lorry-1-2", b"other-000000000000-0", b"\xff-\xfe-\xfd"):
        assert id_in(text) is None


@pytest.mark.parametrize(
    ("patterns", "seen", "hidden"),
    [
        (None, ["a", "legal"], []),
        ((), [], ["a"]),
        (("legal",), ["legal"], ["legal-a", "lega", "Legal"]),
        (("legal-*", "x"), ["legal-", "legal-a", "x"], ["legal", "xx"]),
        (("*",), ["a"], []),
        (("org/*", "base:a"), ["org/a", "org/a/b", "base:a"], ["org", "orga", "base:ab"]),
    ],
)
def test_lists_of_adapters(
    patterns: tuple[str, ...] | None, seen: list[str], hidden: list[str]
) -> None:
    key = KeyRecord("0" * 12, "k", ADMIN, patterns)
    assert all(key.sees(name) for name in seen)
    assert not any(key.sees(name) for name in hidden)
    for pattern in patterns or ():
        assert check_pattern(pattern) == pattern


@pytest.mark.parametrize(
    "pattern", ["", "**", "*a", "a*b", "a b", "a//*", "/*", "a@1*", "-*", "a/"]
)
def test_bad_patterns(pattern: str) -> None:
    with pytest.raises(ValueError):
        check_pattern(pattern)


def test_a_file_of_the_first_version_is_migrated_with_its_keys(tmp_path: Path) -> None:
    home = tmp_path / "home"
    access, registry = opened(home)
    record, text = access.keyring.create("boss", ADMIN, None, KeyLimits(), "")
    access.close()
    registry.close()
    with closing(sqlite3.connect(home / FILE)) as db:
        db.execute("DROP TABLE access_state")
        db.execute("UPDATE access_version SET version_num = '0001'")
        db.commit()
    access, registry = opened(home)
    assert access.keyring.find(text.encode()) == record
    access.close()
    registry.close()
