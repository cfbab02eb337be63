"""The registry with real files and a real catalog; only the base model is a layout."""

import math
from pathlib import Path
from typing import Any

import pytest

from lorry_adapters.errors import (
    AdapterConflict,
    AdapterDisabled,
    DigestMismatch,
    InvalidAdapter,
    InvalidAdapterName,
    InvalidScale,
    InvalidSelection,
    Remedy,
    StorageFull,
    UnknownAdapter,
)
from lorry_adapters.registry.blobs import digest_of
from lorry_adapters.registry.record import AdapterChoice
from lorry_adapters.registry.registry import Registry
from support.adapter_files import save_adapter, upload
from support.registries import Files, Open, acquire, blobs

# Adding


def test_added_is_listed_and_can_be_used(registry: Registry, files: Files, home: Path) -> None:
    record, created = registry.add("legal", upload(files(1)), scale=0.5, description="contracts")
    assert created
    assert registry.get("legal") == record
    assert registry.records() == (record,)
    assert (record.scale, record.enabled, record.pinned) == (0.5, True, False)
    version = record.current
    assert record.versions == (version,)
    assert (version.version, version.rank, version.peft_type) == (1, 2, "LORA")
    assert version.target_modules == ("down_proj", "q_proj")
    assert version.digest == digest_of(files(1))
    assert blobs(home) == {version.digest}

    lease = acquire(registry, "legal")
    (ref,) = lease.refs
    assert (ref.name, ref.version, ref.digest, ref.scale) == ("legal", 1, version.digest, 0.5)
    weights = registry.weights(ref.digest)
    assert weights.digest == ref.digest
    assert len(weights.modules) == 2
    assert registry.in_host_cache(ref.digest)
    assert registry.weights(ref.digest) is weights
    lease.release()
    assert registry.open_leases() == 0


def test_the_source_files_are_left_alone(registry: Registry, files: Files) -> None:
    before = digest_of(files(1))
    registry.add("legal", upload(files(1)))
    assert digest_of(files(1)) == before


def test_the_same_name_and_content_is_nothing_new(registry: Registry, files: Files) -> None:
    record, _ = registry.add("legal", upload(files(1)))
    again, created = registry.add("legal", upload(files(1)), scale=3.0, enabled=False)
    assert not created
    assert again == record == registry.get("legal")


def test_other_content_needs_replace(registry: Registry, files: Files, home: Path) -> None:
    first, _ = registry.add("legal", upload(files(1)), scale=0.5, pinned=True)
    with pytest.raises(AdapterConflict, match="other content"):
        registry.add("legal", upload(files(2)))
    assert registry.get("legal") == first
    assert blobs(home) == {first.current.digest}

    second, created = registry.add("legal", upload(files(2)), replace=True, description="new")
    assert created
    assert second.current.version == 2
    assert second.versions == (first.current, second.current)
    assert (second.scale, second.pinned, second.description) == (0.5, True, "new")
    assert second.created_at == first.created_at
    with pytest.raises(AdapterConflict, match="as version 1"):
        registry.add("legal", upload(files(1)))


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a//b",
        "/a",
        "a/",
        "a:",
        "a/.b",
        "b/content",
        "../up",
        ".hidden",
        "-x",
        "_x",
        "a b",
        "a\n",
        "a@2",
        "é",
        "a" * 129,
        "smol",
        "a\0",
    ],
)
def test_bad_names(registry: Registry, files: Files, name: str) -> None:
    with pytest.raises(InvalidAdapterName):
        registry.add(name, upload(files(1)))
    assert registry.records() == ()


@pytest.mark.parametrize(
    "name",
    ["a", "9", "A.b_c-d", "a" * 128, "smol2", "Smol", "org/name", "a:b", "a/b:c/d", "content"],
)
def test_good_names(registry: Registry, files: Files, name: str) -> None:
    registry.add(name, upload(files(1)))
    assert acquire(registry, name).refs[0].name == name


