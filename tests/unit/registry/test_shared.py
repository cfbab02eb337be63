"""Several registries over one PostgreSQL: changes, their order, and a database that goes away."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Connection, text

from lorry_adapters.errors import (
    AdapterBroken,
    AdapterConflict,
    AdapterDisabled,
    CatalogUnavailable,
    DigestMismatch,
    HomeUnusable,
    UnknownAdapter,
)
from lorry_adapters.lora.base import BaseLayout
from lorry_adapters.registry.blobs import digest_of
from lorry_adapters.registry.registry import Registry
from lorry_adapters.registry.shared.shared_ledger import SharedLedger
from support.adapter_files import layout, upload
from support.patience import wait_until
from support.postgres import Postgres
from support.registries import Files, acquire

Server = Callable[..., Registry]


@pytest.fixture
def server(tmp_path: Path, catalog_url: str) -> Iterator[Server]:
    """Opens the server of that name; again, if it is open."""
    opened: dict[str, Registry] = {}

    def open_it(name: str, base: BaseLayout | None = None) -> Registry:
        if name in opened:
            opened.pop(name).close()
        opened[name] = Registry(
            tmp_path / name,
            base or layout(),
            max_rank=8,
            max_upload=1 << 20,
            max_host_bytes=1 << 20,
            catalog=catalog_url,
        )
        return opened[name]

    yield open_it
    for registry in opened.values():
        registry.close()


def state(registry: Registry, name: str) -> tuple[int, float, bool, bool] | None:
    try:
        record = registry.get(name)
    except UnknownAdapter:
        return None
    return record.current.version, record.scale, record.enabled, record.pinned


def agree(*registries: Registry) -> None:
    first = registries[0]
    for other in registries[1:]:
        wait_until(lambda other=other: other.records() == first.records(), "the same records")


def test_each_change_at_one_is_seen_at_the_other(server: Server, files: Files) -> None:
    one, two = server("one"), server("two")
    made, _ = one.add("a", upload(files(0)), scale=0.5, description="of \u0000 one")
    agree(one, two)
    assert two.get("a") == made
    two.add("a", upload(files(1)), replace=True)
    agree(two, one)
    for at, change in (
        (one, {"enabled": False}),
        (two, {"enabled": True, "scale": 2.0}),
        (one, {"pinned": True}),
        (one, {"version": 1}),
    ):
        at.patch("a", **change)
        agree(at, one, two)
    assert state(one, "a") == (1, 2.0, True, True)
    two.remove("a", version=2)
    agree(two, one)
    one.remove("a")
    agree(one, two)
    assert state(two, "a") is None
    # The name begins anew.
    assert two.add("a", upload(files(2)))[0].current.version == 1
    agree(two, one)


def test_all_is_there_after_a_start(server: Server, files: Files) -> None:
    one = server("one")
    one.add("a", upload(files(0)))
    one.add("a", upload(files(1)), replace=True)
    one.add("b", upload(files(2)), enabled=False)
    before = one.records()
    assert server("one").records() == before
    assert server("two").records() == before
    assert acquire(server("one"), "a").refs[0].version == 2


def test_running_requests_keep_their_version(server: Server, files: Files) -> None:
    one, two = server("one"), server("two")
    one.add("a", upload(files(0)))
    two.add("a", upload(files(0)))
    agree(one, two)
    lease = acquire(two, "a")
    one.add("a", upload(files(1)), replace=True)
    one.remove("a", version=1)
    agree(one, two)
    digest = digest_of(files(0))
    assert two.weights(digest).digest == digest
    one.remove("a")
    agree(one, two)
    assert two.weights(digest).digest == digest
    lease.release()
    assert not two.folder(digest).exists()


def test_a_name_that_was_removed_and_made_again_meanwhile(server: Server, files: Files) -> None:
    """Same name and number, other content: nothing of the old one stays."""
    one, two = server("one"), server("two")
    one.add("a", upload(files(0)))
    two.add("a", upload(files(0)))
    agree(one, two)
    with two.storage.lock:
        one.remove("a")
        one.add("a", upload(files(1)))
    agree(one, two)
    wait_until(lambda: not two.folder(digest_of(files(0))).exists())
    assert two.get("a").current.digest == digest_of(files(1))


def test_versions_that_go_are_told_at_every_server(server: Server, files: Files) -> None:
    """So that their metrics go, too."""
    one, two = server("one"), server("two")
    told: list[tuple[str, int]] = []
    two.subscribe_to_versions(lambda name, version: told.append((name, version)))
    one.add("a", upload(files(0)))
    one.add("a", upload(files(1)), replace=True)
    agree(one, two)
    one.remove("a", version=1)
    wait_until(lambda: told == [("a", 1)])
    one.remove("a")
    wait_until(lambda: told == [("a", 1), ("a", 2)])


def test_an_alias_moves_at_every_server(server: Server, files: Files) -> None:
    one, two = server("one"), server("two")
    one.add("a", upload(files(0)))
    two.add("b", upload(files(1)))
    one.patch("a", aliases={"prod": 1})
    agree(one, two)
    assert two.get("prod").name == "a"
    with two.storage.lock:
        one.patch("a", aliases={"prod": None})
        one.patch("b", aliases={"prod": 1})
        one.patch("a", scale=0.5)
    agree(one, two)
    assert one.get("prod").name == two.get("prod").name == "b"
    with pytest.raises(AdapterConflict):
        two.patch("a", aliases={"prod": 1})
    assert server("three").get("prod").name == "b"


def test_content_that_is_not_here_is_refused_until_it_is(server: Server, files: Files) -> None:
    one, two = server("one"), server("two")
    one.add("a", upload(files(0)))
    agree(one, two)
    digest = digest_of(files(0))
    wait_until(lambda: two.why_broken(digest))
    with pytest.raises(AdapterBroken, match="missing here"):
        acquire(two, "a")
    assert two.add("a", upload(files(0))) == (one.get("a"), False)
    acquire(two, "a").release()
    assert two.weights  # repaired
    again = server("two")
    acquire(again, "a").release()


def test_what_fits_one_base_need_not_fit_the_others(server: Server, files: Files) -> None:
    one, two = server("one"), server("two", layout("wider", hidden=12))
    one.add("a", upload(files(0)))
    agree(one, two)
    digest = digest_of(files(0))
    wait_until(lambda: two.why_broken(digest))
    with pytest.raises(AdapterBroken):
        acquire(two, "a")
    acquire(one, "a").release()


def test_two_at_once_have_an_order(server: Server, files: Files) -> None:
    """Version numbers are drawn once, and nothing is lost."""
    servers = [server(name) for name in ("one", "two", "three")]
    servers[0].add("a", upload(files(0)))
    folders = [files(number) for number in range(1, 13)]
    with ThreadPoolExecutor(6) as pool:
        made = list(
            pool.map(
                lambda n: servers[n % 3].add("a", upload(folders[n]), replace=True)[0], range(12)
            )
        )
    agree(*servers)
    versions = servers[0].get("a").versions
    assert [one.version for one in versions] == list(range(1, 14))
    assert {one.digest for one in versions} == {digest_of(files(n)) for n in range(13)}
    assert sorted(record.current.version for record in made) == list(range(2, 14))


def test_one_of_two_with_the_same_if_match_wins(server: Server, files: Files) -> None:
    one, two = server("one"), server("two")
    one.add("a", upload(files(0)))
    agree(one, two)
    first = digest_of(files(0))
    start = threading.Barrier(2)

    def put(registry: Registry, seed: int) -> str:
        start.wait()
        try:
            registry.put("a", upload(files(seed)), if_match=first)
        except DigestMismatch:
            return "refused"
        return "made"

    for folder in (1, 2):
        files(folder)
    with ThreadPoolExecutor(2) as pool:
        ends = [pool.submit(put, one, 1), pool.submit(put, two, 2)]
        assert sorted(end.result() for end in ends) == ["made", "refused"]
    agree(one, two)
    assert [version.version for version in one.get("a").versions] == [1, 2]


def test_the_same_name_at_two_servers_is_one_adapter(server: Server, files: Files) -> None:
    one, two = server("one"), server("two")
    with two.storage.lock:
        one.add("a", upload(files(0)))
    # It has not looked yet, or has.
    with pytest.raises(AdapterConflict):
        two.add("a", upload(files(1)))
    one.patch("a", enabled=False)
    agree(one, two)
    two.add("a", upload(files(0)))
    with pytest.raises(AdapterDisabled):
        acquire(two, "a")


def test_without_the_database_it_serves_and_refuses_changes(
    server: Server, files: Files, postgres: Postgres
) -> None:
    one, two = server("one"), server("two")
    one.add("a", upload(files(0)))
    two.add("a", upload(files(0)))
    agree(one, two)
    assert one.storage.warning() is None
    postgres.stop()
    try:
        wait_until(one.storage.warning)
        assert "cannot be used" in (one.storage.warning() or "")
        assert one.storage.trouble() is None
        for change in (
            lambda: one.patch("a", enabled=False),
            lambda: one.add("b", upload(files(1))),
            lambda: one.add("a", upload(files(1)), replace=True),
            lambda: one.remove("a"),
        ):
            with pytest.raises(CatalogUnavailable, match="changes are refused"):
                change()
        lease = acquire(one, "a")
        assert one.weights(lease.refs[0].digest)
        lease.release()
        # Refused uploads leave nothing.
        wait_until(lambda: len(list((one.folder(digest_of(files(0))).parent).iterdir())) == 1)
    finally:
        postgres.start()
    wait_until(lambda: one.storage.warning() is None)
    wait_until(lambda: two.storage.warning() is None)
    one.patch("a", scale=0.25)
    agree(one, two)
    assert state(two, "a") == (1, 0.25, True, False)


def test_changes_while_a_server_heard_nothing(
    server: Server, files: Files, catalog_url: str
) -> None:
    """Its connections are cut; messages of that time are lost."""
    one, two = server("one"), server("two")
    with psycopg.connect(catalog_url, autocommit=True) as admin:
        for number in range(5):
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            try:
                one.add(f"a{number}", upload(files(number)))
            except CatalogUnavailable:
                # The pool's connection was cut; the next one is new.
                one.add(f"a{number}", upload(files(number)))
    agree(one, two)
    assert len(two.records()) == 5


def test_news_are_not_lost_with_the_connection_that_brought_them(
    server: Server, files: Files, catalog_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database may die after the last row was read and before the transaction ends."""
    one, two = server("one"), server("two")
    one.add("a", upload(files(0)))
    agree(one, two)
    read, cut = SharedLedger._read, threading.Event()

    def read_then_cut(ledger: SharedLedger, connection: Connection) -> object:
        found = read(ledger, connection)
        if ledger is two.storage.ledger and found is not None and not cut.is_set():
            pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
            with psycopg.connect(catalog_url, autocommit=True) as admin:
                admin.execute("SELECT pg_terminate_backend(%s, 60000)", [pid])
            cut.set()
        return found

    monkeypatch.setattr(SharedLedger, "_read", read_then_cut)
    one.patch("a", scale=0.5)
    cut.wait()
    agree(one, two)


