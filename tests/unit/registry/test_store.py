"""Contents in an object store, with the home folder as their cache. The store is a folder here."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorry_adapters.errors import (
    AdapterBroken,
    AdapterConflict,
    HomeUnusable,
    StorageFull,
    StoreUnavailable,
)
from lorry_adapters.registry import object_store
from lorry_adapters.registry.blobs import digest_of
from lorry_adapters.registry.cached_blobs import CachedBlobs
from lorry_adapters.registry.object_store import COMPLETE, ObjectStore
from lorry_adapters.registry.registry import Registry
from support.adapter_files import upload
from support.patience import wait_until
from support.registries import (
    WEIGHTS,
    Files,
    Open,
    acquire,
    blobs,
    leave_cache,
    left_in_store,
    with_lease,
)


def complete(bucket: Path) -> set[str]:
    return {path.parent.name.replace("-", ":") for path in bucket.glob("*/" + COMPLETE)}


def marks(home: Path) -> list[str]:
    return [path.name for path in (home / "expendable-in-store").iterdir()]


def test_an_upload_is_in_both_places(
    stored: Callable[..., Registry], files: Files, home: Path, bucket: Path
) -> None:
    registry = stored()
    record, _ = registry.add("a", upload(files(1)))
    digest = record.current.digest
    assert blobs(home) == complete(bucket) == {digest}
    assert marks(home) == []
    sizes = json.loads((bucket / digest.replace(":", "-") / COMPLETE).read_text())
    assert sizes == {file.name: file.stat().st_size for file in files(1).iterdir()}


def test_what_is_not_here_is_fetched(
    stored: Callable[..., Registry], files: Files, home: Path
) -> None:
    registry = stored()
    digest = registry.add("a", upload(files(1)))[0].current.digest
    shutil.rmtree(registry.folder(digest))
    with_lease(registry, "a")
    assert (
        blobs(home) == {digest} and digest_of(home / "blobs" / digest.replace(":", "-")) == digest
    )
    # So after a start, which takes it for good although it is not here.
    leave_cache(home)
    registry = stored()
    assert registry.why_broken(digest) is None and blobs(home) == set()
    with_lease(registry, "a")
    assert blobs(home) == {digest}
    # And for a download, and where the files here are damaged.
    shutil.rmtree(registry.folder(digest))
    assert b"".join(registry.content("a"))
    registry = stored()
    (registry.folder(digest) / WEIGHTS).write_bytes(b"x")
    with_lease(registry, "a")
    assert digest_of(registry.folder(digest)) == digest


def test_many_who_need_it_fetch_it_once(
    stored: Callable[..., Registry], files: Files, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = stored(max_host_bytes=0)
    digest = registry.add("a", upload(files(1)))[0].current.digest
    shutil.rmtree(registry.folder(digest))
    fetched = []
    get = ObjectStore.get

    def counting(self: ObjectStore, digest: str, folder: Path, *, limit: int) -> bool:
        fetched.append(digest)
        return get(self, digest, folder, limit=limit)

    monkeypatch.setattr(ObjectStore, "get", counting)
    threads = [threading.Thread(target=with_lease, args=(registry, "a")) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fetched == [digest]


@pytest.mark.parametrize("how", ["changed", "cut", "longer marker", "gone", "bad marker", "large"])
def test_a_damaged_copy_is_refused_by_name_and_repaired_by_an_upload(
    stored: Callable[..., Registry], files: Files, home: Path, bucket: Path, how: str
) -> None:
    registry = stored()
    digest = registry.add("a", upload(files(1)))[0].current.digest
    at = bucket / digest.replace(":", "-")
    if how == "changed":
        data = bytearray((at / WEIGHTS).read_bytes())
        data[-1] ^= 1
        (at / WEIGHTS).write_bytes(data)
    elif how == "cut":
        (at / WEIGHTS).write_bytes((at / WEIGHTS).read_bytes()[:-1])
    elif how == "gone":
        (at / WEIGHTS).unlink()
    elif how == "bad marker":
        (at / COMPLETE).write_text('{"../../evil": 3}')
    else:
        sizes = json.loads((at / COMPLETE).read_text())
        sizes[WEIGHTS] += 1 if how == "longer marker" else 1 << 40
        (at / COMPLETE).write_text(json.dumps(sizes))
    shutil.rmtree(registry.folder(digest))
    with pytest.raises(AdapterBroken) as caught:
        with_lease(registry, "a")
    assert f"store file://{bucket}" in caught.value.message
    assert blobs(home) == set() and list((home / "staging").iterdir()) == []
    registry.add("a", upload(files(1)))
    with_lease(registry, "a")
    shutil.rmtree(registry.folder(digest))
    registry = stored()
    with_lease(registry, "a")


@pytest.mark.parametrize("call", ["put_file", "pipe_file"])
def test_half_an_upload_is_not_believed_and_goes(
    stored: Callable[..., Registry],
    files: Files,
    home: Path,
    bucket: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
) -> None:
    registry = stored()
    store = registry.storage.blobs._store  # type: ignore[attr-defined]
    works = getattr(store._fs, call)

    def fails(*given: object) -> None:
        # Other servers see the store at this moment.
        assert complete(bucket) == set()
        if not str(given[0]).endswith("adapter_config.json"):
            raise ConnectionError("the line is dead")
        works(*given)

    monkeypatch.setattr(store._fs, call, fails)
    with pytest.raises(StoreUnavailable, match="the line is dead"):
        registry.add("a", upload(files(1)))
    assert registry.records() == () and blobs(home) == set() and complete(bucket) == set()
    monkeypatch.setattr(store._fs, call, works)
    wait_until(lambda: not left_in_store(bucket) and not marks(home), "the rest to be deleted")
    registry.add("a", upload(files(1)))
    assert len(complete(bucket)) == 1


def test_a_removal_deletes_from_the_store_after_the_last_lease(
    stored: Callable[..., Registry], files: Files, home: Path, bucket: Path
) -> None:
    registry = stored()
    first = registry.add("a", upload(files(1)))[0].current.digest
    second = registry.add("b", upload(files(2)))[0].current.digest
    registry.add("c", upload(files(2)))
    lease = acquire(registry, "a")
    registry.remove("a")
    registry.remove("b")
    assert complete(bucket) == {first, second}
    lease.release()
    wait_until(lambda: complete(bucket) == {second}, "the removed content to go")
    wait_until(lambda: not marks(home))
    registry.remove("c")
    wait_until(lambda: not left_in_store(bucket))


def test_a_refused_upload_leaves_nothing_in_the_store(
    stored: Callable[..., Registry], files: Files, bucket: Path, home: Path
) -> None:
    registry = stored()
    digest = registry.add("a", upload(files(1)))[0].current.digest
    with pytest.raises(AdapterConflict):
        registry.add("a", upload(files(2)))
    wait_until(lambda: left_in_store(bucket) == {digest} and not marks(home))


def test_what_a_crash_left_is_deleted_by_the_next_start(
    stored: Callable[..., Registry], files: Files, home: Path, bucket: Path
) -> None:
    registry = stored()
    kept = registry.add("a", upload(files(1)))[0].current.digest
    folder = files(2)
    orphan = digest_of(folder)
    registry.storage.blobs.expend(orphan)
    ObjectStore(f"file://{bucket}").put(orphan, folder)
    # A crash after the record was written, before its mark was deleted.
    registry.storage.blobs.expend(kept)
    registry.close()
    registry = stored()
    wait_until(lambda: complete(bucket) == {kept})
    with_lease(registry, "a")


def test_nothing_is_deleted_by_who_lost_the_records(
    stored: Callable[..., Registry], files: Files, home: Path, bucket: Path
) -> None:
    registry = stored()
    digest = registry.add("a", upload(files(1)))[0].current.digest
    registry.storage.blobs.expend(digest)
    registry.close()
    for path in home.glob("catalog.sqlite3*"):
        path.unlink()
    shutil.rmtree(home / "records")
    registry = stored()
    other = registry.add("b", upload(files(2)))[0].current.digest
    registry.remove("b")
    wait_until(lambda: other not in left_in_store(bucket), "what was removed to go")
    assert complete(bucket) == {digest}


def test_another_server_may_need_it(
    stored: Callable[..., Registry], files: Files, home: Path, bucket: Path
) -> None:
    from contextlib import nullcontext

    registry = stored()
    needed = {digest_of(files(1))}
    blobs_ = registry.storage.blobs
    assert isinstance(blobs_, CachedBlobs)
    blobs_.deleting = lambda digest: nullcontext(digest not in needed)
    for seed in (1, 2):
        registry.add(f"a{seed}", upload(files(seed)))
    for seed in (1, 2):
        registry.remove(f"a{seed}")
    wait_until(lambda: left_in_store(bucket) == needed)
    needed.clear()
    wait_until(lambda: not left_in_store(bucket))


def test_contents_that_were_stored_without_it_are_put_into_it(
    reopen: Open, stored: Callable[..., Registry], files: Files, home: Path, bucket: Path
) -> None:
    digest = reopen().add("a", upload(files(1)))[0].current.digest
    stored()
    wait_until(lambda: complete(bucket) == {digest})


def test_a_store_that_is_away(
    stored: Callable[..., Registry], files: Files, home: Path, bucket: Path
) -> None:
    registry = stored()
    for seed in (1, 2):
        registry.add(f"a{seed}", upload(files(seed)))
    gone = registry.get("a2").current.digest
    shutil.rmtree(registry.folder(gone))
    away = bucket.with_name("away")
    bucket.rename(away)
    bucket.write_text("no folder")
    with pytest.raises(StoreUnavailable, match=f"the store file://{bucket} cannot be used now"):
        registry.add("a3", upload(files(3)))
    assert "uploads are refused" in str(registry.storage.warning())
    with_lease(registry, "a1")
    with pytest.raises(StoreUnavailable):
        with_lease(registry, "a2")
    assert registry.why_broken(gone) is None
    registry.remove("a1")
    # Even a start goes on without it.
    registry = stored()
    assert "cannot be used now" in str(registry.storage.warning())
    bucket.unlink()
    away.rename(bucket)
    wait_until(lambda: registry.storage.warning() is None, "the store to be back")
    with_lease(registry, "a2")
    wait_until(lambda: complete(bucket) == {gone}, "the removal to be made up for")


def test_a_store_of_a_newer_version_is_refused(
    stored: Callable[..., Registry], bucket: Path
) -> None:
    bucket.mkdir()
    (bucket / object_store.FORMAT_FILE).write_text('{"format": 2}')
    with pytest.raises(HomeUnusable, match="newer version"):
        stored()


def test_a_scheme_that_nobody_knows_is_refused() -> None:
    with pytest.raises(HomeUnusable, match="nonsense"):
        ObjectStore("nonsense://bucket")


def test_the_cache_has_a_limit(
    stored: Callable[..., Registry], files: Files, home: Path, bucket: Path
) -> None:
    registry = stored(max_host_bytes=0)
    digests = [registry.add(f"a{n}", upload(files(n)))[0].current.digest for n in range(5)]
    size = sum(file.stat().st_size for file in files(0).iterdir())
    assert len(blobs(home)) == 5
    registry = stored(max_bytes=2 * size + size // 2, max_host_bytes=0)
    wait_until(lambda: blobs(home) == set(digests[3:]), "the oldest to leave")
    assert complete(bucket) == set(digests)
    # The one that is held stays, and so does the pinned one, until they are neither.
    registry.patch("a3", pinned=True)
    lease = acquire(registry, "a4")
    with_lease(registry, "a0")
    wait_until(lambda: blobs(home) == {digests[3], digests[4]})
    lease.release()
    with_lease(registry, "a1")
    wait_until(lambda: blobs(home) == {digests[3], digests[1]})
    for name in ("a0", "a1", "a2", "a3", "a4"):
        with_lease(registry, name)


def test_what_the_store_has_not_does_not_leave(
    stored: Callable[..., Registry], files: Files, home: Path, bucket: Path
) -> None:
    registry = stored()
    kept = registry.add("a", upload(files(1)))[0].current.digest
    registry.add("b", upload(files(2)))
    (bucket / kept.replace(":", "-") / COMPLETE).write_text("{}")
    registry = stored(max_bytes=0)
    wait_until(lambda: blobs(home) == {kept})


def test_a_full_disk_is_named(
    stored: Callable[..., Registry], files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = stored()
    digest = registry.add("a", upload(files(1)))[0].current.digest
    shutil.rmtree(registry.folder(digest))

    def full(*given: Any, **more: Any) -> bool:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ObjectStore, "get", full)
    with pytest.raises(StorageFull):
        with_lease(registry, "a")
    assert registry.why_broken(digest) is None
