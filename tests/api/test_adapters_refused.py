"""What is no adapter, no name, no scale and no change: refused over HTTP, and nothing stays."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from api.live import MAX_UPLOAD, Live, refused
from support.patience import wait_until


@pytest.mark.parametrize(
    ("data", "files", "problems"),
    [
        ({}, {"file": b"x"}, ["name is required"]),
        ({"name": "x"}, {}, ["file is required"]),
        ({}, {}, ["name is required", "file is required"]),
        ({"name": "x", "scale": "big", "enabled": "maybe", "foo": "1"}, {"file": b"x"}, ["scale"]),
        ({"name": "x"}, {"adapter_config.json": b"{}"}, ["adapter_model.safetensors is required"]),
        ({"name": "x"}, {"file": b"x", "adapter_config.json": b"{}"}, ["either"]),
        ({"name": "x"}, {"file": b"x", "weights": b"y"}, ["unknown file 'weights'"]),
        ({"name": ["x", "y", "z"]}, {"file": b"x"}, ["name is given twice"]),
    ],
)
def test_fields_that_are_missing_or_wrong(
    fresh: Live, data: dict[str, Any], files: dict[str, bytes], problems: list[str]
) -> None:
    parts: list[Any] = [
        (name, (None, value)) for name, value in data.items() if isinstance(value, str)
    ]
    parts += [(n, (None, one)) for n, v in data.items() if isinstance(v, list) for one in v]
    parts += [(name, (f"{name}.bin", content)) for name, content in files.items()]
    parts = parts or [("nothing", (None, ""))]
    answer = fresh.http.post("/adapters", files=parts)
    found = refused(answer, 422, "invalid_request")["problems"]
    for problem in problems:
        assert any(problem in one for one in found), found
    assert len(set(found)) == len(found)


@pytest.mark.parametrize(
    "name",
    [
        "a//b",
        "/a",
        "a/",
        "a/content",
        "a:",
        "a/../b",
        "../up",
        "tiny",
        ".hidden",
        "a b",
        "x" * 129,
        "a@1",
    ],
)
def test_bad_names(fresh: Live, archives: Callable[[int], Path], name: str) -> None:
    refused(fresh.upload(name, archives(1)), 422, "invalid_adapter_name")


@pytest.mark.parametrize("scale", ["nan", "inf", "17", "-16.1"])
def test_bad_scales(fresh: Live, archives: Callable[[int], Path], scale: str) -> None:
    refused(fresh.upload("legal", archives(1), scale=scale), 422, "invalid_scale")
    assert fresh.http.get("/adapters/legal").status_code == 404


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"scale": 17}, "invalid_scale"),
        ({"scale": "1"}, "invalid_scale"),
        ({"scale": True}, "invalid_scale"),
        ({"enabled": "yes"}, "invalid_request"),
        ({"version": 1.5}, "invalid_request"),
        ({"name": "other"}, "invalid_request"),
    ],
)
def test_bad_changes(
    fresh: Live, archives: Callable[[int], Path], body: dict[str, Any], code: str
) -> None:
    record = fresh.upload("legal", archives(1)).json()
    refused(fresh.http.patch("/adapters/legal", json=body), 422, code)
    assert fresh.http.get("/adapters/legal").json() == record


def test_what_is_no_form(fresh: Live) -> None:
    for kind in ("text/plain", "application/octet-stream", "application/x-www-form-urlencoded"):
        answer = fresh.http.post("/adapters", content=b"x", headers={"Content-Type": kind})
        refused(answer, 415, "unsupported_media_type")
    kind = "multipart/form-data; boundary=b"
    cut = b'--b\r\nContent-Disposition: form-data; name="name"\r\n\r\nlegal\r\n--b\r\nContent-'
    for content in (cut, b"nonsense", b""):
        answer = fresh.http.post("/adapters", content=content, headers={"Content-Type": kind})
        refused(answer, 400, "malformed_body")
    answer = fresh.http.post(
        "/adapters", content=cut, headers={"Content-Type": "multipart/form-data"}
    )
    refused(answer, 400, "malformed_body")


def test_what_is_no_archive(fresh: Live) -> None:
    files = {"file": ("a.zip", b"this is no archive")}
    answer = fresh.http.post("/adapters", data={"name": "legal"}, files=files)
    refused(answer, 415, "unsupported_upload")


def test_too_large(fresh: Live) -> None:
    files = {"file": ("a.zip", b"\0" * (2 * MAX_UPLOAD))}
    answer = fresh.http.post("/adapters", data={"name": "legal"}, files=files)
    refused(answer, 413, "upload_too_large")

    def endless() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        for _ in range(8):
            yield b"\0" * (MAX_UPLOAD // 2)

    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = fresh.http.post("/adapters", content=endless(), headers=headers)
    refused(answer, 413, "upload_too_large")
    staged(fresh, 0)


def staged(live: Live, count: int) -> None:
    """Waits until there are `count` uploads in staging."""

    def uploads() -> int:
        # The server may delete a folder while it is listed.
        with suppress(FileNotFoundError):
            return len(list(live.server.settings.home.rglob("upload-*")))
        return -1

    wait_until(lambda: uploads() == count, f"{count} uploads in staging")


def test_a_client_that_leaves_in_the_middle_leaves_nothing(fresh: Live) -> None:
    host, port = fresh.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            f"POST /adapters HTTP/1.1\r\nHost: {host}\r\nContent-Length: 1200000\r\n"
            "Content-Type: multipart/form-data; boundary=b\r\n\r\n"
            '--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'.encode()
            + b"\0" * 1_100_000
        )
        staged(fresh, 1)
    staged(fresh, 0)
    assert fresh.http.get("/adapters").json() == {"adapters": []}
    assert fresh.http.get("/health").status_code == 200


def test_unknown_adapters(fresh: Live) -> None:
    for answer in (
        fresh.http.get("/adapters/nobody"),
        fresh.http.patch("/adapters/nobody", json={"scale": 1}),
        fresh.http.delete("/adapters/nobody"),
        fresh.http.get("/adapters/nobody/content"),
    ):
        refused(answer, 404, "unknown_adapter")
    refused(fresh.http.delete("/adapters/nobody?version=x"), 422, "invalid_request")
