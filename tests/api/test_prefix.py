"""A server below a path of somebody else's: of a setting, or as a trusted proxy says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.live import Live, serve
from lorry.errors import SettingsError
from lorry.settings import Settings

FORWARDED = {"X-Forwarded-Prefix": "/llm/"}


@pytest.fixture(scope="module")
def below(
    tmp_path_factory: pytest.TempPathFactory, settings_for: Callable[..., Settings]
) -> Iterator[Live]:
    """Below /lorry, and behind proxies on this machine."""
    home = tmp_path_factory.mktemp("home")
    settings = settings_for(
        home, api_key="s3cret", root_path="/lorry", trusted_proxies=("127.0.0.0/8",)
    )
    with serve(settings) as one:
        yield one


def documented(live: Live, **asked: Any) -> None:
    """The page and its document name only paths below `prefix`."""
    prefix = asked.pop("prefix")
    page = live.http.get("/docs", **asked).text
    assert f"'{prefix}/openapi.json'" in page
    assert f'"{prefix}/docs/swagger-ui-bundle.js"' in page
    assert f'"{prefix}/docs/swagger-ui.css"' in page
    document = live.http.get("/openapi.json", **asked).json()
    assert document["servers"] == [{"url": prefix or "/"}]


def test_the_proxy_may_cut_the_prefix_off_or_leave_it_on(below: Live) -> None:
    body = {"inputs": "x", "parameters": {"max_new_tokens": 2}}
    for prefix in ("", "/lorry"):
        assert below.http.get(f"{prefix}/v1/models").status_code == 200
        answer = below.http.post(f"{prefix}/generate", json=body)
        assert answer.status_code == 200 and "generated_text" in answer.json()
        # Errors have the shape of their route, and what is open without a key is open.
        refused = below.http.post(f"{prefix}/generate", json={})
        assert "error_type" in refused.json()
        health = below.http.get(f"{prefix}/health", headers={"Authorization": ""})
        assert health.status_code == 200
        closed = below.http.get(f"{prefix}/info", headers={"Authorization": ""})
        assert closed.status_code == 401
    answer = below.http.post("/lorry", json=body)
    assert answer.status_code == 200 and isinstance(answer.json(), list)


def test_the_documentation_keeps_the_prefix(below: Live, live: Live) -> None:
    documented(below, prefix="/lorry")
    documented(below, prefix="/llm", headers=FORWARDED)
    documented(below, prefix="", headers={"X-Forwarded-Prefix": "/"})
    documented(live, prefix="")


def test_redirects_keep_the_prefix(below: Live, live: Live) -> None:
    def to(one: Live, path: str, **headers: str) -> str:
        answer = one.http.get(path, headers=headers)
        assert answer.status_code == 307, answer.text
        return answer.headers["location"]

    assert to(below, "/lorry/adapters/?a=b") == "/lorry/adapters?a=b"
    assert to(below, "/adapters/") == "/lorry/adapters"
    assert to(below, "/adapters/", **FORWARDED) == "/llm/adapters"
    assert to(below, "/docs/", **FORWARDED) == "/llm/docs"
    assert to(live, "/adapters/") == "/adapters"
    assert to(live, "/v1/models/") == "/v1/models"
    # Nowhere else, whatever the path looks like.
    # A client would take `//evil.example` for another host.
    url = httpx.URL(live.url).copy_with(raw_path=b"//evil.example/adapters/")
    assert live.http.get(url).status_code == 404


def test_a_forwarded_host_counts_for_nothing(below: Live) -> None:
    """Not even a trusted proxy's: addresses of ours are paths, and `Host` is what was asked for."""
    headers = {**FORWARDED, "X-Forwarded-Host": "llm.example", "X-Forwarded-Proto": "https"}
    assert below.http.get("/adapters/", headers=headers).headers["location"] == "/llm/adapters"
    documented(below, prefix="/llm", headers=headers)
    lying = {"Host": "evil.example", "X-Forwarded-Host": "localhost"}
    assert below.http.get("/v1/models", headers=lying).status_code == 403


@pytest.mark.parametrize("prefix", ["//evil.example", "/a/../b", "x", "/a'b", "/a?b", "https://x"])
def test_a_prefix_that_is_no_path_counts_for_nothing(below: Live, prefix: str) -> None:
    documented(below, prefix="/lorry", headers={"X-Forwarded-Prefix": prefix})


def test_a_prefix_of_nobody_in_particular_is_not_believed(live: Live) -> None:
    documented(live, prefix="", headers=FORWARDED)
    assert live.http.get("/llm/v1/models", headers=FORWARDED).status_code == 404


def test_a_forwarded_prefix_that_our_own_paths_begin_with_was_cut_off(below: Live) -> None:
    """Else `/v1/models` below /v1 would be asked for as `/models`."""
    headers = {"X-Forwarded-Prefix": "/v1"}
    assert below.http.get("/v1/models", headers=headers).status_code == 200
    documented(below, prefix="/v1", headers=headers)


def test_a_root_path_that_is_a_path_of_ours_is_refused(
    tmp_path: Path, settings_for: Callable[..., Settings]
) -> None:
    with (
        pytest.raises(SettingsError, match="--root-path /v1: paths of the server"),
        serve(settings_for(tmp_path / "home", root_path="/v1")),
    ):
        pass
