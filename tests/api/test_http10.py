"""What clients of HTTP/1.0 are sent: no chunks, and the end of the connection as the end."""

from __future__ import annotations

import json
import socket
from urllib.parse import urlsplit

import pytest

from api.live import Live
from support.patience import PATIENCE


def answer_to(live: Live, request: bytes) -> tuple[bytes, bytes]:
    """Headers and body, until the server ends the connection."""
    at = urlsplit(live.url)
    with socket.create_connection((at.hostname, at.port), timeout=PATIENCE) as connection:
        connection.sendall(request)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.lower(), body


def post(path: str, version: str, **fields: object) -> bytes:
    body = json.dumps(fields).encode()
    head = f"POST {path} HTTP/{version}\r\nContent-Type: application/json\r\n"
    head += f"Host: localhost\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


@pytest.mark.parametrize("path", ["/v1/completions", "/generate_stream"])
def test_a_stream_is_not_cut_into_chunks(live: Live, path: str) -> None:
    if path == "/generate_stream":
        request = post(path, "1.0", inputs="x", parameters={"max_new_tokens": 4})
    else:
        request = post(path, "1.0", prompt="x", max_tokens=4, stream=True)
    head, body = answer_to(live, request)
    assert b"transfer-encoding" not in head and b"connection: close" in head
    lines = [line for line in body.decode().split("\n\n") if line]
    # How many say something depends on what was sampled; a chunk would begin with its length.
    assert len(lines) >= 2 and all(line.startswith("data:") for line in lines)
    modern = answer_to(live, request.replace(b"HTTP/1.0", b"HTTP/1.1", 1))[0]
    assert b"transfer-encoding: chunked" in modern


def test_answers_whose_length_is_known_are_as_ever(live: Live) -> None:
    head, body = answer_to(live, post("/generate", "1.0", inputs="x"))
    assert b"200 ok" in head and json.loads(body)["generated_text"] is not None
    assert b"content-length: %d" % len(body) in head
    head, body = answer_to(live, b"GET /adapters/pirate/content HTTP/1.0\r\n\r\n")
    assert b"transfer-encoding" not in head and body[257:262] == b"ustar"
    head, body = answer_to(live, b"HEAD /adapters/pirate/content HTTP/1.0\r\n\r\n")
    assert b"200 ok" in head and not body
