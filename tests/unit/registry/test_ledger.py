"""A catalog that is lost, in any way, costs no adapter, and nothing that was removed returns."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from lorry_adapters.errors import HomeUnusable, Problem, Remedy
from lorry_adapters.registry.record import AdapterRecord, VersionRecord
from lorry_adapters.registry.registry import Registry
from support.adapter_files import upload
from support.registries import DAMAGES, Files, Open, acquire, blobs, copy_home, missing

Damage = Callable[[Path], None]


@pytest.fixture
def full(registry: Registry, files: Files) -> Registry:
    """Of every state something, and something that was removed."""
    registry.add("plain", upload(files(1)))
    registry.add("Plain", upload(files(2)), scale=-0.5, enabled=False, description="für Müller 📜")
    registry.add("versions", upload(files(1)), pinned=True)
    registry.add("versions", upload(files(3)), replace=True)
    registry.add("versions", upload(files(4)), replace=True)
    registry.patch("versions", version=1, scale=2.0)
    registry.remove("versions", version=3)
    registry.add("removed", upload(files(5)))
    registry.remove("removed")
    return registry


def last_number(registry: Registry, files: Files) -> int:
    return registry.put("versions", upload(files(9))).current.version


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("killed", [False, True])
def test_a_lost_catalog_costs_nothing(
    full: Registry, home: Path, reopen: Open, files: Files, damage: Damage, killed: bool
) -> None:
    expected, stored = full.records(), blobs(home)
    if killed:
        # As it lies there while the server runs, its log not written back.
        copy_home(home, home.with_name("killed"))
        full.close()
        shutil.rmtree(home)
        home.with_name("killed").rename(home)
    else:
        full.close()
    damage(home / "catalog.sqlite3")
    again = reopen()
    assert again.records() == expected
    assert blobs(home) == stored
    assert all(again.why_broken(record.current.digest) is None for record in expected)
    lease = acquire(again, "versions")
    assert again.weights(lease.refs[0].digest).digest == lease.refs[0].digest
    lease.release()
    again = reopen()
    assert again.records() == expected
    assert again.story() == ()
    assert last_number(again, files) == 4


def test_the_start_says_what_it_made_again(full: Registry, home: Path, reopen: Open) -> None:
    full.close()
    (home / "catalog.sqlite3").write_bytes(b"")
    (line,) = reopen().story()
    assert "catalog was empty or missing: 3 adapters were restored" in line
    assert reopen().story() == ()


def test_what_is_damaged_is_kept(full: Registry, home: Path, reopen: Open) -> None:
    full.close()
    (home / "catalog.sqlite3").write_bytes(b"no catalog " * 1000)
    (line,) = reopen().story()
    (kept,) = home.glob("catalog.sqlite3.damaged-*")
    assert kept.read_bytes() == b"no catalog " * 1000
    assert kept.name in line


def test_a_catalog_of_a_newer_server_is_not_damaged(
    full: Registry, home: Path, reopen: Open
) -> None:
    full.close()
    with sqlite3.connect(home / "catalog.sqlite3") as db:
        db.execute("PRAGMA user_version = 1000")
    db.close()
    with pytest.raises(HomeUnusable, match="newer Lorry"):
        reopen()
    assert not list(home.glob("catalog.sqlite3.damaged-*"))


def test_a_value_that_is_none_is_damage(full: Registry, home: Path, reopen: Open) -> None:
    """Every page is whole, and a list of modules is none."""
    expected = full.records()
    full.close()
    with sqlite3.connect(home / "catalog.sqlite3") as db:
        db.execute("UPDATE contents SET target_modules = '[\"q_pr'")
    db.close()
    assert reopen().records() == expected
    assert list(home.glob("catalog.sqlite3.damaged-*"))


def test_a_catalog_from_an_old_backup(
    full: Registry, home: Path, reopen: Open, files: Files, tmp_path: Path
) -> None:
    """It lacks what was added since, and has what was removed."""
    full.close()
    shutil.copy(home / "catalog.sqlite3", tmp_path / "backup")
    later = reopen()
    later.add("later", upload(files(6)))
    later.remove("Plain")
    later.remove("plain")
    expected = later.records()
    later.close()
    shutil.copy(tmp_path / "backup", home / "catalog.sqlite3")
    again = reopen()
    # The content of `plain` is still there, as `versions` has it too.
    assert again.records() == expected
    assert "was not up to date" in again.story()[0]


def test_what_was_removed_in_use_stays_removed(
    registry: Registry, home: Path, reopen: Open, files: Files
) -> None:
    """Its content is still there after a crash, and the catalog is one that knows it."""
    registry.add("gone", upload(files(1)))
    registry.add("stays", upload(files(2)))
    registry.close()
    backup = (home / "catalog.sqlite3").read_bytes()
    again = reopen()
    lease = acquire(again, "gone")
    again.remove("gone")
    copy_home(home, home.with_name("killed"))
    lease.release()
    again.close()
    shutil.rmtree(home)
    home.with_name("killed").rename(home)
    missing(home / "catalog.sqlite3")
    (home / "catalog.sqlite3").write_bytes(backup)
    assert [record.name for record in reopen().records()] == ["stays"]


def test_a_removal_as_the_last_change_before_an_old_backup(
    full: Registry, home: Path, reopen: Open, tmp_path: Path
) -> None:
    full.close()
    shutil.copy(home / "catalog.sqlite3", tmp_path / "backup")
    later = reopen()
    later.remove("Plain")
    later.close()
    shutil.copy(tmp_path / "backup", home / "catalog.sqlite3")
    assert {record.name for record in reopen().records()} == {"plain", "versions"}


@pytest.mark.parametrize("how", ["deleted", "emptied", "half", "list", "another's", "digest"])
def test_a_file_that_is_lost_is_written_again(
    full: Registry, home: Path, reopen: Open, how: str
) -> None:
    expected = full.records()
    full.close()
    file = next((home / "records").glob("plain-*.json"))
    text = file.read_text()
    if how == "deleted":
        file.unlink()
    elif how == "emptied":
        file.write_text("")
    elif how == "half":
        file.write_text(text[: len(text) // 2])
    elif how == "list":
        file.write_text("[]")
    elif how == "another's":
        file.write_text(text.replace('"plain"', '"other"'))
    else:
        file.write_text(text.replace("sha256:", "../../"))
    assert reopen().records() == expected
    value, before = json.loads(file.read_text()), json.loads(text)
    # Written anew: under the revision of now.
    assert value.pop("revision") >= before.pop("revision")
    assert value == before
    missing(home / "catalog.sqlite3")
    assert reopen().records() == expected


def test_one_damaged_file_and_no_catalog(
    full: Registry, home: Path, reopen: Open, files: Files
) -> None:
    """What nobody has any record of is kept, and becomes an adapter again when asked for."""
    expected, stored = full.records(), blobs(home)
    digest = full.get("Plain").current.digest
    full.close()
    file = next((home / "records").glob("Plain-*.json"))
    file.write_text("{")
    missing(home / "catalog.sqlite3")
    again = reopen()
    assert again.records() == tuple(one for one in expected if one.name != "Plain")
    assert blobs(home) == stored
    assert len(list((home / "records").glob("Plain-*.json.damaged-*"))) == 1
    assert [content.digest for content in again.unclaimed()] == [digest]
    found = again.story()[1]
    assert isinstance(found, Problem)
    assert (found.remedy, found.facts) == (Remedy.ADOPT, {"count": 1})
    record = again.recover(digest)
    assert record.name == f"recovered-{digest[7:19]}"
    assert record.current.digest == digest
    assert again.unclaimed() == ()
    assert reopen().get(record.name) == record


def test_a_home_from_before_there_were_files(
    full: Registry, home: Path, reopen: Open, files: Files
) -> None:
    expected = full.records()
    full.close()
    shutil.rmtree(home / "records")
    with sqlite3.connect(home / "catalog.sqlite3") as db:
        db.execute("DROP TABLE home")
        db.execute("ALTER TABLE contents DROP COLUMN words")
        db.execute("ALTER TABLE adapters DROP COLUMN rules")
        db.execute("PRAGMA user_version = 3")
    db.close()
    again = reopen()
    assert again.records() == expected
    assert again.storage.ledger.remembers
    again.close()
    missing(home / "catalog.sqlite3")
    again = reopen()
    assert again.records() == expected
    assert again.storage.ledger.remembers
    assert last_number(again, files) == 4


def test_a_home_without_any_record(full: Registry, home: Path, reopen: Open, files: Files) -> None:
    """Of an older server, its catalog lost: nothing is deleted, however often it starts."""
    stored = blobs(home)
    full.close()
    shutil.rmtree(home / "records")
    missing(home / "catalog.sqlite3")
    for _ in range(3):
        again = reopen(keep_unclaimed=timedelta())
        assert again.records() == ()
        assert blobs(home) == stored
    assert {content.digest for content in again.unclaimed()} == stored
    again.recover(min(stored), "one")
    assert again.get("one").current.digest == min(stored)


def test_files_of_no_change_are_swept_away(full: Registry, home: Path, reopen: Open) -> None:
    expected = full.records()
    full.close()
    (home / "records" / "plain-0.json.new").write_text("{")
    assert reopen().records() == expected
    assert not list((home / "records").glob("*.new"))


def test_a_file_of_a_removal_that_was_not_finished(
    full: Registry, home: Path, reopen: Open
) -> None:
    file = next((home / "records").glob("plain-*.json"))
    text = file.read_text()
    full.remove("plain")
    full.close()
    file.write_text(text)
    assert "plain" not in {record.name for record in reopen().records()}
    assert not file.exists()


def test_a_file_says_all_there_is_to_know(full: Registry, home: Path) -> None:
    value = json.loads(next((home / "records").glob("versions-*.json")).read_text())
    assert (value["name"], value["current"], value["last_version"]) == ("versions", 1, 3)
    assert [one["version"] for one in value["versions"]] == [1, 2]
    # A field of later takes a default where a file of before has none (`sidecars`).
    of_a_version = {field.name for field in fields(VersionRecord)}
    assert value["versions"][0].keys() == of_a_version | {"stored_bytes"}
    of_an_adapter = {field.name for field in fields(AdapterRecord)}
    assert value.keys() == of_an_adapter | {"format", "revision", "last_version"}
    assert (value["scale"], value["pinned"], value["enabled"]) == (2.0, True, True)
    assert datetime.fromisoformat(value["updated_at"]) <= datetime.now(UTC)
