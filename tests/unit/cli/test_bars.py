"""Slow commands show how far they are, in a terminal and nowhere else."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread

import pytest

from lorry.cli import bars

PROGRAM = [sys.executable, "-m", "lorry"]


def run(*command: str) -> str:
    """Run a command whose standard error is a pipe, and return what it writes there."""
    done = subprocess.run([*PROGRAM, *command], stdin=subprocess.DEVNULL, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return done.stderr.decode()


@contextmanager
def terminal() -> Iterator[tuple[int, list[bytes]]]:
    """The descriptor of a terminal, and what is written there, complete after the block."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 120))
    said: list[bytes] = []

    def read() -> None:
        # Linux has an error for the end.
        with suppress(OSError):
            while part := os.read(ours, 1 << 16):
                said.append(part)

    reader = Thread(target=read)
    reader.start()
    try:
        yield theirs, said
    finally:
        os.close(theirs)
        reader.join()
        os.close(ours)


def run_in_terminal(*command: str) -> str:
    """The same with a terminal as standard error."""
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    environment.pop("HF_HUB_DISABLE_PROGRESS_BARS", None)
    with terminal() as (descriptor, said):
        done = subprocess.run(
            [*PROGRAM, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=descriptor,
            env=environment,
        )
    assert done.returncode == 0, said
    return b"".join(said).decode()


@pytest.fixture
def adapters(peft_adapter: Callable[..., Path]) -> list[str]:
    return [f"{peft_adapter('llama', 'plain', seed=seed)}:1" for seed in (1, 2)]


def test_merge(adapters: list[str], tmp_path: Path) -> None:
    command = ["adapters", "merge", *adapters, "--out"]
    assert run(*command, str(tmp_path / "piped")) == ""
    said = run_in_terminal(*command, str(tmp_path / "seen"))
    assert re.search(r"merging modules .*?(\d+)/(\d+)", said)


def test_bake(adapters: list[str], tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    command = ["adapters", "bake", adapters[0], "--base", str(tiny_model("llama")), "--out"]
    assert run(*command, str(tmp_path / "piped")) == ""
    said = run_in_terminal(*command, str(tmp_path / "seen"))
    for work in ("Loading weights", "Unloading and merging model", "Writing model shards"):
        assert re.search(rf"{work}: 100%.*<", said), (work, said)


def test_what_is_told_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bars that the tests of slow commands cannot wait for."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with terminal() as (descriptor, parts), os.fdopen(os.dup(descriptor), "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        with bars.metered() as (say, meter):
            meter("downloading x", 1 << 20, 4 << 20)
            say("news")
        with bars.steps("comparing") as tell:
            tell(3, 8)
        with bars.campaign("bench", 6) as ticker:
            ticker.began("base")
            ticker.done()
        with bars.transfer("pushing", 4 << 20) as advance:
            advance(1 << 20)
    said = b"".join(parts).decode()
    for words in ("downloading x", "1.0/4.0 MiB", "news", "comparing", "3/8", "bench: base", "1/6"):
        assert words in said, words
    assert "pushing" in said
    # How long it will take.
    assert len(re.findall(r"-:--:--|\d:\d\d:\d\d", said)) >= 4


def test_without_a_terminal_only_news_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with bars.metered() as (say, meter):
        meter("downloading x", 1, 4)
        say("news")
    with bars.steps("comparing") as tell:
        tell(3, 8)
    with bars.transfer("pushing", 4) as advance:
        advance(1)
    assert capsys.readouterr().err == "news\n"
