"""Two real servers over one PostgreSQL and one store of files; each part is killed in turn."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from support import server as servers
from support.patience import wait_until
from support.postgres import Postgres
from support.server import Server

State = tuple[int, float, bool]
"""Version, scale, enabled."""
States = dict[str, State]

Archive = Callable[..., Path]


class Company:
    """Two servers, and what clients were told about their adapters."""

    def __init__(self, model: Path, root: Path, url: str) -> None:
        self._model, self._root = model, root
        self._env = {"LORRY_CATALOG": url, "LORRY_STORE": f"file://{root}/store"}
        self.names = ["one", "two"]
        with ThreadPoolExecutor(2) as pool:
            self.servers: list[Server] = list(pool.map(self._started, self.names))

    def _started(self, name: str) -> Server:
        return servers.start(self._model, self._root / name, env=self._env)

    def kill(self, at: int) -> None:
        self.servers[at].process.kill()
        self.servers[at].process.wait()
        self.servers[at].client.close()

    def again(self, at: int) -> None:
        self.servers[at] = self._started(self.names[at])

    def stop(self) -> None:
        for server in self.servers:
            server.stop()


@pytest.fixture
def company(model: Path, tmp_path: Path, catalog_url: str) -> Iterator[Company]:
    made = Company(model, tmp_path, catalog_url)
    yield made
    made.stop()


def listed(server: Server) -> States:
    found = server.client.get("/adapters").json()["adapters"]
    return {one["name"]: (one["version"], one["scale"], one["enabled"]) for one in found}


def warning(server: Server) -> str:
    ready = server.client.get("/health/ready")
    assert ready.status_code == 200
    return str(ready.json().get("warning"))


def answer(server: Server, adapter: Any) -> tuple[str, Any]:
    told = server.generate("once upon", adapter)
    return told["generated_text"], told["adapters"]


def test_what_is_changed_at_one_is_in_force_at_the_other(
    company: Company, archive: Archive
) -> None:
    one, two = company.servers
    assert one.upload("a", archive("plain", 1)).status_code == 201
    wait_until(lambda: listed(two) == listed(one))
    first = answer(one, "a")
    assert answer(two, "a") == first
    assert first[0] != answer(two, None)[0]
    assert two.upload("a", archive("plain", 2), replace="true").status_code == 201
    wait_until(lambda: listed(one)["a"][0] == 2)
    assert answer(one, "a") == answer(two, "a") != first
    assert answer(one, "a@1") == first
    assert one.client.patch("/adapters/a", json={"version": 1}).status_code == 200
    wait_until(lambda: listed(two)["a"][0] == 1)
    assert answer(two, "a") == first
    two.client.patch("/adapters/a", json={"enabled": False})
    wait_until(lambda: not listed(one)["a"][2])
    refused = one.client.post("/generate", json=servers.body("once", "a"))
    assert refused.status_code == 409
    one.client.delete("/adapters/a")
    wait_until(lambda: listed(two) == {})
    refused = two.client.post("/generate", json=servers.body("once", "a"))
    assert refused.status_code == 404
    # Keys, too.
    made = one.client.post("/keys", json={"name": "boss", "scopes": ["admin"]})
    assert made.status_code == 201
    wait_until(lambda: two.client.get("/adapters").status_code == 401)
    headers = {"x-api-key": made.json()["key"]}
    assert two.client.get("/adapters", headers=headers).status_code == 200
    actions = [e["action"] for e in two.client.get("/audit", headers=headers).json()["entries"]]
    assert actions == ["created", "removed", "changed", "changed", "replaced", "added"]


def after(states: States, change: tuple[Any, ...]) -> States:
    """What is there after a change that was made."""
    kind, name, value = change
    old = states.get(name)
    new = dict(states)
    if kind == "push":
        new[name] = (1, 1.0, True) if old is None else (old[0] + 1, *old[1:])
    elif kind == "remove":
        new.pop(name, None)
    elif old is not None:
        new[name] = (old[0], value, old[2]) if kind == "scale" else (*old[:2], value)
    return new


@pytest.mark.parametrize("seed", [1])
def test_nothing_that_was_told_is_lost(
    company: Company, archive: Archive, postgres: Postgres, seed: int
) -> None:
    dice = random.Random(seed)
    possible: list[States] = [{}]
    """What may be there: more than one state after a change whose end nobody heard."""
    numbers: dict[str, int] = {}
    pool = ThreadPoolExecutor(1)

    def change(server: Server) -> tuple[tuple[Any, ...], Callable[[], httpx.Response]]:
        name, kind = dice.choice("ab"), dice.choice(["push", "push", "scale", "enable", "remove"])
        client = server.client
        if kind == "push":
            # Other content each time: a version more.
            numbers[name] = numbers.get(name, 0) + 1
            number = 10 * "ab".index(name) + numbers[name] % 6
            path = archive("plain", number)
            return (kind, name, number), lambda: server.upload(name, path, replace="true")
        if kind == "remove":
            return (kind, name, None), lambda: client.delete(f"/adapters/{name}")
        value = dice.choice([0.25, 0.5, 2.0]) if kind == "scale" else dice.random() < 0.5
        body = {"scale" if kind == "scale" else "enabled": value}
        return (kind, name, value), lambda: client.patch(f"/adapters/{name}", json=body)

    def one_change(server: Server, meanwhile: Callable[[], None] = lambda: None) -> int | None:
        nonlocal possible
        what, call = change(server)
        asked = pool.submit(call)
        meanwhile()
        status = None
        with suppress(httpx.TransportError):
            status = asked.result().status_code
        if status in (200, 201, 204):
            possible = [after(states, what) for states in possible]
        elif status in (None, 503):
            possible += [after(states, what) for states in possible]
        else:
            assert status == 404 and what[0] != "push", (status, what)
        return status

    def settled() -> None:
        """Both servers agree on one of the possible states."""
        nonlocal possible
        one, two = company.servers
        wait_until(lambda: listed(one) == listed(two), "both to agree")
        found = listed(one)
        assert found in possible, (found, possible)
        possible = [found]
        for name, (_, _, enabled) in found.items():
            if enabled:
                assert answer(one, name) == answer(two, name)

    for part in ("one", "database", "two"):
        for _ in range(6):
            one_change(dice.choice(company.servers))
        settled()
        if part == "database":
            warm = answer(company.servers[0], None)
            one_change(company.servers[0], postgres.stop)
            for server in company.servers:
                refused = server.client.post("/keys", json={"name": "k", "scopes": ["admin"]})
                assert refused.status_code == 503, refused.text
                assert refused.json()["error"]["code"] == "catalog_unavailable"
                wait_until(lambda server=server: "cannot be used" in warning(server))
                assert server.metrics()["lorry_catalog_up"] == 0
                assert answer(server, None) == warm
                for name, (_, _, enabled) in possible[0].items():
                    if enabled and len(possible) == 1:
                        answer(server, name)
            postgres.start()
            for server in company.servers:
                wait_until(lambda server=server: server.metrics()["lorry_catalog_up"] == 1)
        else:
            at = ("one", "two").index(part)
            one_change(company.servers[at], lambda at=at: company.kill(at))
            for _ in range(3):
                assert one_change(company.servers[1 - at]) != 503
            company.again(at)
        settled()
    pool.shutdown()
    assert os.listdir(company._root / "one" / "staging") == []
