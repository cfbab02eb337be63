"""Sends the requests of a row and notes when they went and when each piece came back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from time import perf_counter, process_time

from lorry.bench.answer import BenchAnswer
from lorry.bench.connection import Broken, Connections
from lorry.bench.targets import Reading, Target, read
from lorry.bench.workload import Ask

OnDone = Callable[[], None]


@dataclass(frozen=True, slots=True)
class LoadSample:
    """One request and what became of it. Times are seconds on one clock."""

    ask: Ask
    """In a conversation it has the whole prompt."""
    sent: float
    ended: float
    reading: Reading


@dataclass(frozen=True, slots=True)
class LoadRun:
    """One repeat of a row."""

    samples: tuple[LoadSample, ...]
    seconds: float
    """From the first request sent to the last answer whole."""
    client_seconds: float
    """Of processor time that the generator itself took meanwhile."""
    late: float
    """Open load: the most seconds by which a request went out after its time."""


@dataclass(frozen=True, slots=True)
class _Exchange:
    ask: Ask
    sent: float
    ended: float
    answer: BenchAnswer | None
    problem: str


async def run(
    asks: Sequence[Ask],
    *,
    concurrency: int | None,
    target: Target,
    connections: Connections,
    timeout: float,
    on_done: OnDone,
) -> LoadRun:
    """Closed where `concurrency` is given: so many conversations, mostly of one request, at once.
    Otherwise each request goes out at its time."""
    # Bodies first: while the clock ticks nothing is encoded, and no answer is taken apart, except
    # in a conversation, whose next prompt has the answer in it.
    chats: list[list[Ask]] = []
    for ask in asks:
        if ask.continues:
            chats[-1].append(ask)
        else:
            chats.append([ask])
    bodies = [target.body(chat[0]) for chat in chats]
    exchanges: list[_Exchange] = []
    late = 0.0

    async def converse(index: int) -> None:
        first, *others = chats[index]
        last = await exchange(first, bodies[index])
        for ask in others:
            before = f"{last.ask.prompt}{_sample(last, target).reading.text}"
            ask = replace(ask, prompt=f"{before} {ask.prompt}", continues=False)
            last = await exchange(ask, target.body(ask))

    async def exchange(ask: Ask, body: bytes) -> _Exchange:
        sent = perf_counter()
        answer, problem = None, ""
        try:
            async with asyncio.timeout(timeout):
                answer = await connections.send("POST", target.path, body)
        except TimeoutError:
            problem = f"no whole answer within {timeout:g} s"
        except Broken as error:
            problem = str(error)
        made = _Exchange(ask, sent, perf_counter(), answer, problem)
        exchanges.append(made)
        on_done()
        return made

    async def worker(queue: list[int]) -> None:
        while queue:
            await converse(queue.pop())

    cpu, start = process_time(), perf_counter()
    async with asyncio.TaskGroup() as group:
        if concurrency is not None:
            queue = list(range(len(chats)))[::-1]
            for _ in range(min(concurrency, len(chats))):
                group.create_task(worker(queue))
        else:
            for index, (ask,) in enumerate(chats):
                await asyncio.sleep(max(0.0, start + ask.at - perf_counter()))
                late = max(late, perf_counter() - start - ask.at)
                group.create_task(converse(index))
    client_seconds = process_time() - cpu
    seconds = max((item.ended for item in exchanges), default=start) - start
    samples = tuple(_sample(item, target) for item in exchanges)
    return LoadRun(samples, seconds, client_seconds, late)


def _sample(item: _Exchange, target: Target) -> LoadSample:
    if item.answer is None:
        reading = Reading((), 0, "", problem=item.problem)
    else:
        reading = read(target, item.answer, item.ask.new_tokens)
    return LoadSample(item.ask, item.sent, item.ended, reading)
