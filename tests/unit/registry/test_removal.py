"""What goes, what waits for the last lease, and what is there after a restart."""

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from lorry_adapters.errors import (
    AdapterBroken,
    HomeUnusable,
    InvalidAdapter,
    UnknownAdapter,
)
from lorry_adapters.registry import weight_loader
from lorry_adapters.registry.blobs import digest_of
from lorry_adapters.registry.registry import Registry
from support.adapter_files import layout, upload
from support.registries import Files, Open, acquire, blobs, damage

# Removing


def test_removal_waits_for_the_last_lease(registry: Registry, files: Files, home: Path) -> None:
    gone: list[str] = []
    registry.subscribe(gone.append)
    record, _ = registry.add("legal", upload(files(1)))
    digest = record.current.digest
    leases = [acquire(registry, "legal") for _ in range(2)]
    registry.weights(digest)
    registry.remove("legal")
    with pytest.raises(UnknownAdapter):
        acquire(registry, "legal")
    with pytest.raises(UnknownAdapter):
        registry.remove("legal")
    leases[0].release()
    leases[0].release()
    assert gone == []
    assert blobs(home) == {digest}
    assert registry.weights(digest).digest == digest
    leases[1].release()
    assert gone == [digest]
    assert blobs(home) == set()
    assert not registry.in_host_cache(digest)
    with pytest.raises(UnknownAdapter):
        registry.weights(digest)


def test_content_under_two_names_goes_with_the_second(
    registry: Registry, files: Files, home: Path
) -> None:
    gone: list[str] = []
    registry.subscribe(gone.append)
    record, created = registry.add("one", upload(files(1)))
    assert registry.add("two", upload(files(1)))[1]
    registry.remove("one")
    assert gone == []
    assert registry.weights(record.current.digest)
    registry.remove("two")
    assert gone == [record.current.digest]
    assert blobs(home) == set()
    assert created


def test_added_again_while_the_old_one_drains(registry: Registry, files: Files, home: Path) -> None:
    gone: list[str] = []
    registry.subscribe(gone.append)
    digest = registry.add("legal", upload(files(1)))[0].current.digest
    old = acquire(registry, "legal")
    registry.remove("legal")
    registry.add("other", upload(files(1)))
    old.release()
    assert gone == []
    assert blobs(home) == {digest}
    lease = acquire(registry, "other")
    assert registry.weights(digest)
    registry.remove("other")
    lease.release()
    assert gone == [digest]


def test_a_lease_after_closing_frees_nothing(
    registry: Registry, files: Files, home: Path, reopen: Open
) -> None:
    digest = registry.add("legal", upload(files(1)))[0].current.digest
    lease = acquire(registry, "legal")
    registry.remove("legal")
    registry.close()
    reopen().add("legal", upload(files(1)))
    lease.release()
    assert blobs(home) == {digest}


# Restarting


def test_everything_survives_a_restart(registry: Registry, files: Files, reopen: Open) -> None:
    registry.add("a", upload(files(1)), scale=0.3, enabled=False, description="ä")
    registry.add("b", upload(files(2)), pinned=True)
    registry.put("b", upload(files(3)))
    before = registry.records()
    registry = reopen()
    assert registry.records() == before
    lease = acquire(registry, "b")
    assert registry.weights(lease.refs[0].digest).digest == digest_of(files(3))


def test_two_servers_cannot_share_a_home(registry: Registry, home: Path) -> None:
    with pytest.raises(HomeUnusable, match="another server uses"):
        Registry(home, layout(), max_rank=8, max_upload=1, max_host_bytes=1)
    assert registry.records() == ()


def test_a_home_that_is_a_file(home: Path) -> None:
    home.write_text("")
    with pytest.raises(HomeUnusable, match="home"):
        Registry(home, layout(), max_rank=8, max_upload=1, max_host_bytes=1)


def test_a_refused_catalog_lets_go_of_the_home(registry: Registry, home: Path) -> None:
    registry.close()
    for _ in range(2):
        with sqlite3.connect(home / "catalog.sqlite3") as db:
            db.execute("PRAGMA user_version = 99")
        db.close()
        with pytest.raises(HomeUnusable, match="newer Lorry"):
            Registry(home, layout(), max_rank=8, max_upload=1, max_host_bytes=1)


