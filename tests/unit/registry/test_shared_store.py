"""Two registries over one PostgreSQL and one store of contents, which is a folder here."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import psycopg
import pytest

from lorry_adapters.errors import AdapterError, UnknownAdapter
from lorry_adapters.registry import cached_blobs, follower
from lorry_adapters.registry.blobs import digest_of
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
    """Opens the server of that name; again, if it is open."""
    monkeypatch.setattr(cached_blobs, "PROBE", 0.05)
    monkeypatch.setattr(follower, "RENEWAL", 0.0)
    opened: dict[str, Registry] = {}

    def open_it(name: str) -> Registry:
        if name in opened:
            opened.pop(name).close()
        opened[name] = Registry(
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
        return opened[name]

    yield open_it
    for registry in opened.values():
        registry.close()


@pytest.fixture
def later(catalog_url: str) -> Iterator[Callable[[], None]]:
    """Lets the time pass that the store keeps what was removed."""
    with psycopg.connect(catalog_url, autocommit=True) as admin:
        yield lambda: admin.execute("UPDATE catalog_unnamed SET until = now()") and None


def complete(bucket: Path) -> set[str]:
    return {path.parent.name.replace("-", ":") for path in bucket.glob("*/" + COMPLETE)}


def works(registry: Registry, name: str) -> None:
    lease = acquire(registry, name)
    digest = lease.refs[0].digest
    assert registry.weights(digest).digest == digest
    lease.release()


def test_a_home_that_is_lost_costs_nothing(server: Server, files: Files, tmp_path: Path) -> None:
    one, two = server("one"), server("two")
    digest = one.add("a", upload(files(1)))[0].current.digest
    wait_until(two.records)
    assert two.why_broken(digest) is None and blobs(tmp_path / "two") == set()
    works(two, "a")
    assert blobs(tmp_path / "two") == {digest}
    one.close()
    shutil.rmtree(tmp_path / "one")
    three = server("three")
    works(three, "a")
    assert three.why_broken(digest) is None


def test_the_store_keeps_what_any_record_names(
    server: Server, files: Files, bucket: Path, tmp_path: Path, later: Callable[[], None]
) -> None:
    one, two = server("one"), server("two")
    digest = one.add("a", upload(files(1)))[0].current.digest
    two.add("b", upload(files(1)))
    one.remove("a")
    other = one.add("c", upload(files(2)))[0].current.digest
    one.remove("c")
    wait_until(lambda: later() or other not in complete(bucket))
    assert complete(bucket) == {digest}
    wait_until(lambda: [record.name for record in one.records()] == ["b"])
    shutil.rmtree(tmp_path / "one" / "blobs" / digest.replace(":", "-"), ignore_errors=True)
    works(one, "b")
    two.remove("b")
    wait_until(lambda: later() or not complete(bucket))


def test_what_is_pushed_at_one_is_served_at_the_other(server: Server, files: Files) -> None:
    one, two = server("one"), server("two")
    one.add("a", upload(files(0)))
    wait_until(two.records)
    works(two, "a")
    two.add("a", upload(files(1)), replace=True)
    wait_until(lambda: one.get("a").current.version == 2)
    works(one, "a")
    one.patch("a", version=1)
    wait_until(lambda: two.get("a").current.version == 1)
    works(two, "a")
    works(server("three"), "a")


def test_the_store_keeps_what_another_server_uses(
    server: Server, files: Files, bucket: Path, later: Callable[[], None], catalog_url: str
) -> None:
    one, two = server("one"), server("two")
    one.add("a", upload(files(0)))
    digest = digest_of(files(0))
    wait_until(two.records)
    # Not fetched yet.
    lease = acquire(two, "a")
    with psycopg.connect(catalog_url, autocommit=True) as admin:
        wait_until(lambda: admin.execute("SELECT 1 FROM catalog_leases").fetchone(), "its lease")
        one.remove("a")
        later()
        wait_until(lambda: not two.records())
        with one.storage.blobs.deleting(digest) as unused:
            assert not unused
        assert two.weights(digest).digest == digest
        lease.release()
        wait_until(lambda: later() or complete(bucket) == set(), "the deletion")
        wait_until(lambda: not admin.execute("SELECT 1 FROM catalog_leases").fetchone())


def test_the_store_keeps_what_was_removed_for_a_moment(
    server: Server, files: Files, bucket: Path, later: Callable[[], None]
) -> None:
    """A server may have begun to use it, and not said so yet."""
    one = server("one")
    one.add("a", upload(files(0)))
    digest = digest_of(files(0))
    one.remove("a")
    with one.storage.blobs.deleting(digest) as unused:
        assert not unused
    later()
    wait_until(lambda: complete(bucket) == set())


def test_a_lease_of_a_server_that_is_gone_ends(
    server: Server, files: Files, bucket: Path, later: Callable[[], None], catalog_url: str
) -> None:
    one = server("one")
    one.add("a", upload(files(0)))
    with psycopg.connect(catalog_url, autocommit=True) as admin:
        admin.execute(
            "INSERT INTO catalog_leases VALUES ('gone', %s, now() + interval '1 day')",
            [digest_of(files(0))],
        )
        one.remove("a")
        later()
        with one.storage.blobs.deleting(digest_of(files(0))) as unused:
            assert not unused
        admin.execute("UPDATE catalog_leases SET until = now()")
    wait_until(lambda: complete(bucket) == set())


def test_what_others_deleted_during_an_upload_is_put_again(
    server: Server, files: Files, bucket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = server("one"), server("two")
    digest = digest_of(files(0))
    changing = one.storage.changing

    def meanwhile() -> object:
        store = two.storage.blobs._store  # type: ignore[attr-defined]
        store.delete(digest)
        assert complete(bucket) == set()
        return changing()

    monkeypatch.setattr(one.storage, "changing", meanwhile)
    one.add("a", upload(files(0)))
    assert complete(bucket) == {digest}
    wait_until(two.records)
    works(two, "a")


def test_pushes_and_removals_of_the_same_contents_at_both(
    server: Server, files: Files, bucket: Path, later: Callable[[], None]
) -> None:
    servers = [server("one"), server("two")]
    folders = [files(number) for number in range(3)]

    def work(seed: int) -> None:
        dice = random.Random(seed)
        for _ in range(12):
            registry, name = dice.choice(servers), dice.choice("ab")
            with suppress(UnknownAdapter):
                if dice.random() < 0.6:
                    registry.add(name, upload(dice.choice(folders)), replace=True)
                elif dice.random() < 0.5:
                    registry.remove(name)
                else:
                    lease = acquire(registry, name)
                    with suppress(AdapterError):
                        registry.weights(lease.refs[0].digest)
                    lease.release()
            later()

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(work, seed) for seed in range(4)]:
            done.result()
    one, two = servers
    wait_until(lambda: one.records() == two.records())
    named = {version.digest for record in one.records() for version in record.versions}
    wait_until(lambda: later() or complete(bucket) == named, "the store to have what is named")
    for registry in servers:
        for record in registry.records():
            works(registry, record.name)
