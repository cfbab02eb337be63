"""Brings adapters to their slots: fetched in the background, placed between steps.

    disk --fetch (one of our threads)--> host, prepared --place (the engine's thread)--> slot

`acquire` never waits. A request whose adapter is not in a slot yet is tried again in the next
step. `wake` is called at the end of each fetch, so that an idle engine tries again.

Before an adapter is read, the memory that it needs is counted (`Accounts`). If it does not fit,
adapters that nothing uses leave: first those of the host cache, then those that were fetched for
requests less urgent, then idle slots. If that is not enough, the request waits for others to end;
one that would not fit in the whole memory is refused.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from lorry.adapter_needs import AdapterNeeds
from lorry_adapters.errors import AdapterBroken, AdapterError, OutOfMemory
from lorry_adapters.lora.adapter_memory import AdapterBytes, AdapterMemory
from lorry_adapters.lora.adapter_size import AdapterSize
from lorry_adapters.lora.slot_table import SlotTable

logger = logging.getLogger(__name__)

Prepared = TypeVar("Prepared")
"""An adapter ready to be placed. Its type is the runner's."""

FETCHERS = 2
"""Threads that read adapters; more would take the processor from the steps."""

NICENESS = 5
"""Niceness of those threads, added to the process's. If both want a core, a step's threads get
three times as much of it."""


@dataclass(frozen=True, slots=True)
class Accounts(Generic[Prepared]):
    """The memory of adapters, and what each takes of it."""

    memory: AdapterMemory = field(default_factory=AdapterMemory)
    needs: AdapterNeeds = field(default_factory=AdapterNeeds)
    size_of: Callable[[str], AdapterSize] = lambda digest: AdapterSize(0)
    """Reads a header, in a fetcher's thread. AdapterError."""
    taken_by: Callable[[Prepared], AdapterBytes] = lambda prepared: AdapterBytes()


@dataclass(frozen=True, slots=True)
class _Short:
    """The result of a fetch for which there was no memory."""

    need: AdapterBytes
    exact: bool
    """True if the adapter was prepared once; otherwise it may need less."""


