"""Clients that leave: in the middle of an upload, of a stream, of a wait. Nothing stays behind."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from support.patience import ENDLESS, PATIENCE, client, wait_until
from support.server import Server, body, running
from support.streams import stream

PROMPT = "How do I cook rice?"


@pytest.fixture(scope="module")
def server(
    long_model: Path, archive: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("gone") / "home"
    flags = ("--max-num-seqs", "2", "--kv-cache-memory", "64MiB")
    with running(long_model, home, *flags) as server:
        server.upload("a", archive("plain", 1)).raise_for_status()
        yield server


@pytest.fixture(autouse=True)
def nothing_stays(server: Server) -> Iterator[None]:
    """The same answer before and after, and nobody left in the engine."""
    before = server.generate(PROMPT, "a")["details"]
    files = server.open_files()
    yield
    wait_until(lambda: running_and_waiting(server) == 0)
    wait_until(lambda: server.open_files() <= files + 1)
    assert server.generate(PROMPT, "a")["details"] == before
    assert server.metrics()["vllm:kv_cache_usage_perc"] == 0
    assert not list((server.home / "staging").iterdir())
    assert [record["name"] for record in server.client.get("/adapters").json()["adapters"]] == ["a"]


def running_and_waiting(server: Server) -> float:
    now = server.metrics()
    return now["vllm:num_requests_running"] + now["vllm:num_requests_waiting"]


@contextlib.contextmanager
def raw(server: Server, head: str, content: bytes) -> Iterator[socket.socket]:
    """A connection on which `head` and `content` were sent; closed after the block."""
    at = urlsplit(server.url)
    with socket.create_connection((at.hostname, at.port), timeout=PATIENCE) as connection:
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
        wait_until(lambda: bool(list((server.home / "staging").iterdir())))
    wait_until(lambda: not list((server.home / "staging").iterdir()))


def test_in_the_middle_of_a_chunked_upload(server: Server, archive: Callable[..., Path]) -> None:
    half = multipart(archive("large", 1))[:50_000]
    chunk = f"{len(half):x}\r\n".encode() + half + b"\r\n"
    with raw(server, UPLOAD + "Transfer-Encoding: chunked", chunk):
        wait_until(lambda: bool(list((server.home / "staging").iterdir())))
    wait_until(lambda: not list((server.home / "staging").iterdir()))


def test_in_the_middle_of_a_stream(server: Server) -> None:
    """The engine stops at once: far fewer tokens are made than were asked for."""
    made = "vllm:generation_tokens_total"
    before = server.metrics()
    for adapter in ("a", None):
        with (
            client(server.url) as http,
            stream(http, body(PROMPT, adapter, ENDLESS)) as events,
        ):
            next(events)
    wait_until(lambda: running_and_waiting(server) == 0)
    after = server.metrics()
    assert after[made] - before[made] < ENDLESS
    steps = "lorry_engine_steps_total"
    assert after[steps] - before[steps] < ENDLESS


@pytest.mark.parametrize(
    "path",
    ["/generate", "/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages"],
)
def test_while_waiting_for_the_whole_answer(server: Server, path: str) -> None:
    asked = {
        "/generate": body(PROMPT, "a", ENDLESS),
        "/v1/completions": {
            "prompt": PROMPT,
            "model": "a",
            "max_tokens": ENDLESS,
            "ignore_eos": True,
        },
        "/v1/chat/completions": {
            "messages": [{"role": "user", "content": PROMPT}],
            "model": "a",
            "max_tokens": ENDLESS,
            "ignore_eos": True,
        },
        "/v1/responses": {
            "input": PROMPT,
            "model": "a",
            "max_output_tokens": ENDLESS,
            "ignore_eos": True,
        },
        "/v1/messages": {
            "messages": [{"role": "user", "content": PROMPT}],
            "model": "a",
            "max_tokens": ENDLESS,
            "ignore_eos": True,
        },
    }[path]
    content = json.dumps(asked).encode()
    steps = server.metrics()["lorry_engine_steps_total"]
    head = f"POST {path} HTTP/1.1\nContent-Type: application/json\nContent-Length: {len(content)}"
    with raw(server, head, content):
        wait_until(lambda: running_and_waiting(server) > 0)
    wait_until(lambda: running_and_waiting(server) == 0)
    assert server.metrics()["lorry_engine_steps_total"] - steps < ENDLESS


def test_while_waiting_in_the_queue(server: Server) -> None:
    """Two run, a third waits and leaves; it never runs, and the two are not disturbed."""
    first_tokens = "vllm:time_to_first_token_seconds_count"
    with contextlib.ExitStack() as stack:
        running_ = []
        for _ in range(2):
            http = stack.enter_context(client(server.url))
            events = stack.enter_context(stream(http, body(PROMPT, None, ENDLESS)))
            next(events)
            running_.append(events)
        begun = server.metrics()[first_tokens]
        content = json.dumps(body(PROMPT, "a", ENDLESS)).encode()
        head = "POST /generate HTTP/1.1\nContent-Type: application/json\n"
        with raw(server, f"{head}Content-Length: {len(content)}", content):
            wait_until(lambda: server.metrics()["vllm:num_requests_waiting"] == 1)
        wait_until(lambda: server.metrics()["vllm:num_requests_waiting"] == 0)
        said = [[next(events)["token"]["id"] for _ in range(20)] for events in running_]
        assert said[0] == said[1]
        assert server.metrics()["vllm:num_requests_running"] == 2
        assert server.metrics()[first_tokens] == begun


def test_half_a_request_line_and_garbage(server: Server) -> None:
    for content in (b"POST /gen", b"\x00\xff\x16\x03garbage\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"):
        at = urlsplit(server.url)
        with socket.create_connection((at.hostname, at.port), timeout=PATIENCE) as connection:
            connection.sendall(content)
