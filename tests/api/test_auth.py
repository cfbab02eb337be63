"""The key, and pages of other sites."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import httpx
import pytest

from api.live import Live, serve
from lorry.settings import Settings


@pytest.fixture(scope="module")
def locked(
    tmp_path_factory: pytest.TempPathFactory, settings_for: Callable[..., Settings]
) -> Iterator[Live]:
    home = tmp_path_factory.mktemp("home")
    with serve(settings_for(home, api_key="s3cret")) as one:
        yield one


OPEN = ("/health", "/health/live", "/health/ready", "/metrics", "/docs", "/openapi.json")
CLOSED = ("/info", "/v1/models", "/adapters", "/nothing-here")


@pytest.mark.parametrize("path", OPEN)
def test_open_without_a_key(locked: Live, path: str) -> None:
    assert httpx.get(locked.url + path).status_code == 200


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer wrong", "Basic s3cret", "s3cret", "Bearer s3"]
)
@pytest.mark.parametrize("path", CLOSED)
def test_closed_without_the_key(locked: Live, path: str, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}
    answer = httpx.get(locked.url + path, headers=headers)
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "unauthorized"
    assert answer.headers["www-authenticate"] == "Bearer"


def test_the_key_opens(locked: Live) -> None:
    assert locked.http.get("/info").status_code == 200
    assert locked.generate("x")["details"]
    spelled = {"Authorization": "bearer  s3cret"}
    assert httpx.get(locked.url + "/info", headers=spelled).status_code == 200
    odd = {"Authorization": b"Bearer \xff\xfe"}
    assert httpx.get(locked.url + "/info", headers=odd).status_code == 401


def test_generate_refuses_in_its_own_shape(locked: Live) -> None:
    answer = httpx.post(locked.url + "/generate", json={"inputs": "x"})
    assert answer.status_code == 401
    assert answer.json()["error_type"] == "unauthorized"


def test_pages_of_other_sites_may_not_write(live: Live) -> None:
    """A form on any page can post multipart to localhost without asking first."""
    evil = {"Origin": "https://evil.example"}
    files = {"file": ("a.zip", b"x")}
    answer = live.http.post("/adapters", data={"name": "x"}, files=files, headers=evil)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "cross_site_request")
    assert live.http.delete("/adapters/pirate", headers={"Origin": "null"}).status_code == 403
    own = {"Origin": live.url}
    assert live.http.post("/generate", json={"inputs": "x"}, headers=own).status_code == 200
    assert live.http.get("/adapters", headers=evil).status_code == 200
    # Behind a proxy the host is another one, and the browser says that the page is ours.
    proxied = {"Origin": "https://lorry.example", "Sec-Fetch-Site": "same-origin"}
    assert live.http.post("/generate", json={"inputs": "x"}, headers=proxied).status_code == 200
    sneaky = {**own, "Sec-Fetch-Site": "cross-site"}
    assert live.http.post("/generate", json={"inputs": "x"}, headers=sneaky).status_code == 403


def test_a_refused_upload_is_answered_although_nobody_reads_it(locked: Live) -> None:
    files = {"file": ("a.zip", b"\0" * (4 << 20))}
    assert httpx.post(locked.url + "/adapters", files=files).status_code == 401
