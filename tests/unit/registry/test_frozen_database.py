"""A PostgreSQL that is stopped, not dead: it takes connections and answers nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import text

from lorry_adapters.errors import CatalogUnavailable
from lorry_adapters.registry.registry import Registry
from lorry_adapters.registry.shared import database as database_module
from lorry_adapters.registry.shared import limited_connection
from lorry_adapters.registry.shared.database import Database
from lorry_adapters.registry.shared.shared_tables import SCHEMA
from support.adapter_files import layout, upload
from support.patience import PATIENCE, wait_until
from support.postgres import Postgres
from support.registries import Files, acquire


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limited_connection, "SILENCE", 2.0)


@pytest.fixture
def registry(tmp_path: Path, catalog_url: str) -> Iterator[Registry]:
    opened = Registry(
        tmp_path / "home",
        layout(),
        max_rank=8,
        max_upload=1 << 20,
        max_host_bytes=1 << 20,
        catalog=catalog_url,
    )
    yield opened
    opened.close()


def test_changes_are_refused_and_go_on_by_themselves(
    registry: Registry, files: Files, postgres: Postgres
) -> None:
    registry.add("a", upload(files(0)))
    with postgres.frozen():
        for change in (
            lambda: registry.patch("a", enabled=False),
            lambda: registry.add("b", upload(files(1))),
            lambda: registry.add("a", upload(files(1)), replace=True),
            lambda: registry.patch("a", aliases={"prod": 1}),
            lambda: registry.remove("a"),
        ):
            with pytest.raises(CatalogUnavailable, match="changes are refused"):
                change()
        wait_until(registry.storage.warning)
        lease = acquire(registry, "a")
        assert registry.weights(lease.refs[0].digest)
        lease.release()
    wait_until(lambda: registry.storage.warning() is None)
    registry.patch("a", scale=0.5)
    assert (registry.get("a").scale, registry.get("a").enabled) == (0.5, True)
    registry.add("b", upload(files(1)))


def test_a_change_that_is_on_its_way_is_refused_once(
    registry: Registry, files: Files, postgres: Postgres
) -> None:
    """It freezes after the change has its lock. What it was asked to do is not done later."""
    registry.add("a", upload(files(0)))
    with (
        ExitStack() as frozen,
        pytest.raises(CatalogUnavailable, match="has not answered"),
        registry.storage.changing(),
    ):
        frozen.enter_context(postgres.frozen())
        registry.storage.save(registry.get("a"))
    wait_until(lambda: registry.storage.warning() is None)
    # Nobody holds the lock.
    registry.patch("a", scale=0.5)


def test_those_that_wait_for_one_another_do_not_each_wait_for_it(
    catalog_url: str, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One finds the database silent, and the others hear of it."""
    monkeypatch.setattr(database_module, "REFUSING", PATIENCE)
    database = Database(catalog_url, SCHEMA)
    lock, asked = threading.Lock(), []
    before = database._engine.connect

    def connect() -> object:
        asked.append(1)
        return before()

    database._engine.connect = connect  # type: ignore[method-assign, assignment]

    def change() -> None:
        with lock, database.transaction() as connection:
            connection.execute(text("SELECT 1"))

    with postgres.frozen(), ThreadPoolExecutor(8) as pool:
        ends = [pool.submit(change) for _ in range(8)]
        for end in ends:
            assert isinstance(end.exception(), CatalogUnavailable)
    assert len(asked) == 1
    monkeypatch.setattr(database_module, "REFUSING", 0.0)
    wait_until(lambda: _answers(database))
    database.close()


def test_a_start_is_refused(catalog_url: str, postgres: Postgres) -> None:
    with postgres.frozen(), pytest.raises(CatalogUnavailable, match="cannot be used"):
        Database(catalog_url, SCHEMA)


def _answers(database: Database) -> bool:
    try:
        with database.transaction() as connection:
            connection.execute(text("SELECT 1"))
    except CatalogUnavailable:
        return False
    return True
