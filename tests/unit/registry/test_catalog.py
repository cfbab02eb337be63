import sqlite3
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from lorry_adapters.errors import HomeUnusable, StorageFull
from lorry_adapters.registry.catalog import (
    Catalog,
    StoredContent,
)
from lorry_adapters.registry.record import AdapterRecord, VersionRecord
from lorry_adapters.registry.schema import MIGRATIONS, SCHEMA_VERSION

NOW = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)


def digest(letter: str) -> str:
    return "sha256:" + letter * 64


def version(number: int, letter: str) -> VersionRecord:
    return VersionRecord(
        version=number,
        digest=digest(letter),
        peft_type="LORA",
        rank=8,
        target_modules=("k_proj", "q_proj"),
        parameters=1024,
        bytes=4096,
        base_model=None,
        created_at=NOW,
    )


def adapter(name: str, *versions: VersionRecord) -> AdapterRecord:
    return AdapterRecord(
        name=name,
        enabled=True,
        scale=1.0,
        pinned=False,
        description="",
        current=versions[-1],
        versions=versions,
        created_at=NOW,
        updated_at=NOW,
    )


def content(letter: str, layout: str = "L") -> StoredContent:
    return StoredContent(digest(letter), 4200, layout)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "catalog.sqlite3"


def test_everything_survives_closing(path: Path) -> None:
    catalog = Catalog(path)
    first = replace(
        adapter("legal", version(1, "a")),
        enabled=False,
        scale=-0.3,
        pinned=True,
        description="für Verträge 📜",
    )
    catalog.save(first, content("a"))
    second = replace(
        first, versions=(*first.versions, version(2, "b")), current=version(2, "b"), scale=0.0
    )
    catalog.save(second, content("b"))
    catalog.save(adapter("another", version(1, "a")), content("a"))
    catalog.close()

    again = Catalog(path)
    assert again.adapters() == (adapter("another", version(1, "a")), second)
    assert set(again.contents()) == {content("a"), content("b")}
    again.close()


def test_a_save_is_on_disk_when_it_returns(path: Path) -> None:
    catalog = Catalog(path)
    catalog.save(adapter("legal", version(1, "a")), content("a"))
    # A reader of its own, while the writer has neither closed nor checkpointed.
    with sqlite3.connect(path) as reader:
        assert reader.execute("SELECT name FROM adapters").fetchall() == [("legal",)]
    assert reader.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert catalog._db.execute("PRAGMA synchronous").fetchone() == (2,)
    catalog.close()


def test_numbers_are_not_reused_while_the_name_exists(path: Path) -> None:
    catalog = Catalog(path)
    assert catalog.next_version("legal") == 1
    both = adapter("legal", version(1, "a"), version(2, "b"))
    catalog.save(adapter("legal", version(1, "a")), content("a"))
    catalog.save(both, content("b"))
    catalog.save(replace(both, current=version(1, "a"), versions=(version(1, "a"),)))
    assert catalog.next_version("legal") == 3
    catalog.close()

    again = Catalog(path)
    assert again.next_version("legal") == 3
    again.forget("legal")
    assert again.next_version("legal") == 1
    again.close()


def test_a_content_is_known_as_long_as_a_version_has_it(path: Path) -> None:
    catalog = Catalog(path)
    catalog.save(adapter("one", version(1, "a")), content("a"))
    catalog.save(adapter("two", version(1, "a")), content("a"))
    catalog.forget("one")
    assert catalog.contents() == (content("a"),)
    catalog.forget("two")
    assert catalog.contents() == ()
    assert catalog.adapters() == ()
    catalog.close()


def test_verified_again_on_another_base(path: Path) -> None:
    catalog = Catalog(path)
    catalog.save(adapter("one", version(1, "a")), content("a"))
    catalog.save_content(version(1, "a"), content("a", layout="M"))
    assert catalog.contents() == (content("a", layout="M"),)
    catalog.close()


def test_a_failed_change_leaves_what_was(path: Path) -> None:
    catalog = Catalog(path)
    before = adapter("legal", version(1, "a"))
    catalog.save(before, content("a"))
    # The new version's content is not given: the reference between the tables refuses it,
    # after the adapter's row was written already.
    with pytest.raises(HomeUnusable, match="FOREIGN KEY"):
        catalog.save(replace(before, scale=5.0, versions=(*before.versions, version(2, "b"))))
    assert catalog.adapters() == (before,)
    catalog.close()