class SlotResidency(Generic[Prepared]):
    """The scheduler's `Residency`. Engine thread only, except the fetches."""

    def __init__(
        self,
        slots: SlotTable,
        *,
        fetch: Callable[[str], Prepared],
        place: Callable[[int, Prepared], AdapterBytes | None],
        wake: Callable[[], None],
        clear: Callable[[int], None] = lambda slot: None,
        pinned: Callable[[], Collection[str]] = tuple,
        accounts: Accounts[Prepared] | None = None,
    ) -> None:
        """`place` returns what the adapter takes from then on; `clear` empties a slot. `pinned`
        returns the digests that users pinned: they leave their slots last."""
        self.slots = slots
        self.loads = 0
        self.evictions = 0
        self._fetch = fetch
        self._place = place
        self._wake = wake
        self._clear = clear
        self._pinned = pinned
        self._accounts: Accounts[Prepared] = accounts or Accounts()
        self._memory = self._accounts.memory
        self._pool = ThreadPoolExecutor(
            FETCHERS, thread_name_prefix="lorry-fetch", initializer=_step_aside
        )
        # In progress or done, but not in a slot yet. They take memory in addition to the host
        # cache, so they are few. The adapters of a request fit in the slots, and so also here.
        self._fetches: dict[str, Future[Prepared | _Short]] = {}
        # Forgotten while they were being read. They count until they end, and nothing of the same
        # content is fetched before.
        self._orphans: dict[str, Future[Prepared | _Short]] = {}
        self._ending = threading.Lock()
        self._max_fetches = slots.num_slots + FETCHERS
        # Most urgent first.
        self._wanted: Mapping[str, int] = {}
        self._needs: dict[str, _Short] = {}
        # By content, until it is forgotten: a header is read once.
        self._sizes: dict[str, AdapterSize] = {}

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
            result = future.result()
            if isinstance(result, _Short):
                del self._fetches[digest]
                self._needs[digest] = result
                absent = True
        if not self.slots.has_room_for(digests):
            return None
        if absent:
            for digest in missing:
                self._begin(digest, keep=digests)
            return None
        for digest in missing:
            self._load(digest, keep=digests)
        return tuple(self.slots.pin(digest) for digest in digests)

    def release(self, digests: Sequence[str]) -> None:
        for digest in digests:
            self._emptied(digest, self.slots.unpin(digest))

    def prefetch(self, digests: Sequence[str]) -> None:
        missing = [d for d in dict.fromkeys(digests) if self.slots.slot_of(d) is None]
        urgent = missing[: self._max_fetches]
        self._wanted = {digest: place for place, digest in enumerate(urgent)}
        for digest in urgent:
            # What is short of memory gets it in `acquire`, when its slots are free too.
            if digest not in self._needs:
                self._begin(digest)

    def forget(self, digest: str) -> None:
        """The registry has freed `digest`, and nothing runs with it."""
        self._needs.pop(digest, None)
        self._sizes.pop(digest, None)
        future = self._fetches.pop(digest, None)
        if future is not None:
            self._let_go(digest, future)
        self._emptied(digest, self.slots.forget(digest))

    def grow(self, digest: str, size: AdapterBytes) -> None:
        """Count `size` for an adapter in a slot from now on. Raises OutOfMemory."""
        if not self._take(digest, size, keep=(digest,)):
            used = self._memory.total - (self._memory.of(digest) or AdapterBytes()).total
            raise self._accounts.needs.refusal(f"adapter {digest}", size, used)

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _need_of(self, digest: str, beside: Sequence[str]) -> AdapterBytes | None:
        """Return what an adapter for which there was no memory needs, of what the others of its
        request leave; None if that is not known yet.

        Raises:
            OutOfMemory: they never fit together.
        """
        short = self._needs.get(digest)
        if short is None:
            return None
        others = [other for other in dict.fromkeys(beside) if other != digest]
        held = AdapterBytes()
        for other in others:
            held = held.plus(self._memory.of(other) or AdapterBytes())
        left = max(0, self._memory.limit - held.total)
        if short.exact and short.need.total > left and all(map(self._is_settled, others)):
            names = " and ".join([digest, *others])
            raise self._accounts.needs.refusal(f"the sum of {names}", held.plus(short.need))
        return short.need.capped(left)

    def _is_settled(self, digest: str) -> bool:
        """Whether what it takes is what is counted for it."""
        future = self._fetches.get(digest)
        ready = future is not None and future.done() and future.exception() is None
        return ready or self.slots.slot_of(digest) is not None

    def _begin(self, digest: str, *, keep: Sequence[str] = ()) -> None:
        """Fetch `digest` unless too many other wanted digests are being fetched, or there is no
        memory for it."""
        if digest in self._fetches or digest in self._orphans:
            return
        if len(self._fetches) >= self._max_fetches:
            for other in list(self._fetches):
                # If it is needed again, the host cache may still have it.
                if other not in self._wanted and other not in keep:
                    self._drop_fetch(other)
        if len(self._fetches) >= self._max_fetches:
            return
        need = self._need_of(digest, keep)
        if need is not None and not self._take(digest, need, keep=keep):
            return
        future = self._pool.submit(self._fetch_within, digest, need is not None)
        self._fetches[digest] = future
        future.add_done_callback(lambda ended: self._end(digest, ended))

    def _fetch_within(self, digest: str, counted: bool) -> Prepared | _Short:
        """Read and prepare an adapter. In a fetcher's thread. `counted`: its memory was taken."""
        accounts, memory = self._accounts, self._memory
        try:
            if not counted:
                size = self._sizes.get(digest)
                if size is None:
                    size = self._sizes[digest] = accounts.size_of(digest)
                never = accounts.needs.why_never(size)
                if never is not None:
                    raise OutOfMemory(type(never).within(f"adapter {digest}: {never}", never))
                need = accounts.needs.most(size)
                if not memory.take(digest, need):
                    return _Short(need, exact=False)
            prepared = self._fetch(digest)
            size_now = accounts.taken_by(prepared)
            if memory.take(digest, size_now):
                return prepared
            # Before its memory counts as free; an error would hold it too.
            del prepared
            if size_now.total > memory.limit:
                raise accounts.needs.refusal(f"adapter {digest}", size_now)
        except BaseException:
            memory.give_back(digest)
            raise
        memory.give_back(digest)
        return _Short(size_now, exact=True)

    def _load(self, digest: str, *, keep: Sequence[str]) -> None:
        prepared = self._fetches.pop(digest).result()
        assert not isinstance(prepared, _Short)
        claim = self.slots.claim(digest, keep=keep, last=self._pinned())
        assert claim is not None, "has_room_for said so"
        self.evictions += claim.evicted is not None
        try:
            size = self._place(claim.slot, prepared)
        except Exception as error:
            # A partly placed adapter must never be used.
            self._emptied(digest, self.slots.forget(digest))
            raise AdapterBroken(f"adapter {digest} could not be placed: {error}") from error
        finally:
            if claim.evicted is not None:
                self._memory.give_back(claim.evicted)
        if size is not None:
            self._memory.take(digest, size, pinned=True)
        self._needs.pop(digest, None)
        self.loads += 1
        logger.debug("adapter %s in slot %d, evicted %s", digest, claim.slot, claim.evicted)

    def _take(self, digest: str, size: AdapterBytes, *, keep: Collection[str]) -> bool:
        """Count `size` for an adapter, and evict what nothing uses for it. Return False if that
        would not be enough; then nothing is evicted but what only the host cache holds."""
        memory = self._memory
        if memory.take(digest, size):
            return True
        rank = self._wanted.get(digest, len(self._wanted))
        fetched = [
            other
            for other, future in self._fetches.items()
            if other != digest
            and other not in keep
            and self._wanted.get(other, len(self._wanted) + 1) > rank
            and (future.done() or not future.running())
        ]
        pinned = self._pinned()
        idle = self.slots.idle(keep=keep, last=pinned)
        if not memory.could_fit(digest, size, (*fetched, *idle)):
            return False
        # The least urgent first.
        for other in sorted(fetched, key=lambda one: -self._wanted.get(one, len(self._wanted) + 1)):
            self._drop_fetch(other)
            if memory.take(digest, size):
                return True
        for other in idle:
            if other in pinned and memory.take(digest, size, pinned=True):
                return True
            self._emptied(other, self.slots.forget(other))
            self.evictions += 1
            if memory.take(digest, size):
                return True
        return memory.take(digest, size, pinned=True)

    def _drop_fetch(self, digest: str) -> None:
        """Drop a fetch that is done or has not begun; not one that is under way."""
        future = self._fetches[digest]
        if future.done() or future.cancel():
            del self._fetches[digest]
            self._memory.give_back(digest)

    def _let_go(self, digest: str, future: Future[Prepared | _Short]) -> None:
        if future.done() or future.cancel():
            self._memory.give_back(digest)
            return
        self._orphans[digest] = future
        if future.done():
            self._end_orphan(digest, future)

    def _end(self, digest: str, future: Future[Prepared | _Short]) -> None:
        """A fetch has ended. In its thread."""
        self._end_orphan(digest, future)
        self._wake()

    def _end_orphan(self, digest: str, future: Future[Prepared | _Short]) -> None:
        # Both the engine's thread and the fetch's may come here.
        with self._ending:
            if self._orphans.get(digest) is future:
                self._memory.give_back(digest)
                del self._orphans[digest]

    def _emptied(self, digest: str, slot: int | None) -> None:
        """A slot has become free: let go of what it holds."""
        if slot is not None:
            self._clear(slot)
            self._memory.give_back(digest)


def _step_aside() -> None:
    """Lower the priority of the calling thread below the steps. Only on Linux does a thread have a
    niceness of its own."""
    if sys.platform == "linux":
        os.nice(NICENESS)
