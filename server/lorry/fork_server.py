"""The main loop of a program that `lorry.forks` runs: loads once, then forks for each task.

Standard input is a socket from the server: first comes the data to load, then one socket for each
task. A process ends when the other end of its socket is closed.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar

Loaded = TypeVar("Loaded")


def run(load: Callable[[bytes], Loaded], serve: Callable[[Connection, Loaded], None]) -> None:
    """`load` may raise ValueError with a message for people. `serve` runs in a process of its own
    and may raise EOFError and OSError when the other end is gone."""
    # Ctrl-C for the process group is the server's to handle: it lets running requests finish.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    control = socket.socket(fileno=os.dup(0))
    with Connection(os.dup(0)) as first:
        try:
            loaded = load(first.recv_bytes())
        except ValueError as error:
            first.send_bytes(str(error).encode() or b"no reason given")
            return
        first.send_bytes(b"")
    while True:
        sent, handles, _, _ = socket.recv_fds(control, 1, 1)
        if not sent:
            return
        try:
            child = os.fork()
        except OSError:
            # No room for another process: the server sees the closed socket.
            child = -1
        if child == 0:
            _be_silent(control)
            connection = Connection(handles[0])
            # The other end is gone, or this one has sent all it could.
            with contextlib.suppress(EOFError, OSError):
                connection.send_bytes(b"")
                serve(connection, loaded)
            os._exit(0)
        os.close(handles[0])


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Limit the block's processor time, after which the kernel ends this process."""
    signal.setitimer(signal.ITIMER_PROF, max(seconds, 0.001))
    yield
    signal.setitimer(signal.ITIMER_PROF, 0)


def bound_memory(more: int) -> None:
    """Limit the bytes that this process may take beyond what it has. Linux only."""
    with contextlib.suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + more
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _be_silent(control: socket.socket) -> None:
    """Discard the output of a dying library, which may contain untrusted input."""
    control.close()
    null = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(null, standard)
