"""SIGTERM with requests running, and what is still there after a restart."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

from support.patience import ENDLESS, PATIENCE, client, wait_until
from support.server import Server, body, start
from support.streams import Answer, Refused, stream
from support.truth import Truth

PROMPT = "The harbour was quiet in the morning"


def listing(server: Server) -> list[dict[str, Any]]:
    records = server.client.get("/adapters").json()["adapters"]
    for record in records:
        del record["residency"]
    return records


def test_sigterm_lets_running_requests_finish(
    model: Path, tmp_path: Path, archive: Callable[..., Path], truth: Truth
) -> None:
    """New ones are told 503 meanwhile, and the process ends with status 0."""
    server = start(model, tmp_path / "home", "--shutdown-grace", f"{PATIENCE:g}")
    server.upload("a", archive("plain", 1)).raise_for_status()
    begun = threading.Barrier(9)

    def long_stream(adapter: str | None) -> Answer:
        answer = Answer()
        with (
            client(server.url) as http,
            stream(http, body(PROMPT, adapter, 450)) as events,
        ):
            answer.events.append(next(events))
            begun.wait(PATIENCE)
            answer.events.extend(events)
        return answer

    with ThreadPoolExecutor(9) as pool:
        streams = [pool.submit(long_stream, adapter) for adapter in ("a", None) * 4]
        begun.wait(PATIENCE)
        with server.frozen():
            # They have a few tokens of 450: when it goes on, the signal and the first new
            # request are there already.
            server.terminate()
            asking = pool.submit(_until_refused, server)
        refused = asking.result(PATIENCE)
        still_running = sum(not future.done() for future in streams)
        assert still_running, "too fast to prove anything"
        assert refused.headers["retry-after"]
        assert refused.json()["error_type"] == "overloaded"
        answers = [future.result(PATIENCE) for future in streams]
    for answer in answers:
        assert len(answer.token_ids) == 450
        assert answer.last["details"]["finish_reason"] == "length"
        adapters = answer.last["adapters"]
        assert answer.token_ids[:20] == truth.tokens(PROMPT, adapters, 20)
    server.client.close()
    assert server.wait() == 0, server.tail()


def _until_refused(server: Server) -> httpx.Response:
    """The signal takes a moment to arrive; requests before that are served as ever."""
    while True:
        answer = server.client.post("/generate", json=body("x", None, 1))
        if answer.status_code == 503:
            assert server.client.get("/health/live").status_code == 200
            assert server.client.get("/health/ready").status_code == 503
            return answer
        assert answer.status_code == 200


def test_the_grace_period_ends(long_model: Path, tmp_path: Path) -> None:
    """What has not finished by then is told so, and the process ends all the same."""
    flags = ("--shutdown-grace", "0", "--kv-cache-memory", "64MiB")
    server = start(long_model, tmp_path / "home", *flags)
    cut = 0
    with ExitStack() as stack:
        streams = []
        for _ in range(8):
            http = stack.enter_context(client(server.url))
            streams.append(stack.enter_context(stream(http, body(PROMPT, None, ENDLESS))))
        for events in streams:
            next(events)
        server.terminate()
        for events in streams:
            try:
                for _ in events:
                    pass
            except Refused as refused:
                assert refused.body["error_type"] == "overloaded"
                cut += 1
            except httpx.TransportError:
                cut += 1
    assert cut == 8
    server.client.close()
    assert server.wait() == 0, server.tail()


def test_adapters_survive_a_restart_and_a_crash(
    model: Path, tmp_path: Path, archive: Callable[..., Path], truth: Truth
) -> None:
    home = tmp_path / "home"
    server = start(model, home)
    server.upload("plain", archive("plain", 1), description="first").raise_for_status()
    server.upload("scaled", archive("rslora", 1), scale="0.5").raise_for_status()
    server.upload("off", archive("small", 1)).raise_for_status()
    server.upload("gone", archive("regex", 1)).raise_for_status()
    server.client.patch("/adapters/off", json={"enabled": False}).raise_for_status()
    server.client.patch("/adapters/plain", json={"pinned": True}).raise_for_status()
    server.client.delete("/adapters/gone").raise_for_status()
    before = listing(server)
    answer = server.generate(PROMPT, ["plain", "scaled"])
    assert server.stop() == 0

    server = start(model, home)
    assert listing(server) == before
    assert server.generate(PROMPT, ["plain", "scaled"]) == answer
    assert server.client.post("/generate", json=body(PROMPT, "off")).status_code == 409
    assert server.client.post("/generate", json=body(PROMPT, "gone")).status_code == 404
    with archive("large", 1).open("rb") as file:
        server.client.put("/adapters/plain", files={"file": file}).raise_for_status()
    server.client.patch("/adapters/scaled", json={"scale": -1.0}).raise_for_status()
    before = listing(server)
    server.process.send_signal(signal.SIGKILL)
    server.wait()
    server.client.close()

    server = start(model, home)
    assert listing(server) == before
    new = server.generate(PROMPT, ["plain", "scaled"])
    tokens = [token["id"] for token in new["details"]["tokens"]]
    assert tokens == truth.tokens(PROMPT, new["adapters"], 8)
    assert [used["scale"] for used in new["adapters"]] == [1.0, -1.0]
    assert server.stop() == 0


def test_sigterm_before_it_serves_ends_it(tmp_path: Path) -> None:
    """By a handler of its own: the kernel ignores the signal for a container's first process if
    there is none."""
    # The start waits for a writer, for ever.
    config = tmp_path / "settings.toml"
    os.mkfifo(config)
    command = [sys.executable, "-m", "lorry", "serve", "--config", str(config)]
    log = tmp_path / "out"
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    caught = re.compile(r"^SigCgt:\s*([0-9a-f]+)$", re.MULTILINE)

    def handles_it() -> bool:
        signals = caught.search(Path(f"/proc/{process.pid}/status").read_text())
        return signals is not None and bool(int(signals[1], 16) >> (signal.SIGTERM - 1) & 1)

    try:
        wait_until(handles_it, "a handler of SIGTERM")
        process.terminate()
        assert process.wait(PATIENCE) == 128 + signal.SIGTERM, log.read_text()
    finally:
        process.kill()