BAD_SCALES: list[Any] = [math.nan, math.inf, -math.inf, 17, -16.001, 10**400, True, "1", [1.0]]


@pytest.mark.parametrize("scale", BAD_SCALES)
def test_bad_scales(registry: Registry, files: Files, scale: Any) -> None:
    with pytest.raises(InvalidScale):
        registry.add("legal", upload(files(1)), scale=scale)
    assert registry.records() == ()
    registry.add("legal", upload(files(1)))
    with pytest.raises(InvalidScale):
        registry.patch("legal", scale=scale)
    with pytest.raises(InvalidScale, match="'legal'"):
        registry.acquire([AdapterChoice("legal", scale=scale)])
    assert registry.get("legal").scale == 1.0
    assert registry.open_leases() == 0


@pytest.mark.parametrize("scale", [0, -16, 16, 0.5])
def test_good_scales(registry: Registry, files: Files, scale: float) -> None:
    registry.add("legal", upload(files(1)))
    lease = registry.acquire([AdapterChoice("legal", scale=scale)])
    assert lease.refs[0].scale == scale
    assert type(lease.refs[0].scale) is float
    assert registry.patch("legal", scale=scale).scale == scale


def test_an_adapter_that_does_not_fit_leaves_nothing(
    registry: Registry, tmp_path: Path, home: Path
) -> None:
    wrong = save_adapter(tmp_path / "wrong", 1, hidden=7)
    with pytest.raises(InvalidAdapter):
        registry.add("legal", upload(wrong))
    with pytest.raises(InvalidAdapter, match="rank"):
        registry.add("legal", upload(save_adapter(tmp_path / "high", 1, rank=9)))
    assert registry.records() == ()
    assert blobs(home) == set()
    assert list((home / "staging").iterdir()) == []


def test_staging_is_where_uploads_come_in(registry: Registry, home: Path) -> None:
    with registry.staging() as folder:
        assert folder.parent == home / "staging"
        (folder / "upload.zip").write_bytes(b"half")
    assert not folder.exists()


