"""Pages of other origins: none may use the server unless a setting lets it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import httpx
import pytest

from api.live import Live, refused, serve
from lorry.settings import Settings
from support.patience import client

ALLOWED = "http://localhost:3000"
FOREIGN = "https://evil.example"
KEY = {"Authorization": "Bearer s3cret"}
ASK = {"inputs": "x", "parameters": {"max_new_tokens": 2}}


@pytest.fixture(scope="module")
def shared(
    tmp_path_factory: pytest.TempPathFactory, settings_for: Callable[..., Settings]
) -> Iterator[httpx.Client]:
    """A client without a key of a server that asks for one, and lets two origins in."""
    home = tmp_path_factory.mktemp("home")
    settings = settings_for(home, api_key="s3cret", allowed_origins=(ALLOWED, "app://obsidian.md"))
    with serve(settings) as one, client(one.url) as http:
        yield http


def preflight(http: httpx.Client, path: str, origin: str, method: str = "POST") -> httpx.Response:
    asked = {"Origin": origin, "Access-Control-Request-Method": method}
    asked["Access-Control-Request-Headers"] = "authorization,content-type,x-stainless-os"
    return http.options(path, headers=asked)


def test_an_allowed_page_may_ask_before_it_sends(shared: httpx.Client) -> None:
    for method, path in (("POST", "/v1/chat/completions"), ("DELETE", "/adapters/x")):
        answer = preflight(shared, path, ALLOWED, method)
        assert answer.status_code == 200, answer.text
        assert answer.headers["access-control-allow-origin"] == ALLOWED
        assert method in answer.headers["access-control-allow-methods"]
        # The key travels in a header of the page's own.
        assert "authorization" in answer.headers["access-control-allow-headers"]


def test_an_allowed_page_is_answered(shared: httpx.Client) -> None:
    for origin in (ALLOWED, "app://obsidian.md"):
        page = {"Origin": origin, "Sec-Fetch-Site": "cross-site"}
        answer = shared.post("/generate", json=ASK, headers={**page, **KEY})
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == origin
        assert "retry-after" in answer.headers["access-control-expose-headers"].lower()
        # It may read what was wrong, too.
        answer = shared.post("/generate", json=ASK, headers=page)
        assert answer.status_code == 401
        assert answer.headers["access-control-allow-origin"] == origin


def test_other_pages_stay_out_and_read_how_to_get_in(shared: httpx.Client, live: Live) -> None:
    for http in (shared, live.http):
        for answer in (
            preflight(http, "/v1/chat/completions", FOREIGN),
            http.post("/v1/chat/completions", json={}, headers={"Origin": FOREIGN, **KEY}),
        ):
            error = refused(answer, 403, "cross_site_request")
            assert error["message"].endswith(f"--allowed-origins {FOREIGN}")
            assert "access-control-allow-origin" not in answer.headers
    answer = shared.get("/v1/models", headers={"Origin": FOREIGN, **KEY})
    assert answer.status_code == 200 and "access-control-allow-origin" not in answer.headers
    assert "Origin" in answer.headers["vary"], "no cache gives one page what is another's"


def test_a_name_that_was_made_up_is_not_pasted_into_a_command(live: Live) -> None:
    page = {"Origin": "https://x.example/$(rm)"}
    answer = live.http.post("/v1/completions", json={}, headers=page)
    error = refused(answer, 403, "cross_site_request")
    assert error["message"].endswith("--allowed-origins ORIGIN")


def test_a_server_for_any_page(
    tmp_path_factory: pytest.TempPathFactory, settings_for: Callable[..., Settings]
) -> None:
    settings = settings_for(tmp_path_factory.mktemp("home"), allowed_origins=("*",))
    with serve(settings) as one:
        for origin in (FOREIGN, "null", "chrome-extension://abc"):
            assert preflight(one.http, "/generate", origin).status_code == 200
            answer = one.http.post("/generate", json=ASK, headers={"Origin": origin})
            assert answer.status_code == 200
            assert answer.headers["access-control-allow-origin"] == "*"
            # By the browser's own keys, such as cookies, no page is let in.
            assert "access-control-allow-credentials" not in answer.headers
        # A page that has its name lead here is another matter.
        page = {"Host": "evil.example", "Origin": "http://evil.example"}
        answer = one.http.post("/v1/completions", json={}, headers=page)
        refused(answer, 403, "foreign_host")
