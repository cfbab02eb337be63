"""How much each caller has been served: the counters of "Fairness in serving large language models"
(Sheng et al., OSDI 2024), which calls them virtual token counters. Pure Python.

A prompt token that is computed counts `PROMPT`, a token of an answer `ANSWER`, both divided by the
caller's weight. The next request is of the caller with the lowest counter, and of its adapters that
of the one with the lowest. So a caller that sends sixty-four requests at once waits for itself, and
not another for it.

Who has nothing waiting saves nothing up: with its next request its counter is raised to the lowest
of those that wait, or if nobody waits, to that of the last one that did.

What this promises (theorem 4.4 there): while two callers both have requests waiting, what they
get, each divided by its weight w, differs by at most

    2 U,  U = max(PROMPT * longest prompt, ANSWER * tokens in the KV cache) / least w

It holds for callers whose adapters are in slots: a request that waits for one is overtaken, up to
`scheduler.MAX_OVERTAKEN` times.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

PROMPT, ANSWER = 1.0, 2.0
"""The paper's: a token of an answer takes a step of its own."""

_KEPT = 1024
"""Counters before the first look for some that are not needed."""

Name = TypeVar("Name", bound=Hashable)


class Counters(Generic[Name]):
    """The counters of callers, or of one caller's adapters."""

    def __init__(self) -> None:
        self._of: dict[Name, float] = {}
        # The counter of who asks next after a pause is at least this. It never falls.
        self._level = 0.0
        self._last: Name | None = None
        self._most = _KEPT

    def __getitem__(self, name: Name) -> float:
        return self._of.get(name, self._level)

    def begin(self, name: Name, waiting: Iterable[Name]) -> None:
        """Note that `name` has a request waiting again. `waiting`: the others that have one."""
        least = min((self[other] for other in waiting), default=None)
        if least is None:
            least = self._level if self._last is None else self[self._last]
        self._level = max(self._level, least)
        self._of[name] = max(self[name], self._level)

    def end(self, name: Name) -> None:
        """Note that `name` has no request waiting any more."""
        self._last = name

    def add(self, name: Name, cost: float) -> None:
        self._of[name] = self[name] + cost

    def forget(self, waiting: Iterable[Name]) -> list[Name]:
        """Drop counters that the next request would raise anyway, once there are many. Returns
        their names. `waiting`: who has a request waiting."""
        if len(self._of) < self._most:
            return []
        kept = {*waiting, self._last}
        names = [name for name, count in self._of.items() if count <= self._level]
        gone = [name for name in names if name not in kept]
        for name in gone:
            del self._of[name]
        self._most = max(_KEPT, 2 * len(self._of))
        return gone
