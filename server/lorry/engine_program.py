"""The engine's process: loads the base, then serves the other end of a connection.

It ends when it is told to, when the engine gives up, or when the connection is closed, which means
that the server is gone.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from multiprocessing.connection import Connection

from lorry import home_contents, logs
from lorry.core import EngineStats, TokenEvent
from lorry.engine.letters import Letter
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
from lorry.engine_core import EngineCore, load_core
from lorry.errors import LorryError
from lorry.settings import Settings
from lorry_adapters.registry.blobs import Blobs
from lorry_adapters.registry.content_reader import ContentReader
from lorry_adapters.registry.host_cache import HostCache

logger = logging.getLogger(__name__)


def run(connection: Connection, settings: Settings) -> None:
    """Run the process from start to end."""
    # Ctrl-C for the process group is the server's to handle: it lets running requests finish.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logs.setup(settings.log_level, settings.log_format)
    server = _Server(connection)
    try:
        core = load_core(settings, lambda line: server.send(StartLine(line)))
    except LorryError as error:
        server.send(StartRefused(type(error).__name__, error.message))
        return
    served = ServedEngine(core, server.send)
    server.send(served.ready)
    served.start()
    with suppress(EOFError, OSError):
        while not isinstance(message := TO_ENGINE.decode(connection.recv_bytes()), Stop):
            served.take(message)
    served.stop()


def _store_of(settings: Settings) -> Callable[[], Blobs] | None:
    """Return what opens the home's contents with their store, once; None without a store."""
    if settings.store is None:
        return None
    return cache(lambda: home_contents.opener(settings)(settings.home))


class _Server:
    """The other end. Thread-safe. Messages to a closed end are dropped."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._writing = threading.Lock()

    def send(self, message: object) -> None:
        with self._writing, suppress(OSError):
            self._connection.send_bytes(FROM_ENGINE.encode(message))


class ServedEngine:
    """The engine and its host cache, for a server elsewhere: messages in and messages out."""

    def __init__(self, core: EngineCore, send: Callable[[object], None]) -> None:
        """`send` takes a message to the server, in any thread."""
        settings = core.settings
        self._core = core
        self._send = send
        reader = ContentReader(settings.home, core.layout, _store_of(settings))
        self._cache = HostCache(
            reader.load,
            max_bytes=core.host_cache_memory,
            max_entries=settings.max_cpu_loras,
            memory=core.adapter_memory,
        )
        self._told: tuple[int, ...] = ()
        self.engine = core.engine(
            self._cache.get,
            reader.size,
            emit=self._emit,
            on_step=lambda tokens, seconds: send(StepTaken(tokens, seconds)),
            on_stats=self._show,
            on_broken=lambda: send(Broke()),
            pinned=self._cache.pinned,
        )
        self.ready = Ready(core.base, core.layout, self.engine.capacity)

    def start(self) -> None:
        self._show(self.engine.stats)
        self.engine.start()

    def take(self, message: Pin | Discard | Letter) -> bool:
        """Return False if the engine has ended and nobody will read the letter."""
        match message:
            case Pin(digests):
                self._cache.pin(frozenset(digests))
            case Discard(digest):
                self._cache.discard(digest)
            case letter:
                return self.engine.offer(letter)
        return True

    def stop(self) -> None:
        """End after the current step; remaining requests get an error."""
        self.engine.stop()
        self._core.close()

    def _emit(self, events: Sequence[TokenEvent]) -> None:
        self._send(TokenEvents(tuple(events)))

    def _show(self, stats: EngineStats) -> None:
        self._send(Stats(stats))
        now = self._cache.stats()
        seen = (now.hits, now.misses, now.evictions, now.entries, now.bytes)
        if seen != self._told:
            self._told = seen
            digests = self._cache.digests()
            self._send(
                Cached(now.hits, now.misses, now.evictions, now.bytes, now.capacity_bytes, digests)
            )
