"""The scheduler over the executor, in process and step by step: what the prompts' figures run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.steps import BLOCK_SIZE, Steps
from lorry.core import AdapterUse, Batch, Drawn, Request, SamplingParams
from lorry.engine.blocks import BlockPool
from lorry.engine.limits import Limits
from lorry.engine.prefix_cache import PrefixCache
from lorry.engine.scheduler import Scheduler


class InSlots:
    """Every adapter is in a slot already."""

    def __init__(self, steps: Steps) -> None:
        self._placement = steps.executor.placement

    def acquire(self, digests: Sequence[str]) -> tuple[int, ...]:
        slots = self._placement.slots_of(digests)
        assert slots is not None
        return tuple(slots)

    def release(self, digests: Sequence[str]) -> None:
        pass

    def prefetch(self, digests: Sequence[str]) -> None:
        pass


@dataclass
class StepTime:
    seconds: float
    """By the clock."""
    worked: float
    """Seconds of processor time, of all threads."""
    rows: dict[str, int]
    """Tokens by request."""
    drawn: dict[str, tuple[Drawn, ...]] = field(default_factory=dict)


class Served:
    """Requests in flight. Its cache is empty; `steps` may have served others before."""

    def __init__(
        self,
        steps: Steps,
        *,
        cached: bool = True,
        budget: int = 512,
        seqs: int = 16,
        longest: int = 32768,
        max_step_time: float | None = None,
        by_work: bool = False,
    ) -> None:
        """`by_work`: `max_step_time` is processor time, which other work on the machine changes
        less."""
        self._steps = steps
        self._by_work = by_work
        executor = steps.executor
        blocks = BlockPool(executor.paths.cache.num_blocks, BLOCK_SIZE)
        self.scheduler = Scheduler(
            Limits(seqs, budget, longest, max_step_time),
            blocks,
            InSlots(steps),
            PrefixCache(blocks, executor.path_of if cached else None),
        )

    def add(
        self, name: str, ids: Sequence[int], count: int, adapter: int | None = None, start: int = 0
    ) -> None:
        """`adapter`: the number of one of `Steps`, active from `start` on."""
        uses: tuple[AdapterUse, ...] = ()
        if adapter is not None:
            uses = (AdapterUse(name, f"sha256:{adapter}", 1.0, start),)
        self.scheduler.add(Request(name, tuple(ids), SamplingParams(count), uses, 0.0))

    def step(self) -> StepTime | None:
        """Run a step, with what the engine's thread does around it."""
        begun, worked = time.perf_counter(), time.process_time()
        batch = self.scheduler.schedule()
        if batch is None:
            return None
        return self._run(batch, begun, worked)

    def finish(self) -> list[StepTime]:
        steps: list[StepTime] = []
        while self.scheduler.num_requests:
            made = self.step()
            assert made is not None
            steps.append(made)
        return steps

    def _run(self, batch: Batch, begun: float, worked: float) -> StepTime:
        results = self._steps.executor.run(batch)
        events = self.scheduler.commit(batch, results, begun)
        seconds, work = time.perf_counter() - begun, time.process_time() - worked
        self.scheduler.pace.learn(batch, work if self._by_work else seconds)
        drawn = {event.request_id: event.drawn for event in events}
        rows = {row.request_id: len(row.token_ids) for row in batch.rows}
        return StepTime(seconds, work, rows, drawn)
