"""HEAD where GET is, and `Allow`."""

from __future__ import annotations

import pytest

from api.live import Live


@pytest.mark.parametrize(
    "path",
    ("/health", "/metrics", "/v1/models", "/adapters/pirate", "/docs", "/openapi.json", "/info"),
)
def test_head_says_what_get_says_and_sends_nothing(live: Live, path: str) -> None:
    head, get = live.http.head(path), live.http.get(path)
    assert head.status_code == get.status_code == 200
    assert head.content == b""
    assert head.headers["content-type"] == get.headers["content-type"]
    assert head.headers.get("etag") == get.headers.get("etag")
    assert int(head.headers["content-length"]) > 0


def test_head_of_what_is_not_there(live: Live) -> None:
    assert live.http.head("/nothing-here").status_code == 404
    assert live.http.head("/v1/models/nobody").status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/adapters", "GET, HEAD, POST"),
        ("POST", "/adapters/pirate", "GET, HEAD, PUT, PATCH, DELETE"),
        ("HEAD", "/v1/completions", "POST"),
        ("GET", "/generate", "POST"),
        ("PUT", "/v1/models", "GET, HEAD"),
        ("OPTIONS", "/unclaimed", "GET, HEAD, POST"),
    ],
)
def test_allow_has_all_that_the_path_takes(
    live: Live, method: str, path: str, allowed: str
) -> None:
    answer = live.http.request(method, path)
    assert answer.status_code == 405
    assert answer.headers["allow"] == allowed
    if method != "HEAD":
        assert allowed in answer.text


def test_every_path_tells_all_its_methods(live: Live) -> None:
    for path, operations in live.http.get("/openapi.json").json()["paths"].items():
        taken = {method.upper() for method in operations}
        taken |= {"GET"} if path == "/" else set()  # the page
        taken |= {"HEAD"} if "GET" in taken else set()
        for method in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"} - taken:
            answer = live.http.request(method, path.replace("{", "").replace("}", ""))
            assert answer.status_code == 405, (method, path)
            assert set(answer.headers["allow"].split(", ")) == taken, (method, path)
