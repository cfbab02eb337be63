"""Several servers over one catalog: no version goes that any of them uses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import psycopg
import pytest

from lorry_adapters.registry.blobs import Blobs, digest_of
from lorry_adapters.registry.cached_blobs import CachedBlobs
from lorry_adapters.registry.record import AdapterChoice
from lorry_adapters.registry.registry import Registry
from support.adapter_files import layout, upload
from support.patience import wait_until
from support.registries import Files

Server = Callable[[str], Registry]


@pytest.fixture(params=["a store", "no store"])
def server(request: pytest.FixtureRequest, tmp_path: Path, catalog_url: str) -> Iterator[Server]:
    """Opens a server of that name."""
    stored = partial(
        CachedBlobs, url=f"file://{tmp_path}/bucket", max_content=1 << 20, max_bytes=None
    )
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
                make_blobs=stored if request.param == "a store" else Blobs,
            )
        )
        return opened[-1]

    yield open_it
    for registry in opened:
        registry.close()


def test_a_version_stays_while_another_server_uses_it(
    server: Server, files: Files, catalog_url: str
) -> None:
    one, two = server("one"), server("two")
    one.add("a", upload(files(1)))
    two.add("a", upload(files(1)))
    wait_until(lambda: two.records() == one.records())
    lease = two.acquire([AdapterChoice("a", version=1)])
    with psycopg.connect(catalog_url, autocommit=True) as admin:
        wait_until(lambda: leased(admin, digest_of(files(1))), "its lease")
        one.patch("a", keep_versions=2)
        for seed in (2, 3, 4):
            one.add("a", upload(files(seed)), replace=True)
        assert numbers(one) == [1, 3, 4]
        one.retire()
        one.patch("a", keep_days=1.0)
        one.retire(datetime.now(UTC) + timedelta(days=2))
        assert numbers(one) == [1, 3, 4]
        lease.release()
        wait_until(lambda: one.retire() or numbers(one) == [3, 4], "the end of its lease")
        wait_until(lambda: numbers(two) == [3, 4])


def test_a_lease_of_a_server_that_is_gone_keeps_nothing(
    server: Server, files: Files, catalog_url: str
) -> None:
    one = server("one")
    one.add("a", upload(files(1)))
    one.patch("a", keep_versions=2)
    with psycopg.connect(catalog_url, autocommit=True) as admin:
        admin.execute(
            "INSERT INTO catalog_leases VALUES ('gone', %s, now() + interval '1 day')",
            [digest_of(files(1))],
        )
        for seed in (2, 3):
            one.add("a", upload(files(seed)), replace=True)
        assert numbers(one) == [1, 2, 3]
        admin.execute("UPDATE catalog_leases SET until = now()")
    one.retire()
    assert numbers(one) == [2, 3]


def leased(admin: psycopg.Connection[tuple[object, ...]], digest: str) -> bool:
    query = "SELECT 1 FROM catalog_leases WHERE digest = %s"
    return admin.execute(query, [digest]).fetchone() is not None


def numbers(registry: Registry) -> list[int]:
    return [version.version for version in registry.get("a").versions]
