"""The engines of all replicas, for the HTTP side: one `Link` over a handle of Ray Serve.

Each request is one streaming call, and Serve chooses its replica: one that holds the adapter, if
there is any. A request whose replica ends before its first event is sent again, once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import fields, replace
from functools import reduce
from typing import Any

from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import RayServeException

from lorry.core import (
    EngineStats,
    Failure,
    FailureCode,
    FinishReason,
    Request,
    TokenEvent,
)
from lorry.engine.letters import Cancel, Forget, Letter, Submit
from lorry.engine.wire import TO_ENGINE, Cached, Discard, Pin, Ready, TokenEvents
from lorry.scale.replica import EVERY, FROM_REPLICA, ReplicaReport
from lorry.scrape import EngineNumbers
from lorry_adapters.registry.host_cache import HostCacheStats

logger = logging.getLogger(__name__)

ATTEMPTS = 2
"""Replicas that a request is sent to. One that kills engines must not kill them all."""

_ENDED = (FailureCode.ENGINE_STOPPED, FailureCode.ENGINE_FAILED)
"""Failures of a replica's engine, not of its requests."""


class Replicas:
    """Everything but `offer` and the cache belongs to the event loop that made it."""

    def __init__(self, engines: Any, ready: Ready) -> None:
        """`engines`: the deployment's handle. `ready`: what one of its replicas says."""
        self.base, self.layout, self.capacity = ready.base, ready.layout, ready.capacity
        self.cache = ReplicaCaches(self._tell)
        self.stats = EngineStats()
        """Of all replicas together, as of their last reports."""
        self._reports: dict[str, ReplicaReport] = {}
        # Replicas that reported since they were last asked.
        self._heard: set[str] = set()
        self._engines = engines
        self._loop = asyncio.get_running_loop()
        self._requests: dict[str, asyncio.Task[None]] = {}
        self._others: set[asyncio.Task[None]] = set()

    @property
    def broken(self) -> bool:
        """Never: Serve replaces a replica that ends, and requests wait for it."""
        return False

    def connect(
        self,
        *,
        emit: Callable[[Sequence[TokenEvent]], None],
        on_step: Callable[[int, float], None],
        on_broken: Callable[[], None],
    ) -> None:
        """`on_broken` is not called."""
        self._emit, self._on_step = emit, on_step

    def numbers(self) -> list[EngineNumbers]:
        """Return the numbers of each replica, as of its last report. Any thread may call it."""
        return [
            EngineNumbers(
                one.stats, _counted([one.cached]), one.cached.digests.__contains__, one.replica
            )
            for _, one in sorted(self._reports.copy().items())
        ]

    def start(self) -> None:
        """Ask for reports from now on."""
        self._spawn(self._watch())

    def stop(self) -> None:
        """Cancel everything; remaining requests end as cancelled."""
        for task in (*self._requests.values(), *self._others):
            task.cancel()

    def offer(self, letter: Letter) -> bool:
        self._loop.call_soon_threadsafe(self._take, letter)
        return True

    def _take(self, letter: Letter) -> None:
        match letter:
            case Submit(request):
                task = self._loop.create_task(self._follow(request))
                self._requests[request.id] = task
                task.add_done_callback(lambda _: self._requests.pop(request.id))
            case Cancel(request_id):
                if request_id in self._requests:
                    self._requests[request_id].cancel()
            case Forget():
                self._spawn(self._broadcast("tell", TO_ENGINE.encode(letter)))

    def _tell(self, message: object) -> None:
        """Tell all replicas. Any thread may call it."""
        sent = TO_ENGINE.encode(message)
        self._loop.call_soon_threadsafe(lambda: self._spawn(self._broadcast("tell", sent)))

    def _spawn(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._others.add(task)
        task.add_done_callback(self._others.discard)

    async def _follow(self, request: Request) -> None:
        """Run one request: emit its events, of which exactly one, the last, has a `finish`."""
        try:
            for attempt in range(1, ATTEMPTS + 1):
                if await self._attempt(request, last=attempt == ATTEMPTS):
                    return
        except asyncio.CancelledError:
            self._end(request, FinishReason.CANCELLED)
        except Exception:
            logger.exception("request %s could not be sent to a replica", request.id)
            self._end(request, FinishReason.ERROR, FailureCode.ENGINE_FAILED)

    async def _attempt(self, request: Request, *, last: bool) -> bool:
        """Return False if nothing was emitted and another replica may try."""
        begun = False
        sent = time.monotonic()
        try:
            async for events in self._events(request):
                final = events[-1].finish is not None
                failure = events[-1].failure
                if failure is not None and failure.code in _ENDED and not begun and not last:
                    return False
                begun = True
                self._emit([_from(sent, event) for event in events])
                if final:
                    return True
        except RayActorError as error:
            logger.warning("request %s lost its replica: %s", request.id, type(error).__name__)
        if begun or last:
            self._end(request, FinishReason.ERROR, FailureCode.REPLICA_LOST)
            return True
        return False

    async def _events(self, request: Request) -> AsyncIterator[Sequence[TokenEvent]]:
        digests = [use.digest for use in request.adapters if use.scale != 0.0]
        handle = self._engines.options(
            stream=True, multiplexed_model_id=digests[0] if digests else ""
        )
        stream = handle.generate.remote(TO_ENGINE.encode(Submit(request)))
        ended = False
        try:
            async for message in stream:
                match FROM_REPLICA.decode(message):
                    case TokenEvents(events):
                        ended = events[-1].finish is not None
                        yield events
                    case ReplicaReport() as report:
                        self._take_report(report)
        finally:
            if not ended:
                stream.cancel()

    def _end(self, request: Request, reason: FinishReason, code: FailureCode | None = None) -> None:
        failure = None if code is None else Failure(code)
        self._emit([TokenEvent(request.id, finish=reason, failure=failure)])

    async def _watch(self) -> None:
        while True:
            self._heard = set()
            # With the pins, as a replica may have started meanwhile. One that is full answers when
            # a request of its ends; until then its reports come with its requests' events.
            for answer in await self._broadcast("report", TO_ENGINE.encode(self.cache.pins)):
                self._take_report(FROM_REPLICA.decode(answer))
            self._keep(self._heard)
            await asyncio.sleep(EVERY)

    def _take_report(self, report: ReplicaReport) -> None:
        self._heard.add(report.replica)
        self._reports[report.replica] = report
        for step in report.steps:
            self._on_step(step.tokens, step.seconds)
        self._keep(self._reports.keys())

    def _keep(self, names: Collection[str]) -> None:
        """Show the reports of these replicas, and drop the others."""
        self._reports = {name: one for name, one in self._reports.items() if name in names}
        shown = self._reports.values()
        self.stats = reduce(_sum, (report.stats for report in shown), EngineStats())
        self.cache.show([report.cached for report in shown])

    async def _broadcast(self, method: str, *arguments: bytes) -> list[Any]:
        """Return the answers of the replicas that answered."""
        try:
            answers = await self._engines.broadcast(method, *arguments).results_async(
                return_exceptions=True
            )
        except (RayError, RayServeException) as error:
            # No replica runs. The next report is soon.
            logger.debug("%s did not reach the replicas: %r", method, error)
            return []
        return [answer for answer in answers if not isinstance(answer, BaseException)]


class ReplicaCaches:
    """The host caches of all replicas, as an `AdapterCache` for the registry."""

    def __init__(self, tell: Callable[[object], None]) -> None:
        self._tell = tell
        self._cached: Sequence[Cached] = ()
        self._digests: frozenset[str] = frozenset()
        self.pins = Pin(())

    def show(self, cached: Sequence[Cached]) -> None:
        """Take the replicas' reports."""
        self._cached = cached
        self._digests = frozenset(digest for one in cached for digest in one.digests)

    def pin(self, digests: frozenset[str]) -> None:
        self.pins = Pin(tuple(sorted(digests)))
        self._tell(self.pins)

    def discard(self, digest: str) -> None:
        self._digests -= {digest}
        self._tell(Discard(digest))

    def __contains__(self, digest: str) -> bool:
        return digest in self._digests

    def stats(self) -> HostCacheStats:
        return _counted(self._cached)


def _counted(caches: Sequence[Cached]) -> HostCacheStats:
    return HostCacheStats(
        entries=sum(len(one.digests) for one in caches),
        bytes=sum(one.bytes for one in caches),
        capacity_bytes=sum(one.capacity_bytes for one in caches),
        hits=sum(one.hits for one in caches),
        misses=sum(one.misses for one in caches),
        evictions=sum(one.evictions for one in caches),
    )


def _from(sent: float, event: TokenEvent) -> TokenEvent:
    """Return the event with this machine's times."""
    return replace(event, started=event.started + sent) if event.started else event


def _sum(one: EngineStats, other: EngineStats) -> EngineStats:
    """Add what is counted, and unite what is listed. Blocks of all replicas have one size."""
    added: dict[str, Any] = {}
    for field in fields(EngineStats):
        left, right = getattr(one, field.name), getattr(other, field.name)
        if isinstance(right, tuple):
            added[field.name] = tuple(sorted({*left, *right}))
        elif isinstance(right, Mapping):
            added[field.name] = {key: left.get(key, 0) + count for key, count in right.items()}
        else:
            added[field.name] = left + right
    return replace(EngineStats(**added), kv_block_size=other.kv_block_size)
