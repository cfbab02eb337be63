"""How several callers share the steps: pure functions of the running sequences.

A caller's load is the number of its running sequences, divided by its weight.

With a single caller none of them has an effect: no sequence is preempted for a new request, the
youngest is preempted for a decode, and a prompt may use the whole step.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from collections.abc import Sequence as AbstractSequence

from lorry.engine.sequence import Sequence

MARGIN = 2
"""The prompts of a caller wait for those of one whose load is this much less."""

PART = 8
"""1 / PART of a step's tokens are for prompts of callers that outweigh another caller."""

Loads = defaultdict[str, float]
"""The load of each caller."""


def loads_of(running: Iterable[Sequence]) -> Loads:
    loads = Loads(float)
    for sequence in running:
        loads[sequence.request.caller] += sequence.load
    return loads


def youngest_of_busiest(running: AbstractSequence[Sequence], loads: Loads) -> Sequence:
    """Return the sequence to preempt first: the youngest of the caller with the highest load; if
    several callers have that, the youngest of all theirs. `running` is in order of admission and
    not empty."""
    most = max(loads.values())
    return next(s for s in reversed(running) if loads[s.request.caller] == most)


def giving_way(
    sequence: Sequence,
    running: AbstractSequence[Sequence],
    loads: Loads,
    *,
    blocks: int,
    seats: int,
    freed: Callable[[Sequence], int],
) -> list[Sequence] | None:
    """Return the sequences of `running` to preempt for `sequence`, which needs `blocks` more blocks
    than are free and `seats` seats. Return None if it has to wait. `freed`: the blocks that become
    free if a sequence is preempted.

    Afterwards the load of every preempted caller is still at least the other's, so that
    preemptions do not alternate."""
    loads, left = loads.copy(), list(running)
    load = loads[sequence.request.caller] + sequence.load
    chosen: list[Sequence] = []
    while blocks > 0 or seats > 0:
        if not left:
            return None
        other = youngest_of_busiest(left, loads)
        caller = other.request.caller
        if caller == sequence.request.caller or loads[caller] - other.load < load:
            return None
        left.remove(other)
        loads[caller] -= other.load
        blocks -= freed(other)
        seats -= 1
        chosen.append(other)
    return chosen


class PromptTokens:
    """The prompt tokens that each caller may still have in a step of `budget`.

    Prompts partly in the cache leave something for those of other callers, including `waiting`
    ones. A caller that would give way to another gets a small part of the step only. Otherwise each
    token of the other's answer would take as long as a part of a long prompt."""

    def __init__(
        self,
        running: Iterable[Sequence],
        halves: Iterable[Sequence],
        waiting: Iterable[str],
        budget: int,
    ) -> None:
        """`halves` are those of `running` that are partly in the cache; `waiting` are callers."""
        loads, new = loads_of(running), set(waiting)
        asking = new.union(sequence.request.caller for sequence in halves)
        least = min((loads[caller] for caller in new.union(loads)), default=0.0)
        self._share = max(1, budget // max(1, len(asking)))
        self._part = max(1, budget // PART)
        self._heavy = {caller for caller, load in loads.items() if load >= least + MARGIN}
        self._taken = Counter[str]()

    def for_half(self, caller: str) -> int:
        most = min(self._share, self._part) if caller in self._heavy else self._share
        return most - self._taken[caller]

    def for_new(self, caller: str, budget: int) -> int:
        """Return the part of `budget`, which is what the others have left."""
        if caller not in self._heavy:
            return budget
        return min(budget, max(0, self._part - self._taken[caller]))

    def take(self, caller: str, count: int) -> None:
        self._taken[caller] += count
