"""The key, and pages of other sites."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import httpx
import pytest

from api.live import Live, refused, serve
from lorry.settings import Settings
from support.patience import PATIENCE, client


@pytest.fixture(scope="module")
def locked(
    tmp_path_factory: pytest.TempPathFactory, settings_for: Callable[..., Settings]
) -> Iterator[Live]:
    home = tmp_path_factory.mktemp("home")
    with serve(settings_for(home, api_key="s3cret")) as one:
        yield one


@pytest.fixture(scope="module")
def keyless(locked: Live) -> Iterator[httpx.Client]:
    with client(locked.url) as one:
        yield one


OPEN = ("/health", "/health/live", "/health/ready", "/metrics", "/docs", "/openapi.json")
CLOSED = ("/info", "/v1/models", "/adapters", "/nothing-here")


@pytest.mark.parametrize("path", OPEN)
def test_open_without_a_key(keyless: httpx.Client, path: str) -> None:
    assert keyless.get(path).status_code == 200


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer wrong", "Basic s3cret", "s3cret", "Bearer s3"]
)
@pytest.mark.parametrize("path", CLOSED)
def test_closed_without_the_key(keyless: httpx.Client, path: str, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}
    answer = keyless.get(path, headers=headers)
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "unauthorized"
    assert answer.headers["www-authenticate"] == "Bearer"


def test_the_key_opens(locked: Live, keyless: httpx.Client) -> None:
    assert locked.http.get("/info").status_code == 200
    assert locked.generate("x")["details"]
    spelled = {"Authorization": "bearer  s3cret"}
    assert keyless.get("/info", headers=spelled).status_code == 200
    odd = {"Authorization": b"Bearer \xff\xfe"}
    assert keyless.get("/info", headers=odd).status_code == 401


def test_the_key_opens_as_anthropic_s_clients_send_it(locked: Live, keyless: httpx.Client) -> None:
    assert keyless.get("/info", headers={"x-api-key": "s3cret"}).status_code == 200
    both = {"x-api-key": "s3cret", "Authorization": "Bearer of nothing"}
    assert keyless.get("/info", headers=both).status_code == 200
    for wrong in ("", "s3", "Bearer s3cret"):
        assert keyless.get("/info", headers={"x-api-key": wrong}).status_code == 401
    answer = keyless.post("/v1/messages", json={})
    assert answer.status_code == 401
    assert answer.json()["error"]["type"] == "authentication_error"


def test_a_response_is_stored_for_whoever_has_the_key(locked: Live, keyless: httpx.Client) -> None:
    body = {"input": "hi", "max_output_tokens": 2}
    made = locked.http.post("/v1/responses", json=body).json()
    path = f"/v1/responses/{made['id']}"
    assert keyless.get(path).status_code == 401
    assert keyless.get(path, headers={"x-api-key": "s3cret"}).json() == made


def test_generate_refuses_in_its_own_shape(keyless: httpx.Client) -> None:
    answer = keyless.post("/generate", json={"inputs": "x"})
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


def raw(live: Live, request: str) -> tuple[int, str]:
    """Status and the rest of the answer to `request`, sent as it is."""
    at = urlsplit(live.url)
    with socket.create_connection((at.hostname, at.port), timeout=PATIENCE) as connection:
        connection.sendall(request.replace("\n", "\r\n").encode())
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    return int(answer.split()[1]), answer.decode()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/adapters"),
        ("GET", "/adapters/pirate/content"),
        ("GET", "/metrics"),
        ("GET", "/health"),
        ("POST", "/adapters"),
        ("DELETE", "/adapters/pirate"),
        ("PATCH", "/adapters/pirate"),
        ("POST", "/v1/unload_lora_adapter"),
        ("POST", "/v1/chat/completions"),
        ("OPTIONS", "/adapters"),
    ],
)
def test_a_page_whose_name_was_made_to_lead_here(live: Live, method: str, path: str) -> None:
    """To the browser it is all one site: `Origin` is right, and so is `Sec-Fetch-Site`."""
    port = urlsplit(live.url).port
    page = {"Host": f"evil.example:{port}", "Origin": f"http://evil.example:{port}"}
    page |= {"Sec-Fetch-Site": "same-origin", "X-Forwarded-Host": "localhost"}
    answer = live.http.request(method, path, headers=page)
    error = refused(answer, 403, "foreign_host")
    assert "'evil.example'" in error["message"]
    assert error["message"].endswith("--allowed-hosts evil.example")
    assert live.http.get("/adapters/pirate").status_code == 200


def test_a_foreign_host_is_refused_in_the_route_s_own_shape(live: Live) -> None:
    answer = live.http.post("/generate", json={"inputs": "x"}, headers={"Host": "evil.example"})
    assert answer.status_code == 403
    assert answer.json()["error_type"] == "forbidden"
    assert "--allowed-hosts evil.example" in answer.json()["error"]


def test_a_foreign_host_is_refused_before_the_key_is_looked_at(locked: Live) -> None:
    refused(locked.http.get("/adapters", headers={"Host": "evil.example"}), 403, "foreign_host")


def test_the_host_of_requests_that_no_browser_sends(live: Live) -> None:
    end = "Connection: close\n\n"
    assert raw(live, "GET /health HTTP/1.0\n\n")[0] == 200
    assert raw(live, f"GET /health HTTP/1.1\nHost: LOCALHOST.\n{end}")[0] == 200
    # The whole address in the request line, as proxies are sent it, is not what decides.
    assert raw(live, f"GET http://localhost/health HTTP/1.1\nHost: [::1]:1\n{end}")[0] == 200
    assert raw(live, f"GET http://localhost/health HTTP/1.1\nHost: evil.example\n{end}")[0] == 403
    twice = f"GET /health HTTP/1.1\nHost: localhost\nHost: evil.example\n{end}"
    status, text = raw(live, twice)
    assert (status, "malformed_host" in text) == (400, True)
    assert raw(live, f"GET /health HTTP/1.1\nHost: a@localhost\n{end}")[0] == 400


def test_a_refused_upload_is_answered_although_nobody_reads_it(keyless: httpx.Client) -> None:
    files = {"file": ("a.zip", b"\0" * (4 << 20))}
    assert keyless.post("/adapters", files=files).status_code == 401
