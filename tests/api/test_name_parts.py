"""Names as people have them: `org/name` and `base:adapter`, in every route, body and URL."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from api.live import Live, refused, serve
from lorry.settings import Settings

ORG, OF_BASE, DEEP = "org/name", "tiny:pirate", "org/team/x:y"
NAMES = (ORG, OF_BASE, DEEP)


@pytest.fixture(scope="module")
def named(
    tmp_path_factory: pytest.TempPathFactory,
    settings_for: Callable[..., Settings],
    archives: Callable[[int], Path],
) -> Iterator[Live]:
    with serve(settings_for(tmp_path_factory.mktemp("home"), api_key="s3cret")) as one:
        for seed, name in enumerate(NAMES):
            assert one.upload(name, archives(seed)).status_code == 201
        yield one


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", {"inputs": "Ahoy", "adapter": "NAME"}),
        ("/generate", {"inputs": "Ahoy", "adapter": "NAME@1"}),
        ("/generate", {"inputs": "Ahoy", "adapter": [{"name": "NAME", "scale": 1}]}),
        ("/generate", {"inputs": "Ahoy", "parameters": {"adapter_id": "NAME"}}),
        ("/v1/completions", {"prompt": "Ahoy", "model": "NAME", "max_tokens": 1}),
        ("/v1/completions", {"prompt": "Ahoy", "model": "NAME@1", "max_tokens": 1}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "a"}], "model": "NAME"}),
    ],
)
def test_a_body(named: Live, path: str, body: dict[str, Any], name: str) -> None:
    given = json.loads(json.dumps(body).replace("NAME", name))
    if path == "/v1/messages":
        given["max_tokens"] = 1
    answer = named.http.post(path, json=given)
    assert answer.status_code == 200, answer.text
    told = answer.json()["adapters"]
    assert [(one["name"], one["version"]) for one in told] == [(name, 1)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("encoded", [False, True])
def test_a_path(named: Live, name: str, encoded: bool) -> None:
    shown = name.replace("/", "%2F").replace(":", "%3A") if encoded else name
    record = named.http.get(f"/adapters/{shown}").json()
    assert record["name"] == name
    assert named.http.patch(f"/adapters/{shown}", json={"scale": 1}).json()["name"] == name
    assert named.http.get(f"/v1/models/{shown}").json()["id"] == name
    tar = named.http.get(f"/adapters/{shown}/content")
    assert tar.status_code == 200
    told = tar.headers["content-disposition"].partition("filename=")[2]
    assert told.strip('"').removesuffix(".tar").replace("-", "").isalnum()


def test_a_new_version_and_a_removal(named: Live, archives: Callable[[int], Path]) -> None:
    with archives(7).open("rb") as file:
        answer = named.http.put("/adapters/org/name", files={"file": ("a.zip", file)})
    assert (answer.status_code, answer.json()["version"]) == (200, 2)
    assert named.upload("org/gone", archives(5)).status_code == 201
    assert named.http.delete("/adapters/org/gone").status_code == 204
    assert named.http.get("/adapters/org/gone").status_code == 404
    assert named.http.get("/adapters/org/name").status_code == 200


def test_a_slash_at_the_end_is_redirected_as_everywhere(named: Live) -> None:
    for path in ("/adapters/", "/adapters/org/name/"):
        answer = named.http.get(path, follow_redirects=False)
        assert answer.status_code == 307
        assert answer.headers["location"].endswith(path.rstrip("/"))


@pytest.mark.parametrize("name", ["a/", "a//b", "a/content", "a/../b", ":a", "a@b", "org/-x"])
def test_a_name_that_is_refused_is_told_the_rule(
    named: Live, archives: Callable[[int], Path], name: str
) -> None:
    message = refused(named.upload(name, archives(6)), 422, "invalid_adapter_name")["message"]
    assert "'/content'" in message or "joined by '/' or ':'" in message


def test_a_revision_is_refused_by_a_rule(named: Live) -> None:
    answer = named.http.post("/generate", json={"inputs": "Ahoy", "adapter": "org/name@main"})
    assert answer.status_code == 422
    assert "'main'" in answer.text and "org/name@3" in answer.text


def test_keys_of_an_organisation(named: Live) -> None:
    body = {"name": "team", "scopes": ["upload"], "adapters": ["org/*"]}
    key = {"authorization": "Bearer " + named.http.post("/keys", json=body).json()["key"]}
    listed = named.http.get("/adapters", headers=key).json()["adapters"]
    assert {one["name"] for one in listed} == {ORG, DEEP}
    assert named.http.get("/adapters/org/name", headers=key).status_code == 200
    assert named.http.get(f"/adapters/{OF_BASE}", headers=key).status_code == 404
    # The path of the files needs its own scope, whatever the name looks like.
    body = {"name": "asker", "scopes": ["generate"]}
    key = {"authorization": "Bearer " + named.http.post("/keys", json=body).json()["key"]}
    assert named.http.get("/adapters/org/name", headers=key).status_code == 200
    for path in ("/adapters/org/name/content", "/adapters/org%2Fname%2Fcontent"):
        assert named.http.get(path, headers=key).status_code == 403
