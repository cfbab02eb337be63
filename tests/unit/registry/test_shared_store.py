"""Several servers over one catalog and one store. The store is a folder here."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from lorry_adapters.registry import cached_blobs
from lorry_adapters.registry.cached_blobs import CachedBlobs
from lorry_adapters.registry.object_store import COMPLETE
from lorry_adapters.registry.registry import Registry
from support.adapter_files import layout, upload
from support.patience import wait_until
from support.registries import Files, acquire, blobs

Server = Callable[[str], Registry]


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    return tmp_path / "bucket"


@pytest.fixture
def server(
    tmp_path: Path, bucket: Path, catalog_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Server]:
    monkeypatch.setattr(cached_blobs, "PROBE", 0.05)
    monkeypatch.setattr(cached_blobs, "SHARED_GRACE", 0.0)
    opened: list[Registry] = []

    def open_it(name: str) -> Registry:
        opened.append(
            Registry(
                tmp_path / name,
                layout(),
                max_rank=8,
                max_upload=1 << 20,
                max_host_bytes=1 << 20,
                catalog=catalog_url,
                make_blobs=partial(
                    CachedBlobs, url=f"file://{bucket}", max_content=1 << 20, max_bytes=None
                ),
            )
        )
        return opened[-1]

    yield open_it
    for registry in opened:
        registry.close()


def complete(bucket: Path) -> set[str]:
    return {path.parent.name.replace("-", ":") for path in bucket.glob("*/" + COMPLETE)}


def use(registry: Registry, name: str) -> None:
    lease = acquire(registry, name)
    try:
        registry.weights(lease.refs[0].digest)
    finally:
        lease.release()


def test_what_one_stores_the_others_serve(
    server: Server, files: Files, bucket: Path, tmp_path: Path
) -> None:
    one, two = server("one"), server("two")
    digest = one.add("a", upload(files(1)))[0].current.digest
    wait_until(lambda: [record.name for record in two.records()] == ["a"])
    assert two.why_broken(digest) is None and blobs(tmp_path / "two") == set()
    use(two, "a")
    assert blobs(tmp_path / "two") == {digest}
    # The home of the first is lost. A third server starts with an empty one.
    one.close()
    shutil.rmtree(tmp_path / "one")
    three = server("three")
    use(three, "a")
    assert three.why_broken(digest) is None


def test_the_store_keeps_what_any_record_names(
    server: Server, files: Files, bucket: Path, tmp_path: Path
) -> None:
    one, two = server("one"), server("two")
    digest = one.add("a", upload(files(1)))[0].current.digest
    two.add("b", upload(files(1)))
    one.remove("a")
    other = one.add("c", upload(files(2)))[0].current.digest
    one.remove("c")
    wait_until(lambda: other not in complete(bucket))
    assert complete(bucket) == {digest}
    wait_until(lambda: [record.name for record in one.records()] == ["b"])
    shutil.rmtree(tmp_path / "one" / "blobs" / digest.replace(":", "-"), ignore_errors=True)
    use(one, "b")
    two.remove("b")
    wait_until(lambda: not complete(bucket))


def test_a_request_of_another_server_can_still_fetch_what_is_removed(
    server: Server,
    files: Files,
    bucket: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cached_blobs, "SHARED_GRACE", 600.0)
    one, two = server("one"), server("two")
    digest = one.add("a", upload(files(1)))[0].current.digest
    wait_until(lambda: [record.name for record in two.records()] == ["a"])
    lease = acquire(two, "a")
    one.remove("a")
    wait_until(lambda: two.records() == ())
    two.weights(digest)
    lease.release()
    # Ten minutes later.
    for name in ("one", "two"):
        for mark in (tmp_path / name / "expendable-in-store").iterdir():
            os.utime(mark, (0, 0))
    wait_until(lambda: not complete(bucket))
