"""The scheduler's promises, over any order of arrivals, cancellations, failures and loads.

The model is `ToyRunner`: what it says depends on everything that it was fed, so that the
answers at the end also hold the cache's blocks, the slots and the preemptions to account.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from unittest.mock import patch

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lorry.core import (
    Batch,
    Failure,
    FailureCode,
    FinishReason,
    Pooling,
    Request,
    TokenEvent,
)
from lorry.engine import scheduler as scheduler_module
from lorry.engine.blocks import BlockPool
from lorry.engine.limits import Limits
from lorry.engine.prefix_cache import PrefixCache
from lorry.engine.scheduler import Scheduler
from support.engine_fakes import (
    CALLED,
    INVOCATION,
    Drafts,
    ToyResidency,
    ToyRunner,
    answer_of,
    prompt_logprobs_of,
    request,
    virtual_of,
)
from support.scheduler_asks import DIGESTS, Ask, asks

MAX_LEN = 29
OVERTAKEN = 3


@dataclass
class Tracked:
    """What the outside knows of one request."""

    request: Request
    arrival: int
    answer: list[int] = field(default_factory=list)
    prompt: tuple[object, ...] = ()
    final: TokenEvent | None = None
    computed: int = 0
    started: bool = False
    must_restart: bool = False
    """It decoded and was left out of a step: it must have been preempted."""

    @property
    def tokens(self) -> list[int]:
        """0 for a virtual one."""
        return [*[0] * len(virtual_of(self.request)), *self.request.prompt_ids, *self.answer]

    @property
    def begin(self) -> int:
        """Where the first row starts: behind a prefix."""
        used = [use for use in self.request.adapters if use.is_prefix and use.scale]
        return sum(use.virtual_tokens for use in used)

    @property
    def caller(self) -> str:
        return self.request.caller

    @property
    def line(self) -> tuple[str, tuple[str, ...]]:
        return self.caller, tuple(use.digest for use in self.request.adapters if use.scale)


def used_by(request: Request) -> set[str]:
    return {use.digest for use in request.adapters}


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(
        block_size=st.integers(1, 4),
        spare_blocks=st.integers(0, 6),
        max_num_seqs=st.integers(1, 6),
        spare_tokens=st.integers(0, 12),
        num_slots=st.integers(2, 3),
        arrived=st.frozensets(st.sampled_from(DIGESTS)),
        callers=st.sampled_from([1, 1, 2, 3]),
        cached=st.booleans(),
        drafts=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), max_size=4),
        first=st.lists(asks, min_size=1, max_size=6),
    )
    def start(
        self,
        block_size: int,
        spare_blocks: int,
        max_num_seqs: int,
        spare_tokens: int,
        num_slots: int,
        arrived: frozenset[str],
        callers: int,
        cached: bool,
        drafts: list[tuple[int, int]],
        first: list[Ask],
    ) -> None:
        self.limits = Limits(max_num_seqs, max_num_seqs + spare_tokens, MAX_LEN, prefetch=4)
        self.blocks = BlockPool(-(-MAX_LEN // block_size) + spare_blocks, block_size)
        self.residency = ToyResidency(num_slots)
        self.residency.arrived |= arrived
        self.runner = ToyRunner(block_size, self.residency.digest_in)
        self.cached = cached
        prefixes = PrefixCache(self.blocks, self.path_of if cached else None)
        self.scheduler = Scheduler(
            self.limits,
            self.blocks,
            self.residency,
            prefixes,
            Drafts(self.limits, self.blocks, drafts) if drafts else None,
        )
        self.oldest: str | None = None
        self.callers = callers
        self.add(first)

    def __init__(self) -> None:
        super().__init__()
        self.all: dict[str, Tracked] = {}
        self.patch = patch.object(scheduler_module, "MAX_OVERTAKEN", OVERTAKEN)
        self.patch.start()

    def path_of(self, digests: Sequence[str], _: Pooling | None) -> str | None:
        return "toy" if all(map(self.residency.holds, digests)) else None

    # ---- what may happen

    @rule(asked=st.lists(asks, min_size=1, max_size=6))
    def more(self, asked: list[Ask]) -> None:
        self.add(asked)

    def add(self, asked: list[Ask]) -> None:
        for ask in asked:
            name = f"r{len(self.all)}"
            called = [*INVOCATION, *ask.prompt] if CALLED in ask.adapters else ask.prompt
            made = request(
                name,
                called,
                ask.max_new_tokens,
                [(digest, ask.scale) for digest in ask.adapters],
                eos=ask.eos,
                prompt_logprobs=ask.prompt_logprobs,
                caller=f"caller {ask.caller % self.callers}",
                caching=ask.caching,
            )
            one = Tracked(made, len(self.all))
            one.computed = one.begin
            self.all[name] = one
            self.scheduler.add(made)

    @rule(arriving=st.frozensets(st.sampled_from(DIGESTS)))
    def load(self, arriving: frozenset[str]) -> None:
        self.residency.arrived |= arriving

    @rule(digest=st.sampled_from(DIGESTS))
    def remove(self, digest: str) -> None:
        """The registry does it when nothing runs with it any more."""
        if not any(digest in used_by(self.all[name].request) for name in self.live()):
            self.scheduler.prefixes.forget(digest)

    @rule(digest=st.sampled_from((None, None, *DIGESTS)))
    def break_or_mend(self, digest: str | None) -> None:
        self.residency.broken = {digest} if digest else set()

    @precondition(lambda self: self.all)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.all)))
        late = name not in self.live()
        self.scheduler.cancel(name)
        events = self.scheduler.take_events()
        if late:
            assert events == []
        else:
            (event,) = events
            assert event.finish is FinishReason.CANCELLED
        self.take(events)

    @precondition(lambda self: self.all)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        names = data.draw(st.lists(st.sampled_from(sorted(self.all)), unique=True, max_size=3))
        hit = [name for name in names if name in self.live()]
        failure = Failure(FailureCode.STEP_FAILED, "on purpose")
        self.scheduler.fail(names, failure)
        events = self.scheduler.take_events()
        assert [(e.request_id, e.finish, e.failure) for e in events] == [
            (name, FinishReason.ERROR, failure) for name in hit
        ]
        self.take(events)

    @rule(count=st.integers(1, 4))
    def steps(self, count: int) -> None:
        for _ in range(count):
            self.step()

    @rule(count=st.integers(1, 12))
    def more_steps(self, count: int) -> None:
        self.steps(count)

    @precondition(lambda self: self.live())
    @rule(data=st.data())
    def step_with_a_cancellation_in_it(self, data: st.DataObject) -> None:
        """The client leaves after the batch was made and before its tokens are taken."""
        self.step(cancel=data.draw(st.sampled_from(self.live())))

    # ---- what must hold

    def live(self) -> list[str]:
        return [name for name, one in self.all.items() if one.final is None]

    def step(self, cancel: str | None = None) -> bool:
        decoding = {
            name
            for name in self.live()
            if (one := self.all[name]).started
            and not one.must_restart
            and one.computed == len(one.tokens) - 1
        }
        batch = self.scheduler.schedule()
        self.take(self.scheduler.take_events())
        rows = () if batch is None else batch.rows
        for name in decoding - {row.request_id for row in rows}:
            self.all[name].must_restart = True
            assert name != self.oldest, "the oldest made room for a younger"
        if batch is None:
            return False
        self.check_batch(batch)
        self.oldest = rows[0].request_id if len(rows) == self.scheduler.num_running else None
        results = self.runner.run(batch)
        if cancel is not None:
            self.scheduler.cancel(cancel)
        for row in batch.rows:
            self.all[row.request_id].computed = row.start + len(row.token_ids) - row.drafts
        self.take(self.scheduler.commit(batch, results))
        return True

    def check_batch(self, batch: Batch) -> None:
        assert 0 < batch.num_tokens <= self.limits.max_num_batched_tokens
        assert len(batch.rows) <= self.scheduler.num_running <= self.limits.max_num_seqs
        names = [row.request_id for row in batch.rows]
        assert len(set(names)) == len(names)
        size, sequences = self.blocks.block_size, self.scheduler._running
        taken = Counter(block for sequence in sequences for block in sequence.blocks)
        assert self.cached or set(taken.values()) <= {1}
        for row in batch.rows:
            one = self.all[row.request_id]
            assert one.final is None
            count = len(row.token_ids) - row.drafts
            assert count >= 1
            assert not one.must_restart or row.start == one.begin or self.cached
            one.must_restart = False
            # Each token once and in order, or all again if preempted, but what is found.
            block, half = divmod(row.start, size)
            copied = {(row.blocks[block], half)} <= {(c.target, c.count) for c in batch.copies}
            found = self.cached and (copied or half == 0) and row.start > one.begin
            assert row.start in (one.computed, one.begin) or found
            end = row.start + len(row.token_ids)
            written = row.blocks[row.start // size : -(-end // size)]
            assert all(taken[block] == 1 for block in written), "it writes where others read"
            assert list(row.token_ids[:count]) == one.tokens[row.start : row.start + count]
            virtual = len(virtual_of(one.request))
            assert row.virtual == max(0, min(virtual - row.start, count))
            assert len(row.blocks) * self.blocks.block_size >= end
            assert (row.sample is not None) == (row.start + count == len(one.tokens))
            scales = [use.scale for use in one.request.adapters if use.scale]
            assert [use.scale for use in row.adapters] == scales
        first_time = [self.all[name] for name in names if not self.all[name].started]
        for one in first_time:
            one.started = True
            for other in self.all.values():
                waits = other.final is None and (not other.started or other.must_restart)
                assert not (waits and other.line == one.line and other.arrival < one.arrival)
        for sequence in self.scheduler._waiting:
            assert sequence.overtaken < OVERTAKEN + scheduler_module.OUTWEIGHED

    def take(self, events: list[TokenEvent]) -> None:
        for event in events:
            one = self.all[event.request_id]
            assert one.final is None, "news after the final event"
            for drawn in event.drawn:
                assert event.prompt == () or one.answer == []
                one.answer.append(drawn.token.token_id)
                one.prompt += event.prompt
            # All but the last of a step's tokens were drafts, and so are in the cache.
            one.computed += max(len(event.drawn) - 1, 0)
            if event.finish is not None:
                one.final = event
            else:
                assert event.drawn

    @invariant()
    def numbers_add_up(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        stats = self.scheduler.stats()
        assert stats.running + stats.waiting == len(self.live())
        assert stats.kv_blocks_used == self.blocks.num_used
        assert self.scheduler.num_requests == len(self.live())

    def teardown(self) -> None:
        try:
            if hasattr(self, "scheduler"):
                self.finish_everything()
        finally:
            self.patch.stop()

    def finish_everything(self) -> None:
        self.residency.arrived.update(DIGESTS)
        self.residency.broken.clear()
        # Each running request moves on in every step, and the oldest is never preempted:
        # together they cannot need more steps than this.
        bound = sum(len(self.all[name].request.prompt_ids) + MAX_LEN for name in self.live()) + 1
        while self.live():
            bound -= 1
            assert bound >= 0, "somebody starves"
            assert self.step(), "work, and nothing runs"
        for one in self.all.values():
            assert one.final is not None
            expected = answer_of(one.request)
            if one.final.finish in (FinishReason.STOP, FinishReason.LENGTH):
                assert one.answer == expected
                stopped = one.answer[-1] in one.request.params.eos_token_ids
                assert (one.final.finish is FinishReason.STOP) == stopped
            else:
                assert one.answer == expected[: len(one.answer)]
            if one.final.finish is FinishReason.ERROR:
                assert one.final.failure is not None
            if one.answer:
                asked = one.request.params.prompt_logprobs
                assert one.prompt == (() if asked is None else prompt_logprobs_of(one.request))
        assert self.blocks.num_used == 0
        assert not any(self.residency.pins.values())
        assert self.scheduler.take_events() == []
        assert self.scheduler.schedule() is None
        assert self.scheduler.num_requests == 0


SchedulerMachine.TestCase.settings = settings(max_examples=120, stateful_step_count=40)
TestScheduler = SchedulerMachine.TestCase
