"""Waiting sequences, in one line per caller and adapter.

The next sequence is the first in line of the caller that has been served least, and of the adapter
that it has used least (`lorry.engine.service`). Callers that have been served alike differ by their
load, and then by the time of arrival: a single caller with a single adapter is served first come,
first served.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from heapq import heapify, heappop, heappush

from lorry.engine.sequence import Sequence
from lorry.engine.service import PROMPT, Counters

Adapters = tuple[str, ...]
"""The digests of a request's adapters."""

_Lines = dict[Adapters, deque[Sequence]]
_Rank = tuple[float, float]
_Entry = tuple[_Rank, int, Sequence, Iterator[Sequence]]


class Waiting:
    def __init__(self) -> None:
        self._lines: dict[str, _Lines] = {}
        """By caller. None of them is empty."""
        self._served = Counters[str]()
        self._used: dict[str, Counters[Adapters]] = {}
        """By caller: how much it used each of its adapters."""
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Sequence]:
        for lines in self._lines.values():
            for line in lines.values():
                yield from line

    @property
    def callers(self) -> Iterable[str]:
        return self._lines.keys()

    def append(self, sequence: Sequence) -> None:
        self._line(sequence).append(sequence)
        self._count += 1

    def put_back(self, sequence: Sequence) -> None:
        """Put back a sequence that has run already, before the others in its line."""
        self._line(sequence).appendleft(sequence)
        self._count += 1

    def remove(self, sequence: Sequence) -> None:
        caller, adapters = sequence.request.caller, sequence.digests
        lines = self._lines[caller]
        lines[adapters].remove(sequence)
        self._count -= 1
        if lines[adapters]:
            return
        del lines[adapters]
        self._used[caller].end(adapters)
        if not lines:
            del self._lines[caller]
            self._served.end(caller)

    def charge_prompt(self, sequence: Sequence) -> None:
        """Count the prompt of a sequence that begins, except what was found in the prefix cache.
        One that was preempted has been charged."""
        if not sequence.charged:
            sequence.charged = True
            self.charge(sequence, PROMPT * sequence.missing)

    def charge(self, sequence: Sequence, cost: float) -> None:
        """Count what the sequence got, as `lorry.engine.service` does."""
        caller, cost = sequence.request.caller, cost / sequence.request.weight
        self._served.add(caller, cost)
        self._used.setdefault(caller, Counters()).add(sequence.digests, cost)

    def in_order(self, running: Mapping[str, float]) -> Iterator[Sequence]:
        """Yield the waiting sequences, the next one first. `running`: each caller's load.
        It may grow by the one yielded last, which may be removed and charged."""

        def of_caller(sequence: Sequence) -> _Rank:
            caller = sequence.request.caller
            return self._served[caller], running.get(caller, 0.0)

        def of_adapter(sequence: Sequence) -> _Rank:
            return self._used[sequence.request.caller][sequence.digests], 0.0

        of_callers = [
            _merged([iter(tuple(line)) for line in lines.values()], of_adapter)
            for lines in self._lines.values()
        ]
        return _merged(of_callers, of_caller)

    def _line(self, sequence: Sequence) -> deque[Sequence]:
        caller, adapters = sequence.request.caller, sequence.digests
        if caller not in self._lines:
            for gone in self._served.forget(self._lines):
                self._used.pop(gone, None)
            self._served.begin(caller, self._lines)
            self._lines[caller] = {}
        lines, used = self._lines[caller], self._used.setdefault(caller, Counters())
        if adapters not in lines:
            used.forget(lines)
            used.begin(adapters, lines)
            lines[adapters] = deque()
        return lines[adapters]


def _merged(
    lines: Iterable[Iterator[Sequence]], rank: Callable[[Sequence], _Rank]
) -> Iterator[Sequence]:
    """Yield the sequences of all `lines`: of those at the head of a line, the one with the lowest
    rank. A line's rank may grow when its head has been yielded."""

    def entry(sequence: Sequence, line: Iterator[Sequence]) -> _Entry:
        # Arrivals are all different, so lines themselves are never compared.
        return rank(sequence), sequence.arrival, sequence, line

    heads = [entry(next(line), line) for line in lines]
    heapify(heads)
    while heads:
        _, _, sequence, line = heappop(heads)
        yield sequence
        following = next(line, None)
        if following is not None:
            heappush(heads, entry(following, line))
