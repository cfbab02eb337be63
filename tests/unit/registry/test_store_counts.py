"""What the object store was asked, as counted for the metrics. The store is a folder here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorry_adapters.errors import InvalidAdapter, StoreUnavailable
from lorry_adapters.registry import object_store
from lorry_adapters.registry.blobs import digest_of
from lorry_adapters.registry.object_store import COMPLETE, ObjectStore
from lorry_adapters.registry.registry import Registry
from lorry_adapters.registry.store_counts import Operation
from support.adapter_files import upload
from support.registries import WEIGHTS, Files, Open, leave_cache, with_lease

READ, WRITE, LIST, DELETE = Operation
NOWHERE = "sha256:" + "0" * 64


@pytest.fixture
def store(bucket: Path) -> ObjectStore:
    return ObjectStore(f"file://{bucket}")


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def calls(store: ObjectStore) -> dict[Operation, tuple[int, int]]:
    """Those that the store answered, and those that failed."""
    return {one: (count.ok, count.failed) for one, count in store.counts.now().items()}


def test_each_call_counts_with_its_bytes(
    store: ObjectStore, bucket: Path, files: Files, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "CHUNK", 100)
    digest = digest_of(files(1))
    store.put(digest, files(1))
    # The two files, and `complete.json`, which was deleted first.
    assert calls(store) == {READ: (0, 0), WRITE: (3, 0), LIST: (0, 0), DELETE: (1, 0)}
    written = size_of(bucket / digest.replace(":", "-"))
    assert written > size_of(files(1))
    assert store.counts.now()[WRITE].bytes == written
    assert store.get(digest, into, limit=1 << 20)
    parts = sum(-(-file.stat().st_size // 100) for file in files(1).iterdir())
    assert parts > 2 and calls(store)[READ] == (1 + parts, 0)
    assert store.counts.now()[READ].bytes == written
    store.contents()
    store.delete(digest)
    assert calls(store) == {READ: (1 + parts, 0), WRITE: (3, 0), LIST: (1, 0), DELETE: (5, 0)}
    counts = store.counts.now()
    assert all(count.seconds > 0 for count in counts.values())
    assert counts[LIST].bytes == counts[DELETE].bytes == 0


def test_what_is_not_there_is_an_answer(store: ObjectStore, files: Files, into: Path) -> None:
    assert store.sizes(NOWHERE) is None and store.contents() == {}
    store.delete(NOWHERE)
    assert all(failed == 0 for _, failed in calls(store).values())
    # So is a damaged copy.
    digest = digest_of(files(1))
    store.put(digest, files(1))
    store._fs.rm_file(store._path(digest, WEIGHTS))
    with pytest.raises(InvalidAdapter, match=f"{WEIGHTS} is missing"):
        store.get(digest, into, limit=1 << 20)
    assert all(failed == 0 for _, failed in calls(store).values())


@pytest.mark.parametrize(
    ("method", "operation", "ask"),
    [
        ("cat_file", READ, lambda store, folder: store.sizes(NOWHERE)),
        ("put_file", WRITE, lambda store, folder: store.put(digest_of(folder), folder)),
        ("pipe_file", WRITE, lambda store, folder: store.check()),
        ("find", LIST, lambda store, folder: store.contents()),
        ("rm_file", DELETE, lambda store, folder: store.delete(NOWHERE)),
    ],
)
def test_a_call_that_fails_counts_as_failed(
    store: ObjectStore,
    files: Files,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    operation: Operation,
    ask: Callable[[ObjectStore, Path], object],
) -> None:
    def away(*given: Any, **more: Any) -> None:
        raise ConnectionError("away")

    monkeypatch.setattr(store._fs, method, away)
    with pytest.raises(StoreUnavailable):
        ask(store, files(1))
    assert calls(store)[operation] == (0, 1)
    count = store.counts.now()[operation]
    assert count.bytes == 0 and count.seconds > 0
    assert sum(failed for _, failed in calls(store).values()) == 1


def test_a_registry_counts_its_store(
    stored: Callable[..., Registry], files: Files, home: Path, bucket: Path, reopen: Open
) -> None:
    registry = stored(max_host_bytes=0)
    digest = registry.add("a", upload(files(1)))[0].current.digest
    marker = (bucket / digest.replace(":", "-") / COMPLETE).stat().st_size
    written = registry.storage.blobs.store_counts()[WRITE].bytes
    # Beside it only `lorry-store.json`.
    assert 0 <= written - size_of(files(1)) - marker < 100
    before = registry.storage.blobs.store_counts()[READ].bytes
    leave_cache(home)
    with_lease(registry, "a")
    assert registry.storage.blobs.store_counts()[READ].bytes - before >= size_of(files(1))
    # Without a store there is nothing to count.
    assert reopen().storage.blobs.store_counts() == {}
