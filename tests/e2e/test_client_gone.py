"""Clients that leave: in the middle of an upload, of a stream, of a wait. Nothing stays behind."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from support.server import Server, body, running
from support.streams import stream

PROMPT = "How do I cook rice?"


@pytest.fixture(scope="module")
def server(
    model: Path, archive: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("gone") / "home"
    with running(model, home, "--max-num-seqs", "2") as server:
        server.upload("a", archive("plain", 1)).raise_for_status()
        yield server


@pytest.fixture(autouse=True)
def nothing_stays(server: Server) -> Iterator[None]:
    """The same answer before and after, and nobody left in the engine."""
    before = server.generate(PROMPT, "a")["details"]
    files = server.open_files()
    yield
    wait_for(lambda: running_and_waiting(server) == 0)
    wait_for(lambda: server.open_files() <= files + 1)
    assert server.generate(PROMPT, "a")["details"] == before
    assert server.metrics()["vllm:kv_cache_usage_perc"] == 0
    assert not list((server.home / "staging").iterdir())
    assert [record["name"] for record in server.client.get("/adapters").json()["adapters"]] == ["a"]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "still not so after 30 s"
        time.sleep(0.02)


def running_and_waiting(server: Server) -> float:
    now = server.metrics()
    return now["vllm:num_requests_running"] + now["vllm:num_requests_waiting"]


@contextlib.contextmanager
def raw(server: Server, head: str, content: bytes) -> Iterator[socket.socket]:
    """A connection on which `head` and `content` were sent; closed after the block."""
    at = urlsplit(server.url)
    with socket.create_connection((at.hostname, at.port), timeout=60) as connection:
        head = head.replace("\n", "\r\n") + f"\r\nHost: {at.netloc}\r\n\r\n"
        connection.sendall(head.encode() + content)
        yield connection


def multipart(archive: Path) -> bytes:
    request = httpx.Request(
        "POST",
        "http://x/adapters",
        data={"name": "half"},
        files={"file": archive.read_bytes()},
        headers={"Content-Type": "multipart/form-data; boundary=seam"},
    )
    return request.read()


UPLOAD = "POST /adapters HTTP/1.1\nContent-Type: multipart/form-data; boundary=seam\n"


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_in_the_middle_of_an_upload(
    server: Server, archive: Callable[..., Path], share: float
) -> None:
    whole = multipart(archive("large", 1))
    with raw(server, UPLOAD + f"Content-Length: {len(whole)}", whole[: int(len(whole) * share)]):
        # The server has begun to read it: its folder in staging is there.
        wait_for(lambda: bool(list((server.home / "staging").iterdir())))
    wait_for(lambda: not list((server.home / "staging").iterdir()))


def test_in_the_middle_of_a_chunked_upload(server: Server, archive: Callable[..., Path]) -> None:
    half = multipart(archive("large", 1))[:50_000]
    chunk = f"{len(half):x}\r\n".encode() + half + b"\r\n"
    with raw(server, UPLOAD + "Transfer-Encoding: chunked", chunk):
        wait_for(lambda: bool(list((server.home / "staging").iterdir())))
    wait_for(lambda: not list((server.home / "staging").iterdir()))


def test_in_the_middle_of_a_stream(server: Server) -> None:
    """The engine stops at once: far fewer tokens are made than were asked for."""
    made = "vllm:generation_tokens_total"
    before = server.metrics()
    for adapter in ("a", None):
        with (
            httpx.Client(base_url=server.url, timeout=60) as client,
            stream(client, body(PROMPT, adapter, 480)) as events,
        ):
            next(events)
    wait_for(lambda: running_and_waiting(server) == 0)
    after = server.metrics()
    assert after[made] - before[made] < 480
    steps = "lorry_engine_steps_total"
    assert after[steps] - before[steps] < 480


@pytest.mark.parametrize("path", ["/generate", "/v1/completions", "/v1/chat/completions"])
def test_while_waiting_for_the_whole_answer(server: Server, path: str) -> None:
    asked = {
        "/generate": body(PROMPT, "a", 480),
        "/v1/completions": {"prompt": PROMPT, "model": "a", "max_tokens": 480},
        "/v1/chat/completions": {
            "messages": [{"role": "user", "content": PROMPT}],
            "model": "a",
            "max_tokens": 440,
        },
    }[path]
    content = json.dumps(asked).encode()
    steps = server.metrics()["lorry_engine_steps_total"]
    head = f"POST {path} HTTP/1.1\nContent-Type: application/json\nContent-Length: {len(content)}"
    with raw(server, head, content):
        wait_for(lambda: running_and_waiting(server) > 0)
    wait_for(lambda: running_and_waiting(server) == 0)
    assert server.metrics()["lorry_engine_steps_total"] - steps < 400


def test_while_waiting_in_the_queue(server: Server) -> None:
    """Two run, a third waits and leaves; it never runs, and the two are not disturbed."""
    with contextlib.ExitStack() as stack:
        running_ = []
        for _ in range(2):
            client = stack.enter_context(httpx.Client(base_url=server.url, timeout=60))
            events = stack.enter_context(stream(client, body(PROMPT, None, 450)))
            next(events)
            running_.append(events)
        content = json.dumps(body(PROMPT, "a", 450)).encode()
        head = "POST /generate HTTP/1.1\nContent-Type: application/json\n"
        with raw(server, f"{head}Content-Length: {len(content)}", content):
            wait_for(lambda: server.metrics()["vllm:num_requests_waiting"] == 1)
        wait_for(lambda: server.metrics()["vllm:num_requests_waiting"] == 0)
        for events in running_:
            assert len(list(events)) == 449


def test_half_a_request_line_and_garbage(server: Server) -> None:
    for content in (b"POST /gen", b"\x00\xff\x16\x03garbage\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"):
        at = urlsplit(server.url)
        with socket.create_connection((at.hostname, at.port), timeout=60) as connection:
            connection.sendall(content)
