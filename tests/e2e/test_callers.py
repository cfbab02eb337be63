"""Whose request it is, where a proxy may stand between."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from support.patience import ENDLESS, PATIENCE, wait_until
from support.server import Server, body, running


@contextmanager
def held(server: Server, header: str = "") -> Iterator[socket.socket]:
    """A request that is sent, and whose client stays."""
    at = urlsplit(server.url)
    request = server.client.build_request("POST", "/generate_stream", json=body("x", None, ENDLESS))
    content = request.read()
    head = f"POST /generate_stream HTTP/1.1\r\nHost: {at.netloc}\r\n{header}"
    head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    with socket.create_connection((at.hostname, at.port), timeout=PATIENCE) as connection:
        connection.sendall(head.encode() + content)
        yield connection


@pytest.mark.parametrize("proxies", [None, "127.0.0.0/8"])
def test_a_caller_is_who_a_trusted_proxy_says(
    long_model: Path, tmp_path: Path, proxies: str | None
) -> None:
    """Else whoever fills the queue would be somebody else the next time."""
    flags = ["--max-num-seqs", "1", "--max-queue", "1", "--kv-cache-memory", "64MiB"]
    flags += ["--trusted-proxies", proxies] if proxies else []
    with running(long_model, tmp_path / "home", *flags) as server, ExitStack() as stack:

        def until_waiting(count: int) -> None:
            wait_until(lambda: server.metrics()["vllm:num_requests_waiting"] == count)

        first = stack.enter_context(held(server))
        assert first.recv(65536).startswith(b"HTTP/1.1 200")
        stack.enter_context(held(server))
        until_waiting(1)
        other = stack.enter_context(held(server, "X-Forwarded-For: 192.0.2.7\r\n"))
        if proxies:
            until_waiting(2)
        else:
            assert other.recv(65536).startswith(b"HTTP/1.1 429")
