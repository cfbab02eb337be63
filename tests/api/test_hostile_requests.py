"""Bodies that are to keep the server busy: refused for what they are, in few words."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from urllib.parse import urlsplit

import pytest

from api.live import Live
from lorry.api import arrival
from support.hostile_requests import HostileRequest, hostile_bodies, hostile_forms
from support.patience import PATIENCE

HOSTILE = {**hostile_forms(), **hostile_bodies()}


@pytest.mark.parametrize("name", HOSTILE)
def test_refused(live: Live, name: str) -> None:
    request: HostileRequest = HOSTILE[name]
    headers = {"content-type": request.content_type, **request.headers}
    answer = live.http.post(request.path, headers=headers, content=request.make())
    assert answer.status_code == request.status, answer.text[:500]
    assert len(answer.content) < 10_000


def test_many_mistakes_are_counted(live: Live) -> None:
    unknown = {f"k{number}": 0 for number in range(2000)}
    answer = live.http.post("/v1/completions", json={"prompt": "x", **unknown})
    assert answer.json()["error"]["problems"] == [
        "the body has 2000 wrong or unknown fields, too many to list"
    ]


def test_some_mistakes_are_told(live: Live) -> None:
    unknown = {f"seed{number}": 0 for number in range(60)}
    problems = live.http.post("/v1/completions", json=unknown).json()["error"]["problems"]
    assert "prompt is required" in problems and any(
        "unknown field seed7" in one for one in problems
    )
    assert len(problems) == 51 and problems[-1] == "and 11 more problems"


@pytest.mark.parametrize(
    ("value", "said"),
    [([[]] * 9000, "not [[], [],"), ("x" * 9000, 'not "xxx'), ({"k" * 9000: 0}, 'not {"kkk')],
)
def test_a_wrong_value_is_shown_in_part(live: Live, value: object, said: str) -> None:
    answer = live.http.post("/generate", json={"inputs": "x", "parameters": {"seed": value}})
    assert said in answer.json()["error"]
    assert len(answer.content) < 500


def test_a_long_prompt_of_brackets_is_a_prompt(live: Live) -> None:
    """What is inside a string counts for nothing."""
    answer = live.http.post("/generate", json={"inputs": '{[:,\\"' * 100_000})
    assert answer.json()["error_type"] == "validation"
    assert "tokens" in answer.json()["error"]


@pytest.mark.parametrize(
    ("path", "kind", "begun"),
    [
        ("/generate", "application/json", b'{"inputs": "x"'),
        ("/adapters", "multipart/form-data; boundary=x", b"--x\r\ncontent-disp"),
    ],
)
def test_a_body_that_does_not_come(
    live: Live, path: str, kind: str, begun: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrival, "PATIENCE", 0.5)
    address = urlsplit(live.url)
    head = f"POST {path} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: {kind}\r\n"
    with socket.create_connection((address.hostname, address.port), PATIENCE) as connection:
        connection.sendall(f"{head}Content-Length: 5000\r\n\r\n".encode() + begun)
        answer = connection.recv(1 << 16)
    assert answer.startswith(b"HTTP/1.1 408 ")


def test_a_body_that_drips(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """It never stops for long, and never comes to an end."""
    monkeypatch.setattr(arrival, "PATIENCE", 1.0)
    address = urlsplit(live.url)
    head = "POST /generate HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 99999\r\n"
    answered = threading.Event()

    def drip(connection: socket.socket) -> None:
        with suppress(OSError):  # the answer may have come, and the connection gone
            while not answered.wait(0.05):
                connection.sendall(b" ")

    with (
        socket.create_connection((address.hostname, address.port), PATIENCE) as connection,
        ThreadPoolExecutor(1) as pool,
    ):
        connection.sendall(f"{head}Host: {address.netloc}\r\n\r\n".encode())
        dripping = pool.submit(drip, connection)
        try:
            answer = connection.recv(1 << 16)
        finally:
            answered.set()
        dripping.result()
    assert answer.startswith(b"HTTP/1.1 408 ")
