"""Many requests at once: who is told what, before what."""

from __future__ import annotations

import json
import selectors
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from api.live import Live, serve
from lorry.settings import Settings
from support.patience import ENDLESS, PATIENCE, wait_until

PROMPT = "How do I cook rice?"
QUEUE = 4


@pytest.fixture
def busy(tmp_path: Path, settings_for: Callable[..., Settings], long_model: Path) -> Iterator[Live]:
    """One request at a time, and few that wait."""
    settings = settings_for(
        tmp_path / "home",
        model=str(long_model),
        kv_cache_memory=64 << 20,
        max_queue=QUEUE,
        max_num_seqs=1,
    )
    with serve(settings) as own:
        yield own


def post(path: str, body: bytes, *, close: bool = True) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += "Connection: close\r\n" if close else ""
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def connect(live: Live, host: str = "") -> socket.socket:
    at = urlsplit(live.url)
    source = (host, 0) if host else None
    return socket.create_connection((at.hostname, at.port), PATIENCE, source)


def generate(tokens: int, prompt: str = PROMPT, **fields: Any) -> bytes:
    parameters = {"max_new_tokens": tokens, "ignore_eos_token": True}
    return json.dumps({"inputs": prompt, "parameters": parameters, **fields}).encode()


def first_lines(connections: dict[str, socket.socket]) -> list[tuple[str, int]]:
    """Names and statuses in the order in which the answers began."""
    order: list[tuple[str, int]] = []
    with selectors.DefaultSelector() as ready:
        for name, connection in connections.items():
            ready.register(connection, selectors.EVENT_READ, name)
        while len(order) < len(connections):
            found = ready.select(PATIENCE)
            assert found, order
            for key, _ in found:
                answer = connections[key.data].recv(65536)
                order.append((key.data, int(answer.split()[1])))
                ready.unregister(key.fileobj)
    return order


def fill(live: Live, stack: ExitStack) -> list[socket.socket]:
    """One that runs and `QUEUE` that wait, of the caller 127.0.0.1."""
    held = []
    for _ in range(1 + QUEUE):
        connection = stack.enter_context(connect(live))
        connection.sendall(post("/generate_stream", generate(ENDLESS)))
        held.append(connection)
        # One after the other: the first has left the queue before it is full.
        if len(held) == 1:
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
    wait_until(lambda: live.server.client.stats.waiting == QUEUE)
    return held


def test_a_full_queue_refuses_before_it_reads_what_is_asked(busy: Live) -> None:
    with ExitStack() as stack:
        fill(busy, stack)
        for path in ("/generate", "/", "/generate_stream", "/v1/completions", "/classify"):
            answer = busy.http.post(path, content=b"{", headers={"Content-Type": "text/plain"})
            assert answer.status_code == 429, path
            assert int(answer.headers["retry-after"]) >= 1
        assert busy.http.post("/tokenize", json={"inputs": PROMPT}).status_code == 200
        assert busy.http.get("/v1/models").status_code == 200
        # A caller of its own has a place, though only one.
        with connect(busy, "127.0.0.2") as other, connect(busy, "127.0.0.2") as second:
            other.sendall(post("/generate", generate(1)))
            wait_until(lambda: busy.server.client.stats.waiting == QUEUE + 1)
            second.sendall(post("/generate", generate(1)))
            assert second.recv(65536).startswith(b"HTTP/1.1 429")


def test_who_is_slow_to_send_keeps_nobody_out(busy: Live) -> None:
    whole = post("/generate", generate(2), close=False)
    with ExitStack() as stack:
        slow = [stack.enter_context(connect(busy)) for _ in range(4 * QUEUE)]
        for connection in slow:
            connection.sendall(whole[:-5])
        assert busy.generate(PROMPT)["generated_text"]
        slow[0].sendall(whole[-5:])
        assert slow[0].recv(65536).startswith(b"HTTP/1.1 200")


def test_health_is_answered_in_the_middle_of_a_rush(busy: Live) -> None:
    """It came last, and is not the last to be answered."""
    prompt = "rice and water " * 60
    kinds = [
        ("/generate", generate(2, prompt)),
        ("/generate", generate(2, prompt, stream=True)),
        ("/v1/completions", json.dumps({"prompt": prompt, "max_tokens": 2}).encode()),
    ]
    with ExitStack() as stack:
        connections = {}
        for index in range(240):
            connections[f"{index}"] = stack.enter_context(connect(busy))
        connections["health"] = stack.enter_context(connect(busy))
        for index in range(240):
            connections[f"{index}"].sendall(post(*kinds[index % 3]))
        connections["health"].sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        order = first_lines(connections)
    assert dict(order)["health"] == 200
    statuses = [status for name, status in order if name != "health"]
    assert set(statuses) == {200, 429}
    behind = [name for name, _ in order[order.index(("health", 200)) + 1 :]]
    # Those that run or wait are answered late anyhow.
    assert len(behind) > 6 * QUEUE
    assert busy.generate(PROMPT)["generated_text"]
    assert busy.server.client.stats.waiting == 0


@pytest.mark.parametrize("path", ["/generate", "/generate_stream", "/v1/completions"])
def test_a_prompt_that_nobody_waits_for_is_not_encoded(live: Live, path: str) -> None:
    """It waits for another long one in the one thread for them, and its client goes."""
    text = "rice " * 400_000
    if path == "/v1/completions":
        body = json.dumps({"prompt": text, "max_tokens": 2, "stream": True}).encode()
    else:
        body = generate(2, text)
    refused = {"code": "context_length_exceeded"}
    before = live.metric("lorry_refused_requests_total", **refused)
    with connect(live) as first:
        first.sendall(post("/generate", generate(2, text)))
        for _ in range(3):
            with connect(live) as gone:
                gone.sendall(post(path, body))
        assert first.recv(65536).startswith(b"HTTP/1.1 422")
    # Behind those that have gone, if they were still there.
    assert live.http.post("/generate", json={"inputs": text}).status_code == 422
    assert live.metric("lorry_refused_requests_total", **refused) == before + 2
