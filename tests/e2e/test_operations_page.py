"""Whoever follows docs/operations.md gets everything back."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import boto3
import psycopg
import pytest

from support.operator_page import FOLDER_FOR_S3, Operator, blocks, lose
from support.postgres import found as postgres_programs
from support.s3_process import BUCKET, S3Process

HOME = "A server with its catalog in the home"
SHARED = "Servers with PostgreSQL and a store"
MOVE = "From files to PostgreSQL"
ONE_SERVER = ("Rotate keys", "Upgrade and downgrade", "A full disk")
PROMPT = "She said that they would come back"
KEY = "LORRY_API_KEY"

Archive = Callable[..., Path]

pytestmark = pytest.mark.skipif(
    shutil.which("curl") is None or shutil.which("sqlite3") is None,
    reason="the page's commands need curl and sqlite3",
)


@pytest.fixture
def operator(model: Path, tmp_path: Path) -> Iterator[Operator]:
    one = Operator(model, (tmp_path / "home",), tmp_path / "backup" / "today")
    yield one
    one.stop()


def fill(operator: Operator, archive: Archive) -> str:
    """Adapters, changes and keys. Return the text of the key `legal-team`."""
    server = operator.servers[0]
    operator.environment[KEY] = made = new_key(operator, "boss", "admin")
    for one in operator.servers:
        one.client.headers["x-api-key"] = made
    for seed in (1, 2):
        assert server.upload("legal", archive("plain", seed), replace="true").status_code == 201
    assert server.upload("bard", archive("plain", 3)).status_code == 201
    change = {"scale": 0.5, "aliases": {"legal-prod": 1}, "description": "ours"}
    assert server.client.patch("/adapters/legal", json=change).status_code == 200
    return new_key(operator, "legal-team", "generate")


def new_key(operator: Operator, name: str, scope: str) -> str:
    made = operator.servers[0].client.post("/keys", json={"name": name, "scopes": [scope]})
    assert made.status_code == 201, made.text
    return str(made.json()["key"])


def state(operator: Operator, key: str) -> list[Any]:
    """What must come back: records, answers, keys, the audit."""
    (client, *_), server = [one.client for one in operator.servers], operator.servers[0]
    client.headers["x-api-key"] = operator.environment[KEY]
    records = client.get("/adapters").json()["adapters"]
    for record in records:
        record.pop("residency")
    answers = [
        server.generate(PROMPT, name)["details"]["tokens"]
        for name in ("legal", "legal@2", "legal-prod", "bard", None)
    ]
    keys = client.get("/keys").json()["keys"]
    theirs = client.get("/v1/models", headers={"x-api-key": key}).status_code
    return [records, answers, keys, theirs, client.get("/audit").json()["entries"]]


def spoil(operator: Operator, archive: Archive) -> None:
    """What happens after the backup."""
    client = operator.servers[0].client
    replaced = operator.servers[0].upload("legal", archive("plain", 4), replace="true")
    assert replaced.json()["version"] == 3
    assert client.delete("/adapters/bard").status_code == 204
    assert client.delete("/keys/legal-team").status_code == 204


@pytest.mark.parametrize("lost", [True, False])
def test_a_home(operator: Operator, archive: Archive, lost: bool) -> None:
    backup, stop, aside, restore = blocks()[HOME]
    operator.start()
    key = fill(operator, archive)
    before = state(operator, key)
    assert operator.follow(backup).endswith("ok\n2\n")
    spoil(operator, archive)
    if lost:
        operator.follow(stop, stopped=lambda: lose(operator.homes[0]))
        operator.follow(restore)
    else:
        operator.follow(stop, aside, restore)
    assert state(operator, key) == before
    # As the page warns: the number is given again.
    replaced = operator.servers[0].upload("legal", archive("plain", 5), replace="true")
    assert replaced.json()["version"] == 3


def test_a_home_whose_records_are_newer_must_be_set_aside(
    operator: Operator, archive: Archive
) -> None:
    """Otherwise the page would ask for a block too many."""
    backup, stop, _, restore = blocks()[HOME]
    operator.start()
    key = fill(operator, archive)
    before = state(operator, key)
    operator.follow(backup)
    spoil(operator, archive)
    operator.follow(stop, restore)
    assert state(operator, key)[0] != before[0]


@pytest.mark.parametrize("store", ["folder", "s3"])
def test_a_database_and_a_store(
    model: Path, tmp_path: Path, archive: Archive, catalog_url: str, store: str
) -> None:
    _need_programs("pg_dump", "pg_restore")
    backup, restore = blocks()[SHARED]
    homes = (tmp_path / "one", tmp_path / "two")
    operator = Operator(model, homes, tmp_path / "backup", {"LORRY_CATALOG": catalog_url})
    bucket = None
    if store == "s3":
        _need_programs("aws")
        bucket = S3Process(tmp_path / "s3")
        operator.environment |= {**bucket.environment, "LORRY_STORE": f"s3://{BUCKET}/adapters"}
    else:
        operator.environment["LORRY_STORE"] = f"file://{tmp_path}/store"
        operator.shell = FOLDER_FOR_S3

    def lose_all() -> None:
        for home in homes:
            lose(home)
        with psycopg.connect(catalog_url, autocommit=True) as connection:
            connection.execute("DROP SCHEMA public CASCADE")
            connection.execute("CREATE SCHEMA public")
        if bucket is None:
            lose(tmp_path / "store")
        else:
            _empty(bucket)

    try:
        operator.start()
        key = fill(operator, archive)
        before = state(operator, key)
        operator.follow(backup)
        spoil(operator, archive)
        operator.follow(restore, stopped=lose_all)
        assert state(operator, key) == before
        operator.servers.reverse()
        assert state(operator, key) == before
        operator.stop()
    finally:
        for one in operator.servers:
            one.process.kill()
        if bucket is not None:
            bucket.kill()


def test_from_files_to_postgresql(operator: Operator, archive: Archive, catalog_url: str) -> None:
    operator.start()
    key = fill(operator, archive)
    before = state(operator, key)
    named = {"LORRY_CATALOG": catalog_url}
    operator.follow(*blocks()[MOVE], stopped=lambda: operator.environment.update(named))
    after = state(operator, key)
    assert [record["name"] for record in after[0]] == ["bard", "legal"]
    assert after[1:4] == before[1:4]
    operator.stop()
    # And back, as the page says.
    for file in operator.homes[0].glob("*.moved-*"):
        file.rename(file.with_name(file.name.partition(".moved-")[0]))
    del operator.environment["LORRY_CATALOG"]
    operator.start()
    assert state(operator, key) == before


def test_every_other_command(operator: Operator, archive: Archive) -> None:
    operator.start()
    fill(operator, archive)
    for heading in ONE_SERVER:
        operator.follow(*blocks()[heading])
    records = operator.servers[0].client.get("/adapters").json()["adapters"]
    assert [record["name"] for record in records] == ["legal"]
    assert set(blocks()) == {HOME, SHARED, MOVE, *ONE_SERVER}, "a block that no test runs"


def test_an_older_server_refuses_a_newer_home(operator: Operator, archive: Archive) -> None:
    operator.start()
    operator.stop()
    with closing(sqlite3.connect(operator.homes[0] / "catalog.sqlite3")) as db:
        db.execute("PRAGMA user_version = 999")
    with pytest.raises(AssertionError, match="was written by a newer Lorry"):
        operator.start()


def _need_programs(*names: str) -> None:
    missing = [name for name in names if shutil.which(name) is None]
    if postgres_programs() is None:
        missing.append("PostgreSQL")
    if missing:
        pytest.skip(f"the page's commands need {', '.join(missing)}")


def _empty(bucket: S3Process) -> None:
    client = boto3.client(
        "s3",
        endpoint_url=bucket.url,
        aws_access_key_id="test",
        aws_secret_access_key="test",
        region_name="us-east-1",
    )
    for name in bucket.found():
        client.delete_object(Bucket=BUCKET, Key=name)
