"""One server as a model: steps of recorded times, rows, slots, and adapters that are loaded.

A step has a token for each running row that has read its prompt, and as many tokens of prompts
as fit. A request waits for a row, and for its adapter: a fetcher brings it to a slot while the
others run. What was used last stays. Everything is arithmetic on the arguments: the same ones
give the same answer on every machine.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from lorry.capacity import StepTimes


@dataclass(frozen=True, slots=True)
class Arrival:
    at: float
    """Seconds. In a closed load only the order counts."""
    adapter: int
    prompt_tokens: int
    new_tokens: int


@dataclass(frozen=True, slots=True)
class Server:
    times: StepTimes
    rows: int = 32
    """`--max-num-seqs`."""
    slots: int = 16
    memory: int = 64
    """Adapters in memory, those in slots included. Not fewer than slots."""
    step_tokens: int = 512
    """`--max-num-batched-tokens`."""
    fetchers: int = 2


@dataclass(slots=True)
class Outcome:
    first_token: list[float] = field(default_factory=list)
    """Seconds from arrival, by arrival."""
    ended: list[float] = field(default_factory=list)
    """When, by arrival."""
    loads: int = 0
    """Adapters read from disk."""
    evictions: int = 0
    """Adapters that left memory for others."""
    steps: int = 0
    seconds: float = 0.0
    """Until the last token."""
    busy: float = 0.0
    """Seconds in steps."""


@dataclass(slots=True)
class _Row:
    index: int
    arrived: float
    adapter: int
    prompt_left: int
    tokens_left: int


class Replica:
    """Runs once."""

    def __init__(self, server: Server, held: Sequence[int] = ()) -> None:
        """`held`: adapters in memory at first, the least recently used first."""
        assert server.memory >= server.slots >= 1 and server.rows >= 1
        self._server = server
        self._memory: OrderedDict[int, None] = OrderedDict.fromkeys(held)
        """Adapters in memory and on their way there, the least recently used first."""
        self._ready: dict[int, float] = {}
        """When those on their way are there."""
        self._fetchers = [0.0] * server.fetchers
        self._waiting: deque[_Row] = deque()
        self._running: list[_Row] = []
        self._now = 0.0
        self._out = Outcome()

    def run(self, arrivals: Sequence[Arrival], concurrency: int | None = None) -> Outcome:
        """Answer all. With `concurrency`, so many are there at a time; otherwise each comes at its
        time, in order."""
        count = len(arrivals)
        self._out.first_token = [0.0] * count
        self._out.ended = [0.0] * count
        given = done = 0
        while done < count:
            while given < count and self._comes(arrivals[given], given - done, concurrency):
                self._arrive(given, arrivals[given], concurrency is not None)
                given += 1
            self._admit()
            if self._running:
                done += self._step()
            else:
                # Nothing runs: on to the next arrival, or the next adapter that is there.
                times = [
                    self._ready[row.adapter] for row in self._waiting if row.adapter in self._ready
                ]
                if given < count and concurrency is None:
                    times.append(arrivals[given].at)
                self._now = max(self._now, min(times))
        self._out.seconds = self._now
        return self._out

    def _comes(self, one: Arrival, inside: int, concurrency: int | None) -> bool:
        return one.at <= self._now if concurrency is None else inside < concurrency

    def _arrive(self, index: int, one: Arrival, closed: bool) -> None:
        at = self._now if closed else one.at
        self._waiting.append(_Row(index, at, one.adapter, one.prompt_tokens, one.new_tokens))

    def _admit(self) -> None:
        """Start what has a row, its adapter and a slot; the others are passed over. Adapters are
        fetched in the order of the queue."""
        used = {row.adapter for row in self._running}
        left: deque[_Row] = deque()
        for row in self._waiting:
            if len(self._running) >= self._server.rows:
                left.append(row)
                continue
            if not self._is_held(row.adapter, used):
                left.append(row)
                continue
            there = self._ready.get(row.adapter, 0.0) <= self._now
            if there and (row.adapter in used or len(used) < self._server.slots):
                used.add(row.adapter)
                self._running.append(row)
            else:
                left.append(row)
        self._waiting = left

    def _is_held(self, adapter: int, used: set[int]) -> bool:
        """Fetch an adapter that is not in memory. False if requests want all that are."""
        if adapter in self._memory:
            self._memory.move_to_end(adapter)
            return True
        if len(self._memory) >= self._server.memory:
            wanted = used | {row.adapter for row in self._waiting if row.adapter in self._memory}
            idle = next((one for one in self._memory if one not in wanted), None)
            if idle is None:
                return False
            del self._memory[idle]
            self._ready.pop(idle, None)
            self._out.evictions += 1
        start = max(self._now, heapq.heappop(self._fetchers))
        self._ready[adapter] = start + self._server.times.load
        heapq.heappush(self._fetchers, self._ready[adapter])
        self._memory[adapter] = None
        self._out.loads += 1
        return True

    def _step(self) -> int:
        """One step; how many requests it ends."""
        decoding = [row for row in self._running if not row.prompt_left]
        room = max(0, self._server.step_tokens - len(decoding))
        prompt_tokens = 0
        answered = list(decoding)
        for row in self._running:
            if row.prompt_left and room:
                read = min(room, row.prompt_left)
                row.prompt_left -= read
                room -= read
                prompt_tokens += read
                if not row.prompt_left:
                    answered.append(row)
        adapters = len({row.adapter for row in self._running})
        seconds = self._server.times.step(len(decoding), adapters, prompt_tokens)
        before = len(self._running)
        self._now += seconds
        self._out.busy += seconds
        self._out.steps += 1
        for row in answered:
            if not self._out.first_token[row.index]:
                self._out.first_token[row.index] = self._now - row.arrived
            row.tokens_left -= 1
            if not row.tokens_left:
                self._out.ended[row.index] = self._now
        self._running = [row for row in self._running if row.tokens_left]
        return before - len(self._running)
