"""How a server gets its keys: the first, the last, and bodies that make none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from api.live import Live, refused, serve
from lorry.settings import Settings


@pytest.fixture(scope="module")
def keyed(
    tmp_path_factory: pytest.TempPathFactory, settings_for: Callable[..., Settings]
) -> Iterator[Live]:
    with serve(settings_for(tmp_path_factory.mktemp("home"), api_key="s3cret")) as one:
        yield one


def test_the_first_key_and_the_last(tmp_path: Path, settings_for: Callable[..., Settings]) -> None:
    settings = settings_for(tmp_path / "home")
    with serve(settings) as one:
        team = {"name": "team", "scopes": ["generate"]}
        refused(one.http.post("/keys", json=team), 409, "key_conflict")
        made = one.http.post("/keys", json={"name": "boss", "scopes": ["admin"]}).json()
        assert one.http.get("/adapters").status_code == 401
        one.http.headers["Authorization"] = f"Bearer {made['key']}"
        assert one.http.post("/keys", json=team).status_code == 201
        refused(one.http.delete("/keys/boss"), 409, "key_conflict")
        weaker = one.http.patch("/keys/boss", json={"scopes": ["upload"]})
        refused(weaker, 409, "key_conflict")
    with serve(settings) as one:
        assert one.http.get("/adapters").status_code == 401
        one.http.headers["Authorization"] = f"Bearer {made['key']}"
        assert [key["name"] for key in one.http.get("/keys").json()["keys"]] == ["boss", "team"]
        actions = [entry["action"] for entry in one.http.get("/audit").json()["entries"]]
        assert actions == ["created", "created"]


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"name": "a b", "scopes": ["generate"]}, "name"),
        ({"name": "a", "scopes": []}, "scopes"),
        ({"name": "a", "scopes": ["root"]}, "scopes"),
        ({"name": "a", "scopes": ["generate"], "adapters": ["a//b"]}, "adapters"),
        ({"name": "a", "scopes": ["generate"], "adapters": ["*a"]}, "adapters"),
        ({"name": "a", "scopes": ["admin"], "adapters": ["a"]}, "adapters"),
        ({"name": "a", "scopes": ["generate"], "limits": {"max_rank": 0}}, "max_rank"),
        ({"name": "a", "scopes": ["generate"], "limits": {"max_scale": 17}}, "max_scale"),
        ({"name": "a", "scopes": ["generate"], "limits": {"max_fun": 1}}, "max_fun"),
    ],
)
def test_bad_keys_are_refused(keyed: Live, body: dict[str, Any], named: str) -> None:
    error = refused(keyed.http.post("/keys", json=body), 422, "invalid_request")
    assert named in " ".join(error["problems"])


def test_examples_succeed_as_they_stand(keyed: Live) -> None:
    paths = keyed.http.get("/openapi.json").json()["paths"]
    for method, path, status in (
        ("post", "/keys", 201),
        ("patch", "/keys/{name}", 200),
        ("post", "/keys/{name}/rotate", 200),
    ):
        media = paths[path][method]["requestBody"]["content"]["application/json"]
        at = path.replace("{name}", "legal-team")
        answer = keyed.http.request(method, at, json=media["example"])
        assert answer.status_code == status, answer.text
