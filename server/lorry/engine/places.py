"""Places in the queue for requests, from their arrival to their first token. Event loop only.

A place is taken before a request's body is read. So no request is refused after its prompt was
read, and no more prompts are in preparation than the queue holds.
"""

from __future__ import annotations

from collections import Counter

from lorry.errors import QueueFull


class Place:
    """One request's place. Leaving it twice does nothing."""

    def __init__(self, places: Places, caller: str, weight: float) -> None:
        self.caller = caller
        self.weight = weight
        self._places = places
        self._held = True
        self._used = False
        self._shared = False

    def share(self) -> Place:
        """Return this place. From now on it serves all sequences of its request."""
        self._shared = True
        return self

    def use(self) -> Place:
        """Return a place for one sequence in the engine: this one, or a new one if the request
        becomes several sequences and does not share. Raises QueueFull."""
        if self._used and not self._shared:
            return self._places.enter(self.caller, self.weight).use()
        self._used = True
        return self

    def leave(self) -> None:
        if self._held:
            self._held = False
            self._places._give_back(self.caller)


class Places:
    """`size` places. A caller without a place gets one even if all are taken, up to twice `size`,
    so that no caller can keep the others out."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._taken: Counter[str] = Counter()
        self._total = 0

    @property
    def taken(self) -> int:
        return self._total

    def check(self, caller: str) -> None:
        """Raise QueueFull if `enter` would."""
        newcomer = not self._taken[caller] and self._total < 2 * self.size
        if self._total >= self.size and not newcomer:
            raise QueueFull(
                f"{self._total} requests are waiting, the limit is {self.size}; try again later",
                retry_after=1,
            )

    def enter(self, caller: str, weight: float = 1.0) -> Place:
        """Take a place. `weight`: the caller's, for the service of its requests. Raises
        QueueFull."""
        self.check(caller)
        self._taken[caller] += 1
        self._total += 1
        return Place(self, caller, weight)

    def _give_back(self, caller: str) -> None:
        self._total -= 1
        self._taken[caller] -= 1
        if not self._taken[caller]:
            # There may be any number of callers: nothing is kept for those that have left.
            del self._taken[caller]
