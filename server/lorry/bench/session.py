"""Measures rows on one server: warm-up, then every row once, then every row again, ...

Rows take turns so that a machine that slows down for a minute slows all of them, not one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from lorry.bench import answers, figures, workload
from lorry.bench.answers import Difference
from lorry.bench.connection import Address, Connections
from lorry.bench.figures import Figures
from lorry.bench.load import LoadRun, LoadSample, OnDone, run
from lorry.bench.targets import Target
from lorry.bench.workload import WorkloadRow


@dataclass(slots=True)
class Result:
    """A row, measured."""

    row: WorkloadRow
    repeats: list[Figures] = field(default_factory=list)
    samples: list[LoadSample] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    """Bytes the server held before the first repeat and after each; empty if not ours to see."""

    @property
    def figures(self) -> Figures:
        return figures.middle(self.repeats)


@dataclass(frozen=True, slots=True)
class Session:
    """One server and how it is asked."""

    url: str
    target: Target
    headers: Mapping[str, str]
    repeats: int
    seed: int
    timeout: float
    memory: Callable[[], int] | None
    """Bytes that the server holds now."""

    def measure(
        self,
        rows: Sequence[WorkloadRow],
        *,
        keep_samples: bool,
        began: Callable[[str], None],
        on_done: OnDone,
    ) -> list[Result]:
        """`began` is told what begins, `on_done` is called after every request."""
        return asyncio.run(self._measure(rows, keep_samples, began, on_done))

    def check(self, results: Sequence[Result], on_done: OnDone) -> tuple[Difference, ...]:
        """Every sample kept by `measure` once more, alone."""
        return asyncio.run(self._check(results, on_done))

    def requests(self, rows: Sequence[WorkloadRow]) -> int:
        """How often `measure` will call `on_done`."""
        return sum(row.warm_up + row.requests * self.repeats for row in rows)

    async def _measure(
        self,
        rows: Sequence[WorkloadRow],
        keep_samples: bool,
        began: Callable[[str], None],
        on_done: OnDone,
    ) -> list[Result]:
        results = [Result(row) for row in rows]
        connections = self._connections()
        try:
            for repeat in range(self.repeats):
                for result in results:
                    row = result.row
                    if repeat == 0 and row.warm_up:
                        began(f"{row.name}: warm-up")
                        width = row.concurrency or row.warm_up
                        warm = workload.warm_up(row, self.seed)
                        await self._run(warm, width, connections, on_done)
                    if repeat == 0 and self.memory is not None:
                        result.memory.append(self.memory())
                    began(row.name)
                    asks = workload.plan(row, repeat, self.seed)
                    done = await self._run(asks, row.concurrency, connections, on_done)
                    result.repeats.append(figures.of(done))
                    if keep_samples:
                        result.samples += done.samples
                    if self.memory is not None:
                        result.memory.append(self.memory())
        finally:
            await connections.close()
        return results

    async def _check(self, results: Sequence[Result], on_done: OnDone) -> tuple[Difference, ...]:
        connections = self._connections()
        try:
            return await answers.check(
                [sample for result in results for sample in result.samples],
                target=self.target,
                connections=connections,
                timeout=self.timeout,
                on_done=on_done,
            )
        finally:
            await connections.close()

    async def _run(
        self,
        asks: Sequence[workload.Ask],
        concurrency: int | None,
        connections: Connections,
        on_done: OnDone,
    ) -> LoadRun:
        return await run(
            asks,
            concurrency=concurrency,
            target=self.target,
            connections=connections,
            timeout=self.timeout,
            on_done=on_done,
        )

    def _connections(self) -> Connections:
        return Connections(
            Address.of(self.url), {"content-type": "application/json", **self.headers}
        )