def test_a_server_that_hangs_in_a_change_keeps_no_one_out_for_ever(
    server: Server, files: Files, catalog_url: str
) -> None:
    one = server("one")
    one.add("a", upload(files(0)))
    with psycopg.connect(catalog_url) as other:
        other.execute("SELECT revision FROM catalog_state FOR UPDATE")
        with pytest.raises(CatalogUnavailable, match="lock timeout"):
            one.patch("a", enabled=False)
    one.patch("a", enabled=False)


def test_a_restored_backup_is_seen(server: Server, files: Files, catalog_url: str) -> None:
    one = server("one")
    one.add("a", upload(files(0)))
    with psycopg.connect(catalog_url, autocommit=True) as admin:
        saved = admin.execute("SELECT document FROM catalog_adapters").fetchone()
    one.add("b", upload(files(1)))
    one.patch("a", scale=0.5)
    assert saved is not None
    with psycopg.connect(catalog_url) as admin:
        admin.execute("DELETE FROM catalog_adapters WHERE name = 'b'")
        admin.execute(
            "UPDATE catalog_adapters SET revision = 1, document = %s",
            [psycopg.types.json.Json(saved[0])],
        )
        admin.execute("UPDATE catalog_state SET revision = 1")
    wait_until(lambda: state(one, "b") is None and state(one, "a") == (1, 1.0, True, False))


def test_a_newer_catalog_is_refused_by_name(server: Server, catalog_url: str) -> None:
    server("one")
    with psycopg.connect(catalog_url) as admin:
        admin.execute("UPDATE catalog_version SET version_num = '9999'")
    with pytest.raises(HomeUnusable, match="written by a newer Lorry"):
        server("two")


def test_two_that_start_on_an_empty_database(server: Server, files: Files) -> None:
    with ThreadPoolExecutor(4) as pool:
        servers = list(pool.map(server, ["one", "two", "three", "four"]))
    servers[0].add("a", upload(files(0)))
    agree(*servers)


def test_a_record_that_cannot_be_read_stops_changes(
    server: Server, files: Files, catalog_url: str
) -> None:
    one = server("one")
    one.add("a", upload(files(0)))
    with psycopg.connect(catalog_url) as admin:
        admin.execute("""UPDATE catalog_adapters SET revision = 2, document = '{"format": 7}'""")
        admin.execute("UPDATE catalog_state SET revision = 2")
    with pytest.raises(CatalogUnavailable, match="'a'"):
        one.patch("a", enabled=False)
    acquire(one, "a").release()
    with pytest.raises(CatalogUnavailable, match="'a'"):
        server("two")
