"""The server's end of `lorry.engine.grammar_process`."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import weakref
from copy import copy
from multiprocessing.connection import Connection
from typing import Any

from transformers import PreTrainedTokenizerBase

_START_SECONDS = 300.0
"""A tokenizer of 250,000 tokens takes a few."""


class HostFailed(Exception):
    """The process did not start, or did not take this tokenizer."""


class GrammarHost:
    """The process that holds the tokenizer. Thread-safe; started when it is first needed,
    and again when it was lost."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ends: list[int]) -> None:
        self._tokenizer = tokenizer
        self._ends = ends
        self._lock = threading.Lock()
        self._control: socket.socket | None = None
        self._stop: weakref.finalize[..., Any] | None = None

    def connect(self) -> Connection:
        """To a new process, which waits for its grammar. Raises HostFailed."""
        with self._lock:
            for _ in range(2):
                ours, theirs = socket.socketpair()
                connection = Connection(ours.detach())
                with theirs, contextlib.suppress(OSError):
                    socket.send_fds(self._control or self._start(), [b"g"], [theirs.fileno()])
                # One that is being killed still takes what is sent to it: only what the new
                # process says shows that there is one.
                with contextlib.suppress(OSError, EOFError):
                    if connection.poll(_START_SECONDS):
                        connection.recv_bytes()
                        return connection
                # It was killed, for its memory perhaps. Those that it made live on.
                connection.close()
                self._control = None
        raise HostFailed("the grammars' process cannot make another")

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
                [sys.executable, "-P", "-m", "lorry.engine.grammar_process"],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env={**os.environ, "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
                # Signals for the server's process group are not for it.
                start_new_session=True,
            )
        self._stop = weakref.finalize(self, _end, ours, process)
        with Connection(os.dup(ours.fileno())) as first:
            try:
                first.send_bytes(self._described())
                if not first.poll(_START_SECONDS):
                    raise HostFailed("the grammars' process did not start in time")
                refused = first.recv_bytes().decode()
            except (EOFError, OSError) as error:
                raise HostFailed("the grammars' process did not start") from error
        if refused:
            raise HostFailed(f"this base's tokenizer cannot follow a grammar: {refused}")
        self._control = ours
        return ours

    def _described(self) -> bytes:
        # As llguidance.hf does it: with the tokens that only the configuration has, without
        # padding and truncation.
        backend = copy(self._tokenizer.backend_tokenizer)
        backend.no_padding()
        backend.no_truncation()
        ends = self._ends or self._tokenizer.eos_token_id
        return json.dumps({"tokenizer": backend.to_str(), "ends": ends}).encode()


def _end(control: socket.socket, process: subprocess.Popen[bytes]) -> None:
    control.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5)
        return
    process.kill()
    process.wait()
