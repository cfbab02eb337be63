"""Paths that lead nowhere."""

from __future__ import annotations

import pytest

from api.live import Live, refused
from lorry.api.signpost import nearest


@pytest.mark.parametrize(
    ("method", "path", "meant"),
    [
        ("POST", "/v1/chat/completion", "POST /v1/chat/completions"),
        ("POST", "/v1/v1/chat/completions", "POST /v1/chat/completions"),
        ("POST", "/chat/completions", "POST /v1/chat/completions"),
        ("POST", "/v1/response", "POST /v1/responses"),
        ("POST", "/v1/embedding", "POST /v1/embeddings"),
        ("HEAD", "/helth", None),
        ("GET", "/helth", "GET /health"),
        ("DELETE", "/adapter/pirate", "DELETE /adapters/pirate"),
        ("PUT", "/generat", "POST /generate"),
        ("POST", "/v1/messages/batches", "POST /v1/messages"),
        ("GET", "/v1/model/pirate", "GET /v1/models/pirate"),
    ],
)
def test_the_route_that_was_probably_meant_is_named(
    live: Live, method: str, path: str, meant: str | None
) -> None:
    answer = live.http.request(method, path)
    assert answer.status_code == 404
    if meant is not None:
        message = refused(answer, 404, "no_such_route")["message"]
        assert message.startswith(f"there is no {method} {path} here; did you mean {meant}? ")


def test_head_is_get_and_a_method_that_is_not_taken_is_another() -> None:
    routes = ["POST /adapters", "GET /adapters"]
    assert nearest(routes, "HEAD", "/adapter") == "GET /adapters"
    assert nearest(routes, "PUT", "/adapter") == "POST /adapters"


@pytest.mark.parametrize("path", ["/api/tags", "/" + "x" * 5000, "/v2/nothing/at/all", "//"])
def test_the_routes_that_there_are_are_listed(live: Live, path: str) -> None:
    error = refused(live.http.get(live.url + path), 404, "no_such_route")
    assert "did you mean" not in error["message"] and len(error["message"]) < 300
    document = live.http.get("/openapi.json").json()["paths"]
    documented = {
        f"{method.upper()} {path}" for path, methods in document.items() for method in methods
    }
    assert set(error["routes"]) == documented and "POST /generate" in documented


def test_in_anthropic_s_shape_below_anthropic_s_route(live: Live) -> None:
    answer = live.http.post("/v1/messages/count_token", json={})
    assert answer.status_code == 404
    body = answer.json()
    assert body["error"]["type"] == "not_found_error"
    assert "did you mean POST /v1/messages/count_tokens? " in body["error"]["message"]
    assert "POST /v1/messages" in body["error"]["routes"]