def test_no_room(path: Path) -> None:
    catalog = Catalog(path)
    before = adapter("legal", version(1, "a"))
    catalog.save(before, content("a"))
    pages = catalog._db.execute("PRAGMA page_count").fetchone()[0]
    catalog._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StorageFull, match="free some"):
        catalog.save(replace(before, description="x" * 100_000))
    assert catalog.adapters() == (before,)
    catalog.save(replace(before, description="short"))
    catalog.close()


def test_a_newer_schema_is_refused(path: Path) -> None:
    Catalog(path).close()
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    db.close()
    with pytest.raises(HomeUnusable, match=r"newer Lorry.*upgrade") as refused:
        Catalog(path)
    assert str(path) in refused.value.message


def test_what_is_no_catalog_is_refused_by_its_path(path: Path) -> None:
    path.write_bytes(b"These are not the tables you are looking for. " * 100)
    with pytest.raises(HomeUnusable, match=r"catalog\.sqlite3 cannot be used.*backup"):
        Catalog(path)
    assert path.read_bytes().startswith(b"These are not")


def test_a_damaged_page_is_said_to_be_damage(path: Path) -> None:
    catalog = Catalog(path)
    catalog.save(adapter("legal", version(1, "a")), content("a"))
    catalog.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))
    catalog = Catalog(path)
    with pytest.raises(HomeUnusable, match="restore it from a backup"):
        catalog.adapters()
    catalog.close()


def test_a_full_disk_does_not_stop_a_removal(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = Catalog(path)
    catalog.save(adapter("one", version(1, "a")), content("a"))
    reserve = path.with_name("reserve")
    assert reserve.stat().st_size > 100_000
    drop = catalog._drop_unused_contents

    def full_until_the_reserve_is_given_up() -> None:
        if reserve.exists():
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise error
        drop()

    with monkeypatch.context() as patch:
        patch.setattr(catalog, "_drop_unused_contents", full_until_the_reserve_is_given_up)
        # It is not given up for more to store.
        with pytest.raises(StorageFull):
            catalog.save(adapter("two", version(1, "b")), content("b"))
        catalog.forget("one")
    assert catalog.adapters() == ()
    catalog.save(adapter("two", version(1, "b")), content("b"))
    assert reserve.exists()
    catalog.close()


def test_what_a_method_needs_survives_closing(path: Path) -> None:
    catalog = Catalog(path)
    special = replace(
        version(1, "a"),
        peft_type="PREFIX_TUNING",
        task_type="SEQ_CLS",
        virtual_tokens=20,
        invocation=(5, 6),
        scalable=False,
        warnings=("it may be meant otherwise", "twice"),
    )
    catalog.save(adapter("legal", special), content("a"))
    catalog.close()
    again = Catalog(path)
    assert again.adapters() == (adapter("legal", special),)
    again.save_content(replace(special, virtual_tokens=3), content("a"))
    assert again.adapters()[0].current.virtual_tokens == 3
    again.close()


def test_a_catalog_of_the_first_schema_is_carried_over(path: Path) -> None:
    """As it was written when every adapter was a LoRA for a causal language model."""
    with sqlite3.connect(path) as db:
        for statement in MIGRATIONS[0]:
            db.execute(statement)
        db.execute(
            "INSERT INTO adapters VALUES ('legal', 1, 4, 1, 0.5, 1, 'old', ?, ?)",
            (NOW.isoformat(), NOW.isoformat()),
        )
        db.execute(
            "INSERT INTO contents VALUES (?, 'LORA', 8, '[\"k_proj\", \"q_proj\"]', 1024, 4096,"
            " NULL, 4200, 'L')",
            (digest("a"),),
        )
        db.execute("INSERT INTO versions VALUES ('legal', 1, ?, ?)", (digest("a"), NOW.isoformat()))
        db.execute("PRAGMA user_version = 1")
    db.close()
    catalog = Catalog(path)
    old = replace(adapter("legal", version(1, "a")), scale=0.5, pinned=True, description="old")
    assert catalog.adapters() == (old,)
    (kept,) = catalog.adapters()
    assert (kept.current.task_type, kept.current.virtual_tokens) == ("CAUSAL_LM", 0)
    assert (kept.current.invocation, kept.current.scalable) == ((), True)
    assert kept.current.warnings == ()
    assert catalog.contents() == (content("a"),)
    assert catalog.next_version("legal") == 5
    catalog.save(replace(old, scale=2.0))
    catalog.close()
    again = Catalog(path)
    assert again.adapters()[0].scale == 2.0
    again.close()


def test_a_reserve_that_a_crash_cut_short_is_filled_up(path: Path) -> None:
    reserve = path.with_name("reserve")
    reserve.write_bytes(b"x" * 5)
    Catalog(path).close()
    assert reserve.stat().st_size > 100_000
