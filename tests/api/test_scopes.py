"""Every route by every scope, with an adapter in the key's list by name or prefix, or beyond it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from api.live import Live, serve
from lorry.api.route_scopes import METRICS, TABLE
from lorry.settings import Settings
from support.patience import client
from support.scopes import ASKED, SCOPES, permits

OWN, LISTED, FOREIGN = "own", "team-one", "foreign"
NAMES = (OWN, LISTED, FOREIGN)


@pytest.fixture(scope="module")
def scoped(
    tmp_path_factory: pytest.TempPathFactory,
    settings_for: Callable[..., Settings],
    peft_adapter: Callable[..., Path],
) -> Iterator[Live]:
    home = tmp_path_factory.mktemp("home")
    root = peft_adapter("llama", "plain", seed=1).parent
    with serve(settings_for(home, api_key="s3cret", adapter_roots=(root,))) as one:
        yield one


@pytest.fixture(scope="module")
def clients(scoped: Live) -> Iterator[dict[str, httpx.Client]]:
    """By scope; the empty one has no key."""
    made = {"": client(scoped.url)}
    for scope in SCOPES:
        adapters = None if scope == "admin" else [OWN, "team-*"]
        body = {"name": f"key-{scope}", "scopes": [scope], "adapters": adapters}
        made[scope] = client(scoped.url)
        key = scoped.http.post("/keys", json=body).json()["key"]
        made[scope].headers["x-api-key"] = key
    yield made
    for one in made.values():
        one.close()


def test_there_is_a_request_for_every_route() -> None:
    assert ASKED.keys() == TABLE.keys()


def test_only_upload_changes_adapters_and_only_admin_manages() -> None:
    for route, needed in TABLE.items():
        method, _, path = route.partition(" ")
        if path.startswith(("/keys", "/audit", "/unclaimed")):
            assert needed == {"admin"}, route
        elif (path.startswith("/adapters") and method != "GET") or "lora_adapter" in path:
            assert needed == {"upload"}, route


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scope", ["", *SCOPES])
@pytest.mark.parametrize("route", TABLE)
def test_a_route(
    scoped: Live,
    clients: dict[str, httpx.Client],
    archives: Callable[[int], Path],
    peft_adapter: Callable[..., Path],
    route: str,
    scope: str,
    name: str,
) -> None:
    known = {one["name"] for one in scoped.http.get("/adapters").json()["adapters"]}
    for seed, missing in enumerate(NAMES):
        if missing not in known:
            assert scoped.upload(missing, archives(seed)).status_code == 201
    method, _, pattern = route.partition(" ")
    asked = ASKED[route]
    path = (asked.path or pattern).replace("NAME", name)
    body = asked.body(name)
    if body is not None and "lora_path" in body:
        body["lora_path"] = str(peft_adapter("llama", "plain", seed=1))
    sent = clients[scope]
    if asked.fields or route == "POST /adapters":
        with archives(NAMES.index(name)).open("rb") as file:
            form = {**asked.fields, "name": name}
            answer = sent.request(method, path, data=form, files={"file": ("a.zip", file)})
    else:
        answer = sent.request(method, path, json=body)

    if not permits(route, scope):
        assert answer.status_code == (403 if scope else 401), answer.text
        assert "needs one for" in answer.text or not scope
        return
    foreign = asked.foreign if name == FOREIGN and scope in ("generate", "upload") else ""
    if route == f"GET {METRICS}" and scope != "admin":
        # Of any key with a list.
        foreign = asked.foreign
    if foreign in ("403", "404"):
        assert answer.status_code == int(foreign), answer.text
        return
    if foreign:
        assert FOREIGN not in answer.text and OWN in answer.text and LISTED in answer.text
        return
    # What else is wrong with it, such as an adapter that is no classifier, is another matter.
    assert answer.status_code not in (401, 403), answer.text
    assert answer.status_code != 404 or "resp_0" in path or "none" in path or "0" * 64 in str(body)
