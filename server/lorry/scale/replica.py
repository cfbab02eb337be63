"""One replica: an engine with its own base, slots and host cache, as a deployment of Ray Serve.

`generate` is one request: it takes the message that an engine in another process would get, and
returns that engine's messages.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

from ray import serve

from lorry import logs
from lorry.core import EngineStats, Failure, FailureCode, FinishReason, TokenEvent
from lorry.engine.letters import Cancel, Submit
from lorry.engine.wire import FROM_ENGINE, TO_ENGINE, Cached, Codec, Stats, StepTaken, TokenEvents
from lorry.engine_core import load_core
from lorry.engine_program import ServedEngine
from lorry.scale.ports import bind_to_the_node
from lorry.settings import Settings

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """The numbers of one replica."""

    replica: str
    stats: EngineStats
    cached: Cached
    steps: tuple[StepTaken, ...]
    """Since the last report."""


FROM_REPLICA = Codec((TokenEvents, ReplicaReport))

EVERY = 1.0
"""Seconds between two reports of a replica."""


MOST_STEPS = 10_000
"""Kept for the next report."""


class EngineReplica:
    """Methods run on the replica's event loop; the engine has a thread of its own."""

    def __init__(self, settings: Settings) -> None:
        """Load the base. Raises SettingsError, ModelError."""
        logs.setup(settings.log_level, settings.log_format)
        bind_to_the_node()
        self._name = serve.get_replica_context().replica_id.unique_id
        self._loop = asyncio.get_running_loop()
        self._stats = EngineStats()
        self._cached = Cached(0, 0, 0, 0, 0, ())
        self._reported = 0.0
        self._steps: deque[StepTaken] = deque(maxlen=MOST_STEPS)
        # Of requests that have not ended. On the event loop only.
        self._events: dict[str, asyncio.Queue[TokenEvent]] = {}
        self._served = ServedEngine(load_core(settings, logger.info), self._hear)
        self._served.start()

        # Its only purpose is that Serve knows which adapters are here.
        self._hold = serve.multiplexed(max_num_models_per_replica=settings.max_loras)(_same)

    def describe(self) -> bytes:
        """Return the message `Ready`."""
        return FROM_ENGINE.encode(self._served.ready)

    def check_health(self) -> None:
        """Called by Serve, which replaces the replica if this raises."""
        if self._served.engine.broken:
            raise RuntimeError("the engine has given up, see the log above")

    async def generate(self, message: bytes) -> AsyncIterator[bytes]:
        """Run the request of a message `Submit` and yield messages `TokenEvents`, and now and then
        a `ReplicaReport`. Times in events count from the arrival here: another machine has another
        clock. Cancelled if closed."""
        request = TO_ENGINE.decode(message).request
        arrival = time.monotonic()
        for digest in dict.fromkeys(use.digest for use in request.adapters if use.scale != 0.0):
            await self._hold(digest)
        events = self._events[request.id] = asyncio.Queue()
        ended = False
        try:
            if not self._served.take(Submit(replace(request, arrival=arrival))):
                failure = Failure(FailureCode.ENGINE_STOPPED)
                events.put_nowait(
                    TokenEvent(request.id, finish=FinishReason.ERROR, failure=failure)
                )
            while not ended:
                some = [await events.get()]
                while not events.empty():
                    some.append(events.get_nowait())
                ended = some[-1].finish is not None
                # A full replica answers no other call, and an idle one may be asked late.
                idle = ended and len(self._events) == 1
                if idle or time.monotonic() - self._reported > EVERY:
                    yield self._report()
                yield FROM_REPLICA.encode(
                    TokenEvents(tuple(_since(arrival, event) for event in some))
                )
        finally:
            del self._events[request.id]
            if not ended:
                self._served.take(Cancel(request.id))

    def tell(self, message: bytes) -> None:
        """Take a message `Pin`, `Discard` or `Forget`."""
        self._served.take(TO_ENGINE.decode(message))

    def report(self, message: bytes) -> bytes:
        """Take the message `Pin`, and return a message `ReplicaReport`."""
        self.tell(message)
        return self._report()

    def _report(self) -> bytes:
        self._reported = time.monotonic()
        steps = tuple(self._steps.popleft() for _ in range(len(self._steps)))
        return FROM_REPLICA.encode(ReplicaReport(self._name, self._stats, self._cached, steps))

    def __del__(self) -> None:
        # Serve calls it when the replica's requests have ended or its grace is over.
        if hasattr(self, "_served"):
            self._served.stop()

    def _hear(self, message: object) -> None:
        """Called in the engine's thread."""
        match message:
            case TokenEvents(events):
                self._loop.call_soon_threadsafe(self._deliver, events)
            case Stats(stats):
                self._stats = stats
            case Cached():
                self._cached = message
            case StepTaken():
                self._steps.append(message)

    def _deliver(self, events: tuple[TokenEvent, ...]) -> None:
        for event in events:
            # None: the request was cancelled.
            queue = self._events.get(event.request_id)
            if queue is not None:
                queue.put_nowait(event)


def _since(arrival: float, event: TokenEvent) -> TokenEvent:
    return replace(event, started=event.started - arrival) if event.started else event


async def _same(digest: str) -> str:
    return digest
