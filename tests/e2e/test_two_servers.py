"""Two real servers over one PostgreSQL and one store of files. `test_crash` kills them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from support import server as servers
from support.patience import wait_until
from support.postgres import Postgres
from support.server import Server

Archive = Callable[..., Path]


@pytest.fixture
def company(model: Path, tmp_path: Path, catalog_url: str) -> Iterator[list[Server]]:
    """Both of them."""
    environment = {"LORRY_CATALOG": catalog_url, "LORRY_STORE": f"file://{tmp_path}/store"}
    with ThreadPoolExecutor(2) as pool:
        started = [
            pool.submit(servers.start, model, tmp_path / name, env=environment)
            for name in ("one", "two")
        ]
    both = [one.result() for one in started]
    yield both
    for server in both:
        server.stop()


def record(server: Server, name: str = "a") -> dict[str, Any] | None:
    """What is in force there, without what is the server's own."""
    answer = server.client.get(f"/adapters/{name}")
    if answer.status_code == 404:
        return None
    return {key: value for key, value in answer.json().items() if key != "residency"}


def answer(server: Server, adapter: Any, **parameters: Any) -> tuple[str, Any]:
    told = server.generate("once upon", adapter, **parameters)
    return told["generated_text"], told["adapters"]


def test_what_is_changed_at_one_is_in_force_at_the_other(
    company: list[Server], archive: Archive
) -> None:
    one, two = company
    assert one.upload("a", archive("plain", 1)).status_code == 201
    wait_until(lambda: record(two) == record(one))
    first = answer(one, "a")
    assert answer(two, "a") == first
    assert first[0] != answer(two, None)[0]
    assert two.upload("a", archive("plain", 2), replace="true").status_code == 201
    wait_until(lambda: record(one) == record(two))
    second = answer(one, "a")
    assert second == answer(two, "a") != first
    assert answer(one, "a@1") == first
    assert one.client.patch("/adapters/a", json={"version": 1}).status_code == 200
    wait_until(lambda: record(two) == record(one))
    assert answer(two, "a") == first
    check_names(company, first, second)
    two.client.patch("/adapters/a", json={"enabled": False})
    wait_until(lambda: record(one) == record(two))
    refused = one.client.post("/generate", json=servers.body("once", "a"))
    assert refused.status_code == 409
    one.client.delete("/adapters/a")
    wait_until(lambda: record(two) is None)
    refused = two.client.post("/generate", json=servers.body("once", "a"))
    assert refused.status_code == 404
    # Keys, too.
    made = one.client.post("/keys", json={"name": "boss", "scopes": ["admin"]})
    assert made.status_code == 201
    wait_until(lambda: two.client.get("/adapters").status_code == 401)
    headers = {"x-api-key": made.json()["key"]}
    assert two.client.get("/adapters", headers=headers).status_code == 200
    entries = two.client.get("/audit", headers=headers).json()["entries"]
    # The names were changed five times.
    actions = ["created", "removed", *["changed"] * 7, "replaced", "added"]
    assert [entry["action"] for entry in entries] == actions


def check_names(company: list[Server], first: tuple[str, Any], second: tuple[str, Any]) -> None:
    """An alias is set, moved and removed, and a split begun and promoted, each at one server: then
    the other answers by it."""
    changes: list[tuple[str, dict[str, Any], str, list[tuple[str, Any]]]] = [
        ("a", {"aliases": {"prod": 1}}, "prod", [first]),
        ("prod", {"version": 2}, "prod", [second]),
        ("a", {"split": {"1": 1, "2": 1}, "aliases": {"prod": None}}, "a", [first, second]),
        ("a", {"version": 2}, "a", [second]),
        ("a", {"version": 1}, "a", [first]),
    ]
    for number, (path, change, name, expected) in enumerate(changes):
        here, there = company[number % 2], company[1 - number % 2]
        here.client.patch(f"/adapters/{path}", json=change).raise_for_status()
        wait_until(partial(_agree, here, there))
        # Each seed has its version of a split, the same at both.
        told = [answer(there, name, seed=seed) for seed in range(12)]
        assert told == [answer(here, name, seed=seed) for seed in range(12)]
        assert all(one in told for one in expected) and all(one in expected for one in told)
    assert record(company[1], "prod") is None


def _agree(one: Server, two: Server) -> bool:
    return record(one) == record(two)


def test_without_the_database_both_serve_what_they_know(
    company: list[Server], archive: Archive, postgres: Postgres
) -> None:
    one, two = company
    assert one.upload("a", archive("plain", 1)).status_code == 201
    wait_until(lambda: record(two) == record(one))
    before = [answer(one, adapter) for adapter in ("a", None)]
    postgres.stop()
    for server in company:
        refused = server.client.post("/keys", json={"name": "k", "scopes": ["admin"]})
        assert refused.status_code == 503, refused.text
        assert refused.json()["error"]["code"] == "catalog_unavailable"
        refused = server.client.patch("/adapters/a", json={"scale": 0.5})
        assert refused.status_code == 503, refused.text
        wait_until(partial(_is_warned, server))
        assert server.metrics()["lorry_catalog_up"] == 0
        assert [answer(server, adapter) for adapter in ("a", None)] == before
    postgres.start()
    for server in company:
        wait_until(partial(_is_up, server))
    assert one.client.patch("/adapters/a", json={"scale": 0.5}).status_code == 200
    wait_until(lambda: record(two) == record(one))


def _is_warned(server: Server) -> bool:
    ready = server.client.get("/health/ready")
    assert ready.status_code == 200
    return "cannot be used" in str(ready.json().get("warning"))


def _is_up(server: Server) -> bool:
    return server.metrics()["lorry_catalog_up"] == 1