@pytest.mark.parametrize("how", ["folder gone", "file gone", "truncated", "one bit"])
@pytest.mark.parametrize("restart", [True, False])
def test_damaged_files_are_broken_until_uploaded_again(
    registry: Registry, files: Files, reopen: Open, how: str, restart: bool
) -> None:
    for name, seed in (("bad", 1), ("good", 2)):
        registry.add(name, upload(files(seed)))
    record = registry.get("bad")
    damage(registry, "bad", how)
    if restart:
        registry = reopen()
    assert [r.name for r in registry.records()] == ["bad", "good"]

    def use(name: str) -> None:
        lease = acquire(registry, name)
        try:
            registry.weights(lease.refs[0].digest)
        finally:
            lease.release()

    for _ in range(2):
        with pytest.raises(AdapterBroken, match=r"'bad' \(version 1\).*upload it again"):
            use("bad")
    # Found once, it is refused before a request is accepted.
    with pytest.raises(AdapterBroken):
        acquire(registry, "bad")
    use("good")

    assert registry.add("bad", upload(files(1))) == (record, False)
    use("bad")
    registry.remove("bad")
    use("good")


def test_a_disk_error_at_load_is_not_remembered(
    registry: Registry, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = registry.add("legal", upload(files(1)))[0].current.digest

    def fail(*args: object) -> None:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(weight_loader, "load", fail)
        with pytest.raises(AdapterBroken, match="Too many open files"):
            registry.weights(digest)
    lease = acquire(registry, "legal")
    assert registry.weights(digest)
    lease.release()


def test_another_base_breaks_what_does_not_fit_and_nothing_else(
    registry: Registry, files: Files, reopen: Open
) -> None:
    registry.add("legal", upload(files(1)))
    registry = reopen(layout("big", hidden=12))
    assert registry.get("legal").name == "legal"
    with pytest.raises(AdapterBroken, match="does not fit the base model big"):
        acquire(registry, "legal")
    with pytest.raises(InvalidAdapter):
        registry.add("legal", upload(files(1)))
    registry = reopen(layout("same shapes"))
    lease = acquire(registry, "legal")
    assert registry.weights(lease.refs[0].digest)


def test_another_base_that_fits_is_remembered(
    registry: Registry, files: Files, reopen: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from lorry_adapters.registry import startup_check

    registry.add("legal", upload(files(1)))
    inspected: list[Path] = []
    inspect = startup_check.inspect

    def note(folder: Path, *rest: Any) -> Any:
        inspected.append(folder)
        return inspect(folder, *rest)

    monkeypatch.setattr(startup_check, "inspect", note)
    reopen()
    assert inspected == []
    deeper = replace(layout(), num_layers=2)
    reopen(deeper)
    assert len(inspected) == 1
    acquire(reopen(deeper), "legal")
    assert len(inspected) == 1


def test_a_lower_rank_limit_breaks_what_is_above(
    registry: Registry, files: Files, reopen: Open
) -> None:
    registry.add("legal", upload(files(1)))
    with pytest.raises(AdapterBroken, match="rank 2 is above this server's limit of 1"):
        acquire(reopen(max_rank=1), "legal")
    acquire(reopen(max_rank=2), "legal")


def test_a_stored_name_that_the_base_took(registry: Registry, files: Files, reopen: Open) -> None:
    registry.add("legal", upload(files(1)))
    registry = reopen(reserved_names=frozenset({"legal"}))
    with pytest.raises(AdapterBroken, match="base model's name"):
        acquire(registry, "legal")
    registry.remove("legal")


def test_rolling_to_a_broken_version_is_refused(
    registry: Registry, files: Files, reopen: Open
) -> None:
    registry.add("legal", upload(files(1)))
    damage(registry, "legal", "folder gone")
    registry.put("legal", upload(files(2)))
    registry = reopen()
    with pytest.raises(AdapterBroken, match="cannot go to version 1"):
        registry.patch("legal", version=1)
    assert registry.get("legal").current.version == 2


# Host cache


def test_pins_follow_the_current_version(registry: Registry, files: Files, reopen: Open) -> None:
    registry = reopen(max_host_bytes=1)
    registry.add("legal", upload(files(1)), pinned=True)
    first = registry.get("legal").current.digest
    registry.weights(first)
    assert registry.in_host_cache(first)
    second = registry.put("legal", upload(files(2))).current.digest
    registry.weights(second)
    assert (registry.in_host_cache(first), registry.in_host_cache(second)) == (False, True)
    registry.patch("legal", pinned=False)
    assert not registry.in_host_cache(second)
    stats = registry.host_cache_stats()
    assert (stats.entries, stats.bytes, stats.capacity_bytes) == (0, 0, 1)
    registry.patch("legal", pinned=True)
    registry = reopen(max_host_bytes=1)
    registry.weights(second)
    assert registry.in_host_cache(second)


def test_a_pin_goes_with_its_adapter(reopen: Open, files: Files) -> None:
    registry = reopen(max_host_bytes=1)
    digest = registry.add("pinned", upload(files(1)), pinned=True)[0].current.digest
    registry.add("plain", upload(files(1)))
    registry.weights(digest)
    assert registry.in_host_cache(digest)
    registry.remove("pinned")
    assert not registry.in_host_cache(digest)
