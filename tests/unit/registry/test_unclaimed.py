"""Stored contents that nobody has: kept for a while, deleted at a start, and only if sure."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from lorry_adapters.errors import (
    AdapterConflict,
    InvalidAdapter,
    InvalidAdapterName,
    UnknownAdapter,
)
from lorry_adapters.registry.blobs import Blobs, digest_of
from lorry_adapters.registry.registry import Registry
from lorry_adapters.registry.unclaimed_contents import UnclaimedContents
from support.adapter_files import layout, upload
from support.registries import WEIGHTS, Files, Open, acquire, blobs, copy_home

DAY = timedelta(days=1)
NOW = datetime(2026, 5, 4, 12, tzinfo=UTC)


@pytest.fixture
def store(home: Path, files: Files) -> Iterator[tuple[Blobs, str, str]]:
    """Two contents."""
    store = Blobs(home)
    digests = []
    for seed in (1, 2):
        with store.staging() as folder:
            for file in files(seed).iterdir():
                (folder / file.name).write_bytes(file.read_bytes())
            store.seal(folder)
            digests.append(digest_of(folder))
            store.publish(folder, digests[-1])
    yield store, *digests
    store.close()


def test_it_goes_when_it_was_seen_long_enough(home: Path, store: tuple[Blobs, str, str]) -> None:
    kept, owned, orphan = store
    starts = [timedelta(), DAY, 2 * DAY - timedelta(seconds=1)]
    for later in starts:
        (left,) = UnclaimedContents(home, kept, 2 * DAY).collect({owned}, NOW + later, sure=True)
        assert (left.digest, left.since, left.until) == (orphan, NOW, NOW + 2 * DAY)
    assert UnclaimedContents(home, kept, 2 * DAY).collect({owned}, NOW + 2 * DAY, sure=True) == ()
    assert kept.digests() == {owned}
    assert json.loads((home / "unclaimed.json").read_text()) == {}


def test_one_that_was_owned_meanwhile_begins_anew(
    home: Path, store: tuple[Blobs, str, str]
) -> None:
    kept, owned, orphan = store
    UnclaimedContents(home, kept, 2 * DAY).collect({owned}, NOW, sure=True)
    UnclaimedContents(home, kept, 2 * DAY).collect({owned, orphan}, NOW + DAY, sure=True)
    UnclaimedContents(home, kept, 2 * DAY).collect({owned}, NOW + 3 * DAY, sure=True)
    assert kept.digests() == {owned, orphan}


def test_nothing_goes_from_who_knows_nothing(home: Path, store: tuple[Blobs, str, str]) -> None:
    kept, owned, orphan = store
    for later in range(5):
        found = UnclaimedContents(home, kept, DAY).collect(set(), NOW + later * DAY, sure=True)
        assert {content.digest for content in found} == {owned, orphan}
        # An adapter without files is no knowledge of those that are there.
        UnclaimedContents(home, kept, DAY).collect(
            {f"sha256:{'0' * 64}"}, NOW + later * DAY, sure=True
        )
    assert kept.digests() == {owned, orphan}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"x": 1}', "\udcff", '{"%s": 5}'])
def test_a_list_that_is_damaged_deletes_nothing(
    home: Path, store: tuple[Blobs, str, str], text: str
) -> None:
    kept, owned, orphan = store
    text = text.replace("%s", orphan)
    (home / "unclaimed.json").write_bytes(text.encode(errors="surrogateescape"))
    (left,) = UnclaimedContents(home, kept, DAY).collect({owned}, NOW, sure=True)
    assert left.since == NOW


def test_a_clock_that_was_set_back(home: Path, store: tuple[Blobs, str, str]) -> None:
    kept, owned, _ = store
    UnclaimedContents(home, kept, DAY).collect({owned}, NOW + 1000 * DAY, sure=True)
    UnclaimedContents(home, kept, DAY).collect({owned}, NOW, sure=True)
    assert UnclaimedContents(home, kept, DAY).collect({owned}, NOW + DAY, sure=True) == ()


def test_a_removal_frees_its_space_at_once(registry: Registry, home: Path, files: Files) -> None:
    registry.add("stays", upload(files(1)))
    registry.add("goes", upload(files(2)))
    registry.remove("goes")
    assert blobs(home) == {registry.get("stays").current.digest}
    assert list((home / "expendable").iterdir()) == []


@pytest.mark.parametrize("stays", [True, False])
def test_what_was_removed_in_use_goes_at_the_start_after_a_crash(
    registry: Registry, home: Path, files: Files, stays: bool
) -> None:
    if stays:
        registry.add("stays", upload(files(1)))
    registry.add("goes", upload(files(2)))
    lease = acquire(registry, "goes")
    registry.remove("goes")
    assert lease.refs[0].digest in blobs(home)
    copy_home(home, home.with_name("crashed"))
    lease.release()
    again = Registry(
        home.with_name("crashed"), layout(), max_rank=8, max_upload=1 << 20, max_host_bytes=0
    )
    assert lease.refs[0].digest not in blobs(home.with_name("crashed"))
    assert again.unclaimed() == ()
    again.close()


def test_what_is_added_again_while_it_drains_is_kept(
    registry: Registry, home: Path, reopen: Open, files: Files
) -> None:
    registry.add("legal", upload(files(1)))
    lease = acquire(registry, "legal")
    registry.remove("legal")
    registry.add("again", upload(files(1)))
    assert list((home / "expendable").iterdir()) == []
    lease.release()
    copy_home(home, home.with_name("crashed"))
    again = Registry(
        home.with_name("crashed"), layout(), max_rank=8, max_upload=1 << 20, max_host_bytes=0
    )
    assert again.why_broken(again.get("again").current.digest) is None
    again.close()


def test_a_name_for_what_nobody_has(
    registry: Registry, home: Path, reopen: Open, files: Files
) -> None:
    registry.add("stays", upload(files(1)))
    registry.add("lost", upload(files(2)), scale=0.5)
    digest = registry.get("lost").current.digest
    registry.close()
    folder = home / "blobs" / digest.replace(":", "-")
    folder.rename(home / "elsewhere")
    again = reopen()
    again.remove("lost")
    (home / "elsewhere").rename(folder)
    again = reopen()
    (content,) = again.unclaimed()
    assert content.digest == digest
    assert content.bytes == sum(file.stat().st_size for file in folder.iterdir())
    with pytest.raises(UnknownAdapter, match="without an adapter"):
        again.recover(again.get("stays").current.digest, "x")
    with pytest.raises(AdapterConflict):
        again.recover(digest, "stays")
    with pytest.raises(InvalidAdapterName):
        again.recover(digest, "a/b" * 60)
    assert again.recover(digest, "found").current.digest == digest
    assert again.unclaimed() == ()
    lease = acquire(again, "found")
    assert again.weights(digest).digest == digest
    lease.release()


def test_what_was_changed_on_disk_is_no_adapter(
    registry: Registry, home: Path, files: Files
) -> None:
    digest = digest_of(files(3))
    folder = home / "blobs" / digest.replace(":", "-")
    files(3).rename(folder)
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (folder / WEIGHTS).write_bytes(content)
    with pytest.raises(InvalidAdapter, match="changed on disk"):
        registry.recover(digest)
    assert registry.records() == ()
