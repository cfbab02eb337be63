"""Processes for work that a stranger's input may never let end: `Forks` is the server's end.

One process loads what the work needs and forks another for each piece of it, which sets itself
bounds on time and memory (`lorry.fork_server` is its program's frame). What dies is that
piece alone.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

_START_SECONDS = 300.0
"""A tokenizer of 250,000 tokens takes a few."""


class ForkFailed(Exception):
    """The process did not start, or did not take what it was to load."""


class Forks:
    """The process that makes the others. Thread-safe; started when it is first needed, and
    again when it was lost."""

    def __init__(self, module: str, load: Callable[[], bytes], *, what: str) -> None:
        """`module` is run as a program and told `load()`; `what` names it to people."""
        self._module = module
        self._load = load
        self._what = what
        self._lock = threading.Lock()
        self._control: socket.socket | None = None
        self._stop: weakref.finalize[..., Any] | None = None

    def connect(self) -> Connection:
        """To a new process, which waits for its work. Raises ForkFailed."""
        with self._lock:
            for _ in range(2):
                ours, theirs = socket.socketpair()
                connection = Connection(ours.detach())
                with theirs, contextlib.suppress(OSError):
                    socket.send_fds(self._control or self._start(), [b"f"], [theirs.fileno()])
                # One that is being killed still takes what is sent to it: only what the new
                # process says shows that there is one.
                with contextlib.suppress(OSError, EOFError):
                    if connection.poll(_START_SECONDS):
                        connection.recv_bytes()
                        return connection
                # It was killed, for its memory perhaps. Those that it made live on.
                connection.close()
                self._control = None
        raise ForkFailed(f"the process of {self._what} cannot make another")

    def close(self) -> None:
        """End the process. Those that it made end with their connections."""
        if self._stop is not None:
            self._stop()

    def _start(self) -> socket.socket:
        self.close()
        ours, theirs = socket.socketpair()
        with theirs:
            # -P: a folder that the server was started in must not stand for a module.
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", self._module],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env={**os.environ, "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
                # Signals for the server's process group are not for it.
                start_new_session=True,
            )
        self._stop = weakref.finalize(self, _end, ours, process)
        with Connection(os.dup(ours.fileno())) as first:
            try:
                first.send_bytes(self._load())
                if not first.poll(_START_SECONDS):
                    raise ForkFailed(f"the process of {self._what} did not start in time")
                refused = first.recv_bytes().decode()
            except (EOFError, OSError) as error:
                raise ForkFailed(f"the process of {self._what} did not start") from error
        if refused:
            raise ForkFailed(refused)
        self._control = ours
        return ours


def _end(control: socket.socket, process: subprocess.Popen[bytes]) -> None:
    control.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5)
        return
    process.kill()
    process.wait()