def test_no_room_for_the_catalog_leaves_nothing(
    registry: Registry, files: Files, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone: list[str] = []
    registry.subscribe(gone.append)
    registry._ledger._catalog._db.execute("PRAGMA max_page_count = 1")
    with pytest.raises(StorageFull):
        registry.add("legal", upload(files(1)), description="x" * 100_000)
    assert registry.records() == ()
    assert blobs(home) == set()
    registry._ledger._catalog._db.execute("PRAGMA max_page_count = 100000")
    registry.add("legal", upload(files(1)))


# Versions


def test_put_makes_the_next_version(registry: Registry, files: Files) -> None:
    with pytest.raises(UnknownAdapter):
        registry.put("legal", upload(files(1)))
    first, _ = registry.add("legal", upload(files(1)))
    second = registry.put("legal", upload(files(2)))
    assert [v.version for v in second.versions] == [1, 2]
    assert second.current.version == 2
    assert registry.put("legal", upload(files(2))) == second
    third = registry.put("legal", upload(files(1)))
    assert (third.current.version, third.current.digest) == (3, first.current.digest)


def test_compare_and_swap(registry: Registry, files: Files) -> None:
    first, _ = registry.add("legal", upload(files(1)))
    second = registry.put("legal", upload(files(2)), if_match=first.current.digest)
    with pytest.raises(DigestMismatch, match="version 2"):
        registry.put("legal", upload(files(3)), if_match=first.current.digest)
    with pytest.raises(DigestMismatch):
        registry.patch("legal", scale=2, if_match=first.current.digest)
    assert registry.get("legal") == second


def test_rolling_back_and_forward(registry: Registry, files: Files, reopen: Open) -> None:
    registry.add("legal", upload(files(1)))
    registry.put("legal", upload(files(2)))
    back = registry.patch("legal", version=1)
    assert back.current.version == 1
    assert acquire(registry, "legal").refs[0].version == 1
    assert registry.acquire([AdapterChoice("legal", version=2)]).refs[0].version == 2
    with pytest.raises(UnknownAdapter, match=r"no version 3; it has 1, 2"):
        registry.patch("legal", version=3)
    with pytest.raises(UnknownAdapter, match="no version 3"):
        registry.acquire([AdapterChoice("legal", version=3)])
    assert reopen().get("legal").current.version == 1


def test_removing_a_version(registry: Registry, files: Files, home: Path, reopen: Open) -> None:
    first, _ = registry.add("legal", upload(files(1)))
    second = registry.put("legal", upload(files(2)))
    with pytest.raises(AdapterConflict, match="version 2 of adapter 'legal' is current"):
        registry.remove("legal", version=2)
    with pytest.raises(UnknownAdapter):
        registry.remove("legal", version=7)
    registry.remove("legal", version=1)
    assert registry.get("legal").versions == (second.current,)
    assert blobs(home) == {second.current.digest}

    registry.put("legal", upload(files(1)))
    registry.patch("legal", version=2)
    registry.remove("legal", version=3)
    registry = reopen()
    assert registry.put("legal", upload(files(1))).current.version == 4
    registry.remove("legal", version=2)
    registry.remove("legal", version=4)
    with pytest.raises(UnknownAdapter):
        registry.get("legal")
    assert blobs(home) == set()
    assert registry.add("legal", upload(files(1)))[0].current.version == 1
    assert first.current.version == 1


# Acquiring


def test_several_at_once_or_none(registry: Registry, files: Files) -> None:
    for seed in (1, 2):
        registry.add(f"a{seed}", upload(files(seed)), scale=seed)
    lease = registry.acquire([AdapterChoice("a2", scale=-1.5), AdapterChoice("a1")])
    assert [(ref.name, ref.scale) for ref in lease.refs] == [("a2", -1.5), ("a1", 1.0)]
    lease.release()
    with pytest.raises(UnknownAdapter, match="'a3'"):
        acquire(registry, "a1", "a2", "a3")
    assert registry.open_leases() == 0
    # Nothing was counted on a1 and a2: they go at once.
    gone: list[str] = []
    registry.subscribe(gone.append)
    registry.remove("a1")
    registry.remove("a2")
    assert len(gone) == 2


def test_no_adapter_is_a_lease_too(registry: Registry) -> None:
    lease = registry.acquire([])
    assert lease.refs == ()
    lease.release()


def test_too_many_or_the_same_twice(registry: Registry, files: Files) -> None:
    for name in ("one", "two"):
        registry.add(name, upload(files(1)))
    with pytest.raises(InvalidSelection, match="9 adapters"):
        acquire(registry, *["one"] * 9)
    with pytest.raises(InvalidSelection, match="'one' is given twice"):
        acquire(registry, "one", "one")
    with pytest.raises(InvalidSelection, match="'one' and 'two' have the same content"):
        acquire(registry, "one", "two")
    assert registry.open_leases() == 0


def test_disabled(registry: Registry, files: Files, reopen: Open) -> None:
    registry.add("legal", upload(files(1)))
    running = acquire(registry, "legal")
    registry.patch("legal", enabled=False)
    with pytest.raises(AdapterDisabled, match="'legal' is disabled") as caught:
        acquire(registry, "legal")
    assert (caught.value.message.remedy, caught.value.message.facts["name"]) == (
        Remedy.ENABLE,
        "legal",
    )
    assert registry.weights(running.refs[0].digest)
    running.release()
    registry = reopen()
    with pytest.raises(AdapterDisabled):
        acquire(registry, "legal")
    registry.patch("legal", enabled=True)
    acquire(registry, "legal")


def test_requests_keep_what_they_started_with(registry: Registry, files: Files) -> None:
    first, _ = registry.add("legal", upload(files(1)), scale=2.0)
    lease = acquire(registry, "legal")
    registry.patch("legal", scale=-1)
    registry.put("legal", upload(files(2)))
    assert lease.refs[0].scale == 2.0
    assert registry.weights(lease.refs[0].digest).digest == first.current.digest
