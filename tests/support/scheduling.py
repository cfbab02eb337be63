"""The scheduler with a toy model, step by step."""

from collections.abc import Sequence
from concurrent.futures import Future

from lorry.core import Batch, Request, RowResult, TokenEvent
from lorry.engine.blocks import BlockPool
from lorry.engine.limits import Limits
from lorry.engine.prefix_cache import PathOf, PrefixCache
from lorry.engine.restriction import Following
from lorry.engine.scheduler import Scheduler
from support.engine_fakes import ToyResidency, ToyRunner, tokens_of

BLOCK = 4


class Bench:
    """A scheduler, its toy model, and every event so far."""

    def __init__(
        self,
        *,
        seqs: int = 8,
        tokens: int = 64,
        blocks: int = 64,
        slots: int = 2,
        length: int = 64,
        path_of: PathOf | None = None,
        per_caller: bool = False,
    ) -> None:
        """`path_of`: None for no prefix cache."""
        self.residency = ToyResidency(slots)
        self.pool = BlockPool(blocks, BLOCK)
        prefixes = PrefixCache(self.pool, path_of, per_caller=per_caller)
        limits = Limits(seqs, tokens, length)
        self.scheduler = Scheduler(limits, self.pool, self.residency, prefixes)
        self.runner = ToyRunner(BLOCK, self.residency.digest_in)
        self.events: list[TokenEvent] = []

    def add(self, *requests: Request) -> None:
        for one in requests:
            self.scheduler.add(one)

    def add_following(self, request: Request, following: Following) -> None:
        """A request whose constraint is there already."""
        future: Future[Following] = Future()
        future.set_result(following)
        self.scheduler.add(request, future)

    def step(self) -> dict[str, int]:
        """Runs one step; the rows and how many tokens each had."""
        batch = self.scheduler.schedule()
        self.events += self.scheduler.take_events()
        if batch is None:
            return {}
        self.events += self.scheduler.commit(batch, self.runner.run(batch))
        return {row.request_id: len(row.token_ids) for row in batch.rows}

    def finish(self) -> None:
        for _ in range(1000):
            if not self.scheduler.num_requests:
                return
            assert self.step()
        raise AssertionError("it does not end")

    def answer(self, name: str) -> list[int]:
        return tokens_of(self.events, name)

    def final(self, name: str) -> TokenEvent:
        (event,) = [e for e in self.events if e.request_id == name and e.finish]
        return event


def commit_by_hand(bench: Bench, batch: Batch, results: Sequence[RowResult]) -> None:
    bench.events += bench.scheduler.commit(batch, results)
