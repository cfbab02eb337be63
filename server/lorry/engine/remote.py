"""The engine in a process of its own, for the HTTP side.

A connection leads to the process. A thread here reads from it; any thread writes to it. When the
connection ends, for whatever reason, every request ends with an error and the engine counts as
broken.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from lorry import errors
from lorry.core import EngineStats, Failure, FailureCode, FinishReason, TokenEvent
from lorry.engine.letters import Letter, Submit
from lorry.engine.wire import (
    FROM_ENGINE,
    TO_ENGINE,
    Broke,
    Cached,
    Discard,
    Pin,
    Ready,
    StartLine,
    StartRefused,
    Stats,
    StepTaken,
    Stop,
    TokenEvents,
)
from lorry.settings import Settings
from lorry_adapters.registry.host_cache import HostCacheStats

logger = logging.getLogger(__name__)

GRACE = 30.0
"""Seconds that the process has to end after it was told to."""

Program = Callable[[Connection, Settings], None]
"""Runs in the new process: starts an engine and serves it over the connection."""


class RemoteEngine:
    """The client's `Link` to an engine in another process."""

    def __init__(self, program: Program, settings: Settings, say: Callable[[str], None]) -> None:
        """Start the process and wait until the base is loaded.

        Raises:
            SettingsError, ModelError: the process reports one, or ends before it has started.
        """
        # Spawned: a fork of a process with threads may hang, and CUDA does not work in a fork.
        context = get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=program, args=(theirs, settings), name="lorry-engine", daemon=True
        )
        self._process.start()
        # Otherwise the connection would not end with the process.
        theirs.close()
        self._writing = threading.Lock()
        self._stats = EngineStats()
        self.cache = RemoteCache(self._send)
        self._stopping = False
        self.broken = False
        # Requests that were sent and have not ended.
        self._running: set[str] = set()
        try:
            ready = self._started(say)
        except BaseException:
            self._process.kill()
            self._process.join()
            raise
        self.base = ready.base
        self.layout = ready.layout
        self.capacity = ready.capacity
        self._reader: threading.Thread | None = None

    @property
    def stats(self) -> EngineStats:
        return self._stats

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def connect(
        self,
        *,
        emit: Callable[[Sequence[TokenEvent]], None],
        on_step: Callable[[int, float], None],
        on_broken: Callable[[], None],
    ) -> None:
        """Set the callbacks, which are called in a thread."""
        self._emit, self._on_step, self._on_broken = emit, on_step, on_broken

    def start(self) -> None:
        """Report everything that arrives from now on."""
        self._reader = threading.Thread(target=self._read, name="lorry-engine-reader", daemon=True)
        self._reader.start()

    def stop(self) -> None:
        """End the process; remaining requests get an error."""
        self._stopping = True
        self._send(Stop())
        self._process.join(GRACE)
        if self._process.is_alive():
            logger.error("the engine's process did not end in time; it is killed")
            self._process.kill()
            self._process.join()
        if self._reader is not None:
            self._reader.join()
        self._connection.close()

    def offer(self, letter: Letter) -> bool:
        with self._writing:
            if self.broken:
                return False
            if isinstance(letter, Submit):
                self._running.add(letter.request.id)
        # If the connection breaks now, the reader notices and ends the request.
        self._send(letter)
        return True

    def _send(self, message: object) -> None:
        with self._writing, suppress(OSError, ValueError):
            self._connection.send_bytes(TO_ENGINE.encode(message))

    def _started(self, say: Callable[[str], None]) -> Ready:
        while True:
            match self._received():
                case StartLine(text):
                    say(text)
                case StartRefused(kind, message):
                    raise getattr(errors, kind)(message)
                case Ready() as ready:
                    return ready
                case None:
                    self._process.join()
                    raise errors.ModelError(
                        "the engine's process ended during its start "
                        f"({_end_of(self._process.exitcode)}); see the log above"
                    )

    def _received(self) -> Any:
        """Return None if the process has ended."""
        try:
            return FROM_ENGINE.decode(self._connection.recv_bytes())
        except (EOFError, OSError):
            return None

    def _read(self) -> None:
        while (message := self._received()) is not None:
            match message:
                case TokenEvents(events):
                    with self._writing:
                        self._running -= {one.request_id for one in events if one.finish}
                    self._emit(events)
                case Stats(stats):
                    self._stats = stats
                case StepTaken(tokens, seconds):
                    self._on_step(tokens, seconds)
                case Cached():
                    self.cache.show(message)
                case Broke():
                    break
        with self._writing:
            # Nothing is sent from here on, so `_running` is complete.
            self.broken = True
            left, self._running = self._running, set()
        code = FailureCode.ENGINE_STOPPED if self._stopping else FailureCode.ENGINE_LOST
        self._stats = replace(self._stats, running=0, waiting=0)
        if left:
            self._emit(
                [
                    TokenEvent(one, finish=FinishReason.ERROR, failure=Failure(code))
                    for one in sorted(left)
                ]
            )
        if not self._stopping:
            # After the requests' ends, so that a process that lingers does not delay them.
            self._process.join(0 if message is not None else GRACE)
            logger.critical("the engine's process %s", _end_of(self._process.exitcode))
            self._on_broken()


class RemoteCache:
    """The process's host cache, as an `AdapterCache` for the registry."""

    def __init__(self, send: Callable[[object], None]) -> None:
        self._send = send
        self._cached = Cached(0, 0, 0, 0, 0, ())
        self._digests: frozenset[str] = frozenset()

    def show(self, cached: Cached) -> None:
        """Take the process's report."""
        self._cached, self._digests = cached, frozenset(cached.digests)

    def pin(self, digests: frozenset[str]) -> None:
        self._send(Pin(tuple(sorted(digests))))

    def discard(self, digest: str) -> None:
        self._digests -= {digest}
        self._send(Discard(digest))

    def __contains__(self, digest: str) -> bool:
        return digest in self._digests

    def stats(self) -> HostCacheStats:
        cached = self._cached
        return HostCacheStats(
            entries=len(cached.digests),
            bytes=cached.bytes,
            capacity_bytes=cached.capacity_bytes,
            hits=cached.hits,
            misses=cached.misses,
            evictions=cached.evictions,
        )


def _end_of(exitcode: int | None) -> str:
    if exitcode is None:
        return "has given up"
    return f"was ended by signal {-exitcode}" if exitcode < 0 else f"ended with code {exitcode}"
