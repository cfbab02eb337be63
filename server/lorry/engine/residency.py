"""Brings adapters to their slots: fetched in the background, placed between steps.

    disk --fetch (a thread of ours)--> host --place (the engine's thread)--> slot

`acquire` never waits. A request whose adapter is not there yet is asked for again
in the next step, and `wake` calls the engine when a fetch has ended, so that an
idle engine looks again.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from lorry_adapters.errors import AdapterBroken, AdapterError
from lorry_adapters.lora.slots import SlotTable
from lorry_adapters.lora.weights import AdapterWeights

logger = logging.getLogger(__name__)

FETCHERS = 2
"""Threads that read adapters; more would take the processor from the steps."""


class SlotResidency:
    """The `Residency` that the scheduler asks. Engine thread only, but for the fetches."""

    def __init__(
        self,
        slots: SlotTable,
        *,
        fetch: Callable[[str], AdapterWeights],
        place: Callable[[int, AdapterWeights], None],
        wake: Callable[[], None],
    ) -> None:
        self.slots = slots
        self.loads = 0
        self.evictions = 0
        self._fetch = fetch
        self._place = place
        self._wake = wake
        self._pool = ThreadPoolExecutor(FETCHERS, thread_name_prefix="lorry-fetch")
        # Under way or landed, oldest first. A landed one that nobody takes is dropped
        # when as many as the slots have come after it; the host cache still has it.
        self._fetches: OrderedDict[str, Future[AdapterWeights]] = OrderedDict()

    def acquire(self, digests: Sequence[str]) -> tuple[int, ...] | None:
        # Two names may have one content: it needs one slot.
        missing = [d for d in dict.fromkeys(digests) if self.slots.slot_of(d) is None]
        self.prefetch(missing)
        for digest in missing:
            future = self._fetches[digest]
            if not future.done():
                return None
            error = future.exception()
            if error is not None:
                # Not remembered: the files may be mended before the next request.
                del self._fetches[digest]
                if isinstance(error, AdapterError):
                    raise error
                raise AdapterBroken(
                    f"adapter {digest} could not be loaded: {error}; upload it again"
                ) from error
        if not self.slots.has_room_for(digests):
            return None
        for digest in missing:
            self._load(digest, keep=digests)
        return tuple(self.slots.pin(digest) for digest in digests)

    def release(self, digests: Sequence[str]) -> None:
        for digest in digests:
            self.slots.unpin(digest)

    def prefetch(self, digests: Sequence[str]) -> None:
        for digest in digests:
            if digest in self._fetches or self.slots.slot_of(digest) is not None:
                continue
            future = self._pool.submit(self._fetch, digest)
            self._fetches[digest] = future
            future.add_done_callback(lambda _: self._wake())
        landed = [digest for digest, future in self._fetches.items() if future.done()]
        wanted = set(digests)
        for digest in landed[: max(0, len(landed) - self.slots.num_slots)]:
            if digest not in wanted:
                del self._fetches[digest]

    def forget(self, digest: str) -> None:
        """The registry no longer has `digest`, and nothing runs with it."""
        self._fetches.pop(digest, None)
        self.slots.forget(digest)

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _load(self, digest: str, *, keep: Sequence[str]) -> None:
        weights = self._fetches.pop(digest).result()
        claim = self.slots.claim(digest, keep=keep)
        assert claim is not None, "has_room_for said so"
        try:
            self._place(claim.slot, weights)
        except (RuntimeError, MemoryError) as error:
            # Half an adapter must never answer.
            self.slots.forget(digest)
            raise AdapterBroken(f"adapter {digest} could not be placed: {error}") from error
        self.loads += 1
        self.evictions += claim.evicted is not None
        logger.debug("adapter %s in slot %d, evicted %s", digest, claim.slot, claim.evicted)
