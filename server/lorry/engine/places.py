"""Places in the queue: who waits, from the door to the first token. Event loop only.

A place is taken before a request's body is read, so that nobody is refused after the work
of reading a prompt, and the prompts in preparation are no more than the queue holds.
"""

from __future__ import annotations

from collections import Counter

from lorry.errors import QueueFull


class Place:
    """One request's place. To leave it twice does nothing."""

    def __init__(self, places: Places, caller: str) -> None:
        self.caller = caller
        self._places = places
        self._held = True
        self._used = False

    def use(self) -> Place:
        """For one sequence in the engine: this place, or another where one request becomes
        several. Raises QueueFull."""
        if self._used:
            return self._places.enter(self.caller).use()
        self._used = True
        return self

    def leave(self) -> None:
        if self._held:
            self._held = False
            self._places._give_back(self.caller)


class Places:
    """`size` of them. Who has none yet gets one though all are taken by others, until there
    are twice as many: no caller can keep the rest out."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._taken: Counter[str] = Counter()
        self._total = 0

    @property
    def taken(self) -> int:
        return self._total

    def check(self, caller: str) -> None:
        """Raises QueueFull where `enter` would."""
        newcomer = not self._taken[caller] and self._total < 2 * self.size
        if self._total >= self.size and not newcomer:
            raise QueueFull(
                f"{self._total} requests wait already, the limit is {self.size}; try again later",
                retry_after=1,
            )

    def enter(self, caller: str) -> Place:
        """Raises QueueFull."""
        self.check(caller)
        self._taken[caller] += 1
        self._total += 1
        return Place(self, caller)

    def _give_back(self, caller: str) -> None:
        self._total -= 1
        self._taken[caller] -= 1
        if not self._taken[caller]:
            # Callers are strangers: nothing is kept of those who have gone.
            del self._taken[caller]
