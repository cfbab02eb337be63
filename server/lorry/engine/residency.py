"""Brings adapters to their slots: fetched in the background, placed between steps.

    disk --fetch (one of our threads)--> host, prepared --place (the engine's thread)--> slot

`acquire` never waits. A request whose adapter is not in a slot yet is tried again in the next
step. `wake` is called at the end of each fetch, so that an idle engine tries again.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from lorry_adapters.errors import AdapterBroken, AdapterError
from lorry_adapters.lora.slot_table import SlotTable

logger = logging.getLogger(__name__)

Prepared = TypeVar("Prepared")
"""An adapter ready to be placed. Its type is the runner's."""

FETCHERS = 2
"""Threads that read adapters; more would take the processor from the steps."""

NICENESS = 5
"""Niceness of those threads, added to the process's. If both want a core, a step's threads get
three times as much of it."""


class SlotResidency(Generic[Prepared]):
    """The scheduler's `Residency`. Engine thread only, except the fetches."""

    def __init__(
        self,
        slots: SlotTable,
        *,
        fetch: Callable[[str], Prepared],
        place: Callable[[int, Prepared], None],
        wake: Callable[[], None],
        pinned: Callable[[], Collection[str]] = tuple,
    ) -> None:
        """`pinned` returns the digests that users pinned: they leave their slots last."""
        self.slots = slots
        self.loads = 0
        self.evictions = 0
        self._fetch = fetch
        self._place = place
        self._wake = wake
        self._pinned = pinned
        self._pool = ThreadPoolExecutor(
            FETCHERS, thread_name_prefix="lorry-fetch", initializer=_step_aside
        )
        # In progress or done, but not in a slot yet. They take memory in addition to the host
        # cache, so they are few. The adapters of a request fit in the slots, and so also here.
        self._fetches: dict[str, Future[Prepared]] = {}
        self._max_fetches = slots.num_slots + FETCHERS
        self._wanted: frozenset[str] = frozenset()

    def acquire(self, digests: Sequence[str]) -> tuple[int, ...] | None:
        # Two names may refer to one content, which needs one slot.
        missing = [d for d in dict.fromkeys(digests) if self.slots.slot_of(d) is None]
        absent = False
        for digest in missing:
            future = self._fetches.get(digest)
            if future is None or not future.done():
                absent = True
                continue
            error = future.exception()
            if error is not None:
                # The error is not kept: the files may be repaired before the next request.
                del self._fetches[digest]
                if isinstance(error, AdapterError):
                    raise error
                raise AdapterBroken(
                    f"adapter {digest} could not be loaded: {error}; upload it again"
                ) from error
        if not self.slots.has_room_for(digests):
            return None
        if absent:
            for digest in missing:
                self._begin(digest, keep=missing)
            return None
        for digest in missing:
            self._load(digest, keep=digests)
        return tuple(self.slots.pin(digest) for digest in digests)

    def release(self, digests: Sequence[str]) -> None:
        for digest in digests:
            self.slots.unpin(digest)

    def prefetch(self, digests: Sequence[str]) -> None:
        missing = [d for d in dict.fromkeys(digests) if self.slots.slot_of(d) is None]
        urgent = missing[: self._max_fetches]
        self._wanted = frozenset(urgent)
        for digest in urgent:
            self._begin(digest)

    def forget(self, digest: str) -> None:
        """The registry has freed `digest`, and nothing runs with it."""
        future = self._fetches.pop(digest, None)
        if future is not None:
            future.cancel()
        self.slots.forget(digest)

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _begin(self, digest: str, *, keep: Sequence[str] = ()) -> None:
        """Fetch `digest` unless too many other wanted digests are being fetched."""
        if digest in self._fetches:
            return
        if len(self._fetches) >= self._max_fetches:
            for other, future in list(self._fetches.items()):
                unwanted = other not in self._wanted and other not in keep
                # If it is needed again, the host cache may still have it.
                if unwanted and (future.done() or future.cancel()):
                    del self._fetches[other]
        if len(self._fetches) < self._max_fetches:
            future = self._pool.submit(self._fetch, digest)
            self._fetches[digest] = future
            future.add_done_callback(lambda _: self._wake())

    def _load(self, digest: str, *, keep: Sequence[str]) -> None:
        weights = self._fetches.pop(digest).result()
        claim = self.slots.claim(digest, keep=keep, last=self._pinned())
        assert claim is not None, "has_room_for said so"
        self.evictions += claim.evicted is not None
        try:
            self._place(claim.slot, weights)
        except Exception as error:
            # A partly placed adapter must never be used.
            self.slots.forget(digest)
            raise AdapterBroken(f"adapter {digest} could not be placed: {error}") from error
        self.loads += 1
        logger.debug("adapter %s in slot %d, evicted %s", digest, claim.slot, claim.evicted)


def _step_aside() -> None:
    """Lower the priority of the calling thread below the steps. Only on Linux does a thread have a
    niceness of its own."""
    if sys.platform == "linux":
        os.nice(NICENESS)
