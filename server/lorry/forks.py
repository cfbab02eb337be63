"""The server's end of processes for work on untrusted input that may never end.

One process loads what the work needs and forks another for each task, which limits its own time
and memory (`lorry.fork_server` is its main loop). If a task's process dies, only that task fails.
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
"""Loading a tokenizer of 250,000 tokens takes a few seconds."""


class ForkFailed(Exception):
    """The process did not start, or refused the data to load."""


class Forks:
    """The process that forks the others. Thread-safe. It starts when it is first needed, and again
    if it was lost."""

    def __init__(self, module: str, load: Callable[[], bytes], *, what: str) -> None:
        """`module` is run as a program and given `load()`; `what` names it in messages."""
        self._module = module
        self._load = load
        self._what = what
        self._lock = threading.Lock()
        self._control: socket.socket | None = None
        self._stop: weakref.finalize[..., Any] | None = None

    def connect(self) -> Connection:
        """Connect to a new process, which waits for its task. Raises ForkFailed."""
        with self._lock:
            for _ in range(2):
                ours, theirs = socket.socketpair()
                connection = Connection(ours.detach())
                with theirs, contextlib.suppress(OSError):
                    socket.send_fds(self._control or self._start(), [b"f"], [theirs.fileno()])
                # A process that is being killed still accepts what is sent to it, so only the new
                # process's first message proves that it exists.
                with contextlib.suppress(OSError, EOFError):
                    if connection.poll(_START_SECONDS):
                        connection.recv_bytes()
                        return connection
                # It was killed, perhaps for its memory. The processes that it forked live on.
                connection.close()
                self._control = None
        raise ForkFailed(f"the process of {self._what} cannot make another")

    def close(self) -> None:
        """End the process. The processes that it forked end with their connections."""
        if self._stop is not None:
            self._stop()

    def _start(self) -> socket.socket:
        self.close()
        ours, theirs = socket.socketpair()
        with theirs:
            # -P: a file in the current folder must not shadow a module.
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", self._module],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env={**os.environ, "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
                # The server's process group gets signals that are not meant for it.
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
