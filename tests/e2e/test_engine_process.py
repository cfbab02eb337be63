"""The engine in a process of its own: when it dies, when the server dies, when neither does."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.patience import ENDLESS, PATIENCE, client, wait_until
from support.server import Server, body, start
from support.streams import Refused, stream
from support.truth import Truth

PROMPT = "The harbour was quiet in the morning"
STREAMS = 16


@pytest.fixture
def apart(long_model: Path, tmp_path: Path, archive: Callable[..., Path], truth: Truth) -> Server:
    """A server with adapter `a`; the test ends it."""
    home = tmp_path / "home"
    server = start(long_model, home, "--engine-process", "on", "--kv-cache-memory", "64MiB")
    server.upload("a", archive("plain", 1)).raise_for_status()
    return server


def engine_of(server: Server) -> int:
    """The process that the log names."""
    found = re.search(r"the engine runs in process (\d+)", server.log.read_text())
    assert found is not None, server.tail()
    return int(found.group(1))


def gone(pid: int) -> bool:
    """True if there is no such process, or only its entry waits to be read."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


def test_a_killed_engine_ends_every_stream_with_an_error_and_then_the_server(
    apart: Server,
) -> None:
    begun = threading.Barrier(STREAMS + 1)

    def endless(adapter: str | None) -> Refused:
        with (
            client(apart.url) as http,
            pytest.raises(Refused) as refused,
            stream(http, body(PROMPT, adapter, ENDLESS)) as events,
        ):
            next(events)
            begun.wait(PATIENCE)
            for _ in events:
                pass
        return refused.value

    with ThreadPoolExecutor(STREAMS) as pool:
        streams = [pool.submit(endless, name) for name in ("a", None) * (STREAMS // 2)]
        begun.wait(PATIENCE)
        os.kill(engine_of(apart), signal.SIGKILL)
        for one in streams:
            assert "the engine's process ended" in one.result(PATIENCE).body["error"]
    assert apart.wait() == 1
    assert "the engine's process was ended by signal 9" in apart.log.read_text()


def test_an_engine_ends_with_its_server(apart: Server) -> None:
    pid = engine_of(apart)
    assert not gone(pid)
    assert apart.stop() == 0
    wait_until(lambda: gone(pid), "the engine to end")


def test_an_engine_ends_when_its_server_is_killed(apart: Server) -> None:
    pid = engine_of(apart)
    apart.process.kill()
    apart.process.wait()
    apart.client.close()
    wait_until(lambda: gone(pid), "the engine to end")


def test_what_keeps_the_base_from_being_served_is_told_as_ever(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(AssertionError, match=r"(?s)ended with [12].*empty"):
        start(tmp_path / "empty", tmp_path / "home", "--engine-process", "on")
