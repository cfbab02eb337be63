"""Waiting sequences, in one line per caller.

The next sequence is the first of the caller with the fewest running ones; among equals, the one
that arrived first. So a caller with many requests delays its own and not those of others, and a
single caller is served first come, first served.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from heapq import heapify, heappop, heappush

from lorry.engine.sequence import Sequence


class Waiting:
    def __init__(self) -> None:
        self._lines: dict[str, deque[Sequence]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Sequence]:
        for line in self._lines.values():
            yield from line

    @property
    def callers(self) -> Iterable[str]:
        return self._lines.keys()

    def append(self, sequence: Sequence) -> None:
        self._line(sequence).append(sequence)
        self._count += 1

    def put_back(self, sequence: Sequence) -> None:
        """Put back a sequence that has run already, before the others of its caller."""
        self._line(sequence).appendleft(sequence)
        self._count += 1

    def remove(self, sequence: Sequence) -> None:
        line = self._lines[sequence.request.caller]
        line.remove(sequence)
        self._count -= 1
        if not line:
            del self._lines[sequence.request.caller]

    def in_order(self, running: Mapping[str, int]) -> Iterator[Sequence]:
        """Yield the waiting sequences, the next one first. `running` counts each caller's
        sequences. It may grow by the sequence yielded last, which may also be removed."""
        lines = {caller: iter(tuple(line)) for caller, line in self._lines.items()}
        heads = [_entry(next(line), running) for line in lines.values()]
        heapify(heads)
        while heads:
            sequence = heappop(heads)[-1]
            yield sequence
            following = next(lines[sequence.request.caller], None)
            if following is not None:
                heappush(heads, _entry(following, running))

    def _line(self, sequence: Sequence) -> deque[Sequence]:
        return self._lines.setdefault(sequence.request.caller, deque())


def _entry(sequence: Sequence, running: Mapping[str, int]) -> tuple[int, int, Sequence]:
    # Arrivals are all different, so sequences themselves are never compared.
    return running.get(sequence.request.caller, 0), sequence.arrival, sequence
