"""Places that may not be fetched from, and answers that are no adapters. Each is refused, and a
good adapter answers as before."""

from __future__ import annotations

import io
import socket
import zipfile
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from api.fetching import fetch
from api.live import Live, refused, serve
from lorry.fetch import download
from lorry.settings import Settings
from support.https_server import HttpsServer, redirect, send


@pytest.mark.parametrize(
    ("source", "status", "code"),
    [
        ("https://example.com/a.zip", 403, "forbidden_source"),
        ("https://localhost/a.zip", 403, "forbidden_source"),
        ("https://127.0.0.1:{port}/legal.zip", 403, "forbidden_source"),
        ("https://[::1]:{port}/legal.zip", 403, "forbidden_source"),
        ("https://2130706433:{port}/legal.zip", 403, "forbidden_source"),
        ("https://169.254.169.254/latest/meta-data", 403, "forbidden_source"),
        ("https://metadata.google.internal/a", 403, "forbidden_source"),
        ("s3://bucket/legal", 403, "forbidden_source"),
        ("gs://bucket/legal", 403, "forbidden_source"),
        ("/etc", 403, "forbidden_source"),
        ("http://localhost:{port}/legal.zip", 422, "unsupported_parameter"),
        ("ftp://localhost:{port}/legal.zip", 422, "unsupported_parameter"),
        ("https://user:secret@localhost:{port}/legal.zip", 422, "invalid_request"),
        ("https://localhost:{port}/legal.zip#x", 422, "invalid_request"),
        ("https://localhost:{port}\\@example.com/a.zip", 422, "invalid_request"),
    ],
)
def test_other_places_are_refused_before_anything_is_sent(
    good: Live, origin: HttpsServer, source: str, status: int, code: str
) -> None:
    answer = fetch(good, source.format(port=origin.port))
    assert refused(answer, status, code)["param"] == "source"
    assert "secret" not in answer.text and origin.requests == []


def test_a_server_without_a_list_fetches_nothing(live: Live, origin: HttpsServer) -> None:
    origin.requests.clear()
    for source in (f"{origin.url}/legal.zip", "org/name", "hf://org/name", "s3://bucket/key"):
        error = refused(fetch(live, source, name="other"), 403, "forbidden_source")
        assert "fetches nothing" in error["message"]
    assert origin.requests == []


@pytest.mark.parametrize(
    "location",
    [
        "https://example.com/legal.zip",
        "https://127.0.0.1:{port}/legal.zip",
        "https://localhost/legal.zip",
        "http://localhost:{port}/legal.zip",
        "https://user:secret@localhost:{port}/legal.zip",
        "//169.254.169.254/latest",
        "file:///etc/passwd",
        "https://[broken",
    ],
)
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_elsewhere(good: Live, origin: HttpsServer, location: str, status: int) -> None:
    origin.answers["/away.zip"] = redirect(location.format(port=origin.port), status)
    refused(fetch(good, f"{origin.url}/away.zip"), 403, "forbidden_source")
    assert len(origin.requests) == 1


def test_redirects_within_are_followed_and_have_an_end(good: Live, origin: HttpsServer) -> None:
    origin.answers["/near.zip"] = redirect("legal.zip")
    assert fetch(good, f"{origin.url}/near.zip").status_code == 201
    origin.answers["/round.zip"] = redirect("/round.zip")
    error = refused(fetch(good, f"{origin.url}/round.zip", "round"), 502, "source_failed")
    assert "redirects more than" in error["message"]


@pytest.mark.parametrize(
    ("addresses", "status"),
    [
        (["127.0.0.1"], 201),
        (["10.0.0.1"], 403),
        (["::1"], 403),
        (["169.254.169.254", "10.0.0.1"], 403),
        (["169.254.169.254", "127.0.0.1"], 201),
        ([], 502),
    ],
)
def test_the_address_that_is_connected_to_is_checked(
    good: Live,
    origin: HttpsServer,
    monkeypatch: pytest.MonkeyPatch,
    addresses: list[str],
    status: int,
) -> None:
    """Each name is looked up once, so that a second answer cannot be another."""
    looked_up = []

    async def resolve(host: str, port: int) -> list[str]:
        looked_up.append((host, port))
        return addresses

    monkeypatch.setattr(download, "resolve", resolve)
    answer = fetch(good, f"{origin.url}/legal.zip")
    assert answer.status_code == status, answer.text
    assert looked_up == [("localhost", origin.port)]


def bomb() -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("adapter_config.json", "{}")
        archive.writestr("adapter_model.safetensors", bytes(64 << 20))
    return packed.getvalue()


def endless(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    handler.close_connection = True
    while True:
        handler.wfile.write(bytes(1 << 16))


def cut_off(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b"PK\x03\x04")
    handler.close_connection = True


def hangs_up(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


def says(status: int, body: bytes, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    return lambda handler: send(handler, status, body, **headers)


@pytest.mark.parametrize(
    ("answer", "status", "code", "words"),
    [
        (says(200, bytes(3 << 20)), 413, "upload_too_large", "larger than"),
        (says(200, b"", Content_Length=str(1 << 40)), 413, "upload_too_large", "larger than"),
        (endless, 413, "upload_too_large", "larger than"),
        (says(200, bomb()), 413, "upload_too_large", "larger than"),
        (says(200, b"<html>sign in</html>"), 415, "unsupported_upload", "no archive"),
        (says(200, b""), 415, "unsupported_upload", "empty"),
        (says(200, b"\x80\x02}q\x00."), 415, "unsupported_upload", "pickle"),
        (says(200, b"x", Content_Encoding="gzip"), 502, "source_failed", "compressed"),
        (says(404, b"gone"), 502, "source_failed", "answered 404"),
        (says(401, b"who?"), 502, "source_failed", "answered 401"),
        (says(500, b"oh"), 502, "source_failed", "answered 500"),
        (says(204, b""), 502, "source_failed", "answered 204"),
        (says(206, b"PK"), 502, "source_failed", "answered 206"),
        (cut_off, 502, "source_failed", "cannot be read"),
        (hangs_up, 502, "source_failed", "cannot be read"),
    ],
)
def test_bad_answers(
    good: Live, origin: HttpsServer, answer: Any, status: int, code: str, words: str
) -> None:
    origin.answers["/bad.zip"] = answer
    error = refused(fetch(good, f"{origin.url}/bad.zip?signature=secret"), status, code)
    assert words in error["message"] and "secret" not in error["message"]
    assert error["param"] == "source"
    told = refused(good.http.get("/adapters/legal"), 404, "unknown_adapter")["message"]
    assert words in told and "secret" not in told


def test_a_folder_without_its_files(good: Live, origin: HttpsServer) -> None:
    error = refused(fetch(good, f"{origin.url}/nowhere"), 415, "unsupported_upload")
    assert "has no adapter_config.json" in error["message"]
    origin.answers["/half/adapter_config.json"] = says(200, b"{}")
    error = refused(fetch(good, f"{origin.url}/half"), 415, "unsupported_upload")
    assert "has no adapter_model.safetensors" in error["message"]


def test_a_certificate_that_nobody_vouches_for(
    tmp_path: Path,
    settings_for: Callable[..., Settings],
    origin: HttpsServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    origin.requests.clear()
    settings = settings_for(tmp_path / "home", adapter_sources=(origin.host, "127.0.0.1"))
    with serve(settings) as own:
        error = refused(fetch(own, f"{origin.url}/legal.zip"), 502, "source_failed")
    assert "certificate" in error["message"].lower() and origin.requests == []
