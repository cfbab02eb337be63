"""What callers may have of the steps, where there are several: pure functions of who runs.

With a single caller none of them changes anything: nobody gives way to a new request, the
youngest gives way to a decode, and a prompt may have the whole step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from collections.abc import Sequence as AbstractSequence

from lorry.engine.sequence import Sequence

MARGIN = 2
"""A caller gives way to another that has so many fewer, and nothing goes back and forth."""

PART = 8
"""One in so many of a step's tokens are for prompts of who outweighs another caller."""

Counts = Counter[str]
"""Running sequences of each caller."""


def counted(running: Iterable[Sequence]) -> Counts:
    return Counter(sequence.request.caller for sequence in running)


def youngest_of_most(running: AbstractSequence[Sequence], counts: Counts) -> Sequence:
    """Who gives way first: the youngest of the caller that has the most; of several such
    callers, of all theirs. `running` is in order of admission, and not empty."""
    most = max(counts.values())
    return next(s for s in reversed(running) if counts[s.request.caller] == most)


def giving_way(
    sequence: Sequence,
    running: AbstractSequence[Sequence],
    counts: Counts,
    *,
    blocks: int,
    seats: int,
) -> list[Sequence] | None:
    """Who of `running` must give way for `sequence`, if that needs so many `blocks` more than
    are free and so many `seats`; None where it has to wait.

    After that a caller that gave way still has as many as the other, or more."""
    counts, left = counts.copy(), list(running)
    chosen: list[Sequence] = []
    while blocks > 0 or seats > 0:
        if not left:
            return None
        other = youngest_of_most(left, counts)
        if counts[other.request.caller] < counts[sequence.request.caller] + MARGIN:
            return None
        left.remove(other)
        counts[other.request.caller] -= 1
        blocks -= len(other.blocks)
        seats -= 1
        chosen.append(other)
    return chosen


class PromptTokens:
    """Tokens of prompts that each caller may still have in a step of `budget`.

    Prompts half in the cache leave something for those of others, `waiting` ones included.
    Who would give way to another has a small part of the step, or the other's answer would
    take a long prompt's time for each of its tokens."""

    def __init__(
        self,
        running: Iterable[Sequence],
        halves: Iterable[Sequence],
        waiting: Iterable[str],
        budget: int,
    ) -> None:
        """`halves`: those of `running` that are half in the cache; `waiting`: callers."""
        counts, new = counted(running), set(waiting)
        asking = new.union(sequence.request.caller for sequence in halves)
        fewest = min((counts[caller] for caller in new.union(counts)), default=0)
        self._share = max(1, budget // max(1, len(asking)))
        self._part = max(1, budget // PART)
        self._heavy = {caller for caller, count in counts.items() if count >= fewest + MARGIN}
        self._taken = Counter[str]()

    def for_half(self, caller: str) -> int:
        most = min(self._share, self._part) if caller in self._heavy else self._share
        return most - self._taken[caller]

    def for_new(self, caller: str, budget: int) -> int:
        """Of the `budget` that the others have left."""
        if caller not in self._heavy:
            return budget
        return min(budget, max(0, self._part - self._taken[caller]))

    def take(self, caller: str, count: int) -> None:
        self._taken[caller] += count
