"""The page that shows the API, and its document: nothing from elsewhere, examples that work."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from api.live import Live, serve
from lorry.settings import Settings

NEEDS_FILES = {
    "/classify": "a classifier's adapter",
    "/score": "a classifier's adapter",
    "/v1/score": "a classifier's adapter",
    "/rerank": "a classifier's adapter",
    "/v1/rerank": "a classifier's adapter",
    "/adapters": "a folder of the machine",
    "/unclaimed": "files that were lost",
    "/v1/load_lora_adapter": "a folder of the machine",
    "/v1/unload_lora_adapter": "an adapter that the others need",
}
"""Examples that name what only their reader has."""


@pytest.fixture(scope="module")
def document(live: Live) -> dict[str, Any]:
    return live.http.get("/openapi.json").json()  # type: ignore[no-any-return]


def operations(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (method, path): operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


def test_the_page_has_all_that_it_needs_here(live: Live) -> None:
    page = live.http.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    sources = re.findall(r"""(?:src|href|url)(?:=|: )["']([^"']+)["']""", page.text)
    assert len(sources) == 4
    for source in sources:
        if source.startswith("data:image/"):
            continue
        assert source.startswith("/"), "from another host"
        answer = live.http.get(source)
        assert answer.status_code == 200 and len(answer.content) > 1000, source
    assert "SwaggerUIBundle" in live.http.get("/docs/swagger-ui-bundle.js").text
    assert live.http.get("/docs/redoc.standalone.js").status_code == 404


def test_every_route_has_a_sentence_and_every_json_body_an_example(
    document: dict[str, Any],
) -> None:
    for (method, path), operation in operations(document).items():
        assert operation.get("description", "").strip().endswith("."), f"{method} {path}"
        body = operation.get("requestBody", {"content": {}})["content"].get("application/json")
        assert body is None or body.get("example"), f"{method} {path}"


def test_examples_succeed_as_they_stand(live: Live, document: dict[str, Any]) -> None:
    tried = 0
    for (method, path), operation in operations(document).items():
        body = operation.get("requestBody", {"content": {}})["content"].get("application/json")
        # Those of keys are tried where there are some (test_first_key).
        if body is None or path in NEEDS_FILES or path.startswith("/keys"):
            continue
        at = path.replace("{name}", "pirate")
        answer = live.http.request(method, at, json=body["example"])
        assert answer.status_code == 200, (path, answer.text)
        tried += 1
    assert tried > 6
    assert live.http.patch("/adapters/pirate", json={"scale": 1}).status_code == 200


def test_who_needs_a_key_is_told(
    live: Live, document: dict[str, Any], tmp_path: Path, settings_for: Callable[..., Settings]
) -> None:
    scheme = document["components"]["securitySchemes"]["key"]
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    assert {} in document["security"], "this server asks for none"
    with serve(settings_for(tmp_path / "home", api_key="s3cret")) as locked:
        headers = {"Authorization": ""}
        assert locked.http.get("/docs/swagger-ui.css", headers=headers).status_code == 200
        document = locked.http.get("/openapi.json", headers=headers).json()
    assert document["security"] == [{"key": []}]
    assert document["paths"]["/health"]["get"]["security"] == []
    assert "security" not in document["paths"]["/generate"]["post"]
