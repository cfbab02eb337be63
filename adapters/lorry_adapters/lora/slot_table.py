"""The adapters in the device slots. No torch: only the assignment; the tensors are in `layers`.

Slot 0 is the base model and never appears here. Slots 1 to `num_slots` each hold at most one
adapter, identified by its digest. A pinned slot is in use by a running request and is never
evicted; among the others the least recently used goes first, and adapters that users pinned go
last.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass


@dataclass(slots=True)
class _Place:
    slot: int
    pins: int = 0
    forgotten: bool = False
    """Its adapter was removed for good: free the slot at the last unpin."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A slot assigned to an adapter whose weights are not there yet."""

    slot: int
    evicted: str | None
    """The digest that was evicted; None if the slot was free."""


class SlotTable:
    """Assigns slots to adapters, pins them while they run, and evicts the least recently used."""

    def __init__(self, num_slots: int) -> None:
        assert num_slots >= 1
        self.num_slots = num_slots
        # Ordered by last use, oldest first.
        self._places: OrderedDict[str, _Place] = OrderedDict()
        # Lowest slot last, so that `pop` keeps the used slots together: the kernels read
        # neighbouring slots without a copy.
        self._free = list(range(num_slots, 0, -1))

    def slot_of(self, digest: str) -> int | None:
        place = self._places.get(digest)
        return None if place is None else place.slot

    def digest_in(self, slot: int) -> str:
        """Return the digest of the adapter in a slot."""
        return next(digest for digest, place in self._places.items() if place.slot == slot)

    @property
    def resident(self) -> tuple[str, ...]:
        """Digests in slots, least recently used first."""
        return tuple(self._places)

    @property
    def num_pinned(self) -> int:
        return sum(place.pins > 0 for place in self._places.values())

    def has_room_for(self, digests: Sequence[str]) -> bool:
        """Return whether all of `digests` could be in slots at once, without evicting a pinned
        one."""
        wanted = set(digests)
        missing = sum(digest not in self._places for digest in wanted)
        evictable = sum(
            place.pins == 0 and digest not in wanted for digest, place in self._places.items()
        )
        return missing <= len(self._free) + evictable

    def claim(
        self, digest: str, *, keep: Sequence[str] = (), last: Collection[str] = ()
    ) -> Claim | None:
        """Assign a slot to `digest`: a free one, or the least recently used that is neither pinned
        nor in `keep`, nor in `last` if there is another. Return None if there is no such slot."""
        assert digest not in self._places
        evicted = None
        if not self._free:
            evicted = next(iter(self.idle(keep=keep, last=last)), None)
            if evicted is None:
                return None
            self._release(evicted)
        slot = self._free.pop()
        self._places[digest] = _Place(slot)
        return Claim(slot, evicted)

    def idle(self, *, keep: Collection[str] = (), last: Collection[str] = ()) -> list[str]:
        """Return the digests that may be evicted, in this order: neither pinned nor in `keep`, the
        least recently used first, and those in `last` after all others."""
        idle = [d for d, place in self._places.items() if place.pins == 0 and d not in keep]
        return sorted(idle, key=last.__contains__)

    def pin(self, digest: str) -> int:
        """Count one more user of a resident adapter and return its slot."""
        place = self._places[digest]
        place.pins += 1
        place.forgotten = False
        self._places.move_to_end(digest)
        return place.slot

    def unpin(self, digest: str) -> int | None:
        """Return the slot if it is free now, because its adapter was removed."""
        place = self._places[digest]
        assert place.pins > 0
        place.pins -= 1
        return self._release(digest) if place.pins == 0 and place.forgotten else None

    def forget(self, digest: str) -> int | None:
        """Free the slot of a removed or evicted adapter, now or when its last row has ended. Return
        the slot if it is free now."""
        place = self._places.get(digest)
        if place is None:
            return None
        if place.pins:
            place.forgotten = True
            return None
        return self._release(digest)

    def _release(self, digest: str) -> int:
        place = self._places.pop(digest)
        self._free.append(place.slot)
        self._free.sort(reverse=True)
        return place.slot
