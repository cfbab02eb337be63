"""A home that is no longer there, or no longer the same, says so; what is in memory goes on."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lorry_adapters.errors import AdapterBroken, AdapterError, HomeUnusable
from lorry_adapters.registry.home import Home
from lorry_adapters.registry.registry import Registry
from support.adapter_files import upload
from support.registries import Files, Open, acquire

Break = Callable[[Path], object]


def replaced(home: Path) -> None:
    home.rename(home.with_name("moved"))
    shutil.copytree(home.with_name("moved"), home)


def catalog_replaced(home: Path) -> None:
    shutil.copy(home / "catalog.sqlite3", home / "other")
    (home / "other").rename(home / "catalog.sqlite3")


BREAKS: dict[str, tuple[Break, str]] = {
    "deleted": (shutil.rmtree, "the home folder .*home was deleted"),
    "moved": (lambda home: home.rename(home.with_name("moved")), "home was deleted"),
    "replaced": (replaced, "the home folder .*home was replaced"),
    "a file": (lambda home: (shutil.rmtree(home), home.write_text("")), "was replaced"),
    "catalog deleted": (lambda home: (home / "catalog.sqlite3").unlink(), r"sqlite3 was deleted"),
    "catalog replaced": (catalog_replaced, r"sqlite3 was replaced"),
    "records deleted": (lambda home: shutil.rmtree(home / "records"), "records was deleted"),
    "contents deleted": (lambda home: shutil.rmtree(home / "blobs"), "blobs was deleted"),
}


@pytest.mark.parametrize("how", BREAKS)
def test_nothing_is_changed_in_a_home_that_is_not_there(
    registry: Registry, home: Path, files: Files, how: str
) -> None:
    registry.add("loaded", upload(files(1)))
    registry.add("stored", upload(files(2)))
    lease = acquire(registry, "loaded")
    registry.weights(lease.refs[0].digest)
    assert registry.storage.trouble() is None
    records = registry.records()
    break_it, said = BREAKS[how]
    break_it(home)
    changes: list[Callable[[], object]] = [
        lambda: registry.add("new", upload(files(3))),
        lambda: registry.put("loaded", upload(files(3))),
        lambda: registry.patch("loaded", scale=0.5),
        lambda: registry.remove("loaded"),
        lambda: registry.unclaimed(),
    ]
    for change in changes:
        with pytest.raises(HomeUnusable, match=said):
            change()
    with pytest.raises(HomeUnusable, match=said), registry.staging():
        pass
    assert registry.records() == records
    trouble = registry.storage.trouble()
    assert trouble is not None and str(home) in trouble
    # What is in memory is served.
    other = acquire(registry, "loaded")
    assert registry.weights(other.refs[0].digest).digest == lease.refs[0].digest
    other.release()
    lease.release()


@pytest.mark.parametrize("how", ["catalog deleted", "catalog replaced", "records deleted"])
def test_the_next_start_mends_it(
    registry: Registry, home: Path, reopen: Open, files: Files, how: str
) -> None:
    registry.add("loaded", upload(files(1)), scale=0.25)
    expected = registry.records()
    BREAKS[how][0](home)
    again = reopen()
    assert again.storage.trouble() is None
    assert again.records() == expected
    again.add("new", upload(files(3)))


def test_what_cannot_be_read_now_is_not_broken_for_ever(
    registry: Registry, home: Path, files: Files
) -> None:
    """As when a disk is taken away for a while."""
    digest = registry.add("stored", upload(files(1)))[0].current.digest
    lease = acquire(registry, "stored")
    home.rename(home.with_name("away"))
    with pytest.raises(HomeUnusable, match="was deleted"):
        registry.weights(digest)
    with pytest.raises(AdapterBroken):
        registry.content("stored")
    home.with_name("away").rename(home)
    assert registry.storage.trouble() is None
    assert registry.weights(digest).digest == digest
    registry.add("new", upload(files(2)))
    lease.release()


@pytest.mark.parametrize("folder", ["staging", "expendable"])
def test_a_folder_that_nothing_is_missed_of_is_made_again(
    registry: Registry, home: Path, files: Files, folder: str
) -> None:
    shutil.rmtree(home / folder)
    registry.add("new", upload(files(1)))
    lease = acquire(registry, "new")
    registry.remove("new")
    lease.release()
    assert registry.storage.trouble() is None
    assert registry.unclaimed() == ()


def test_a_disk_that_fails_in_the_middle(
    registry: Registry, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(HomeUnusable, match="Input/output error"):
            registry.add("new", upload(files(1)))
    assert registry.records() == ()
    registry.add("new", upload(files(1)))


def test_a_source_that_went_away_is_not_the_homes_fault(registry: Registry, files: Files) -> None:
    gone = upload(files(1))
    assert gone.config is not None
    shutil.rmtree(gone.config.parent)
    with pytest.raises((OSError, AdapterError)) as raised:
        registry.add("new", gone)
    assert not isinstance(raised.value, HomeUnusable)


def test_a_disk_that_is_almost_full_is_told(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert registry.storage.warning() is None
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    warning = registry.storage.warning()
    assert warning is not None and "1000 bytes" in warning
    assert registry.storage.trouble() is None


def test_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Home(tmp_path / "home")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "cannot be written" in str(home.trouble())
    home.close()
