"""Chooses the rows of each step. Pure Python: `schedule() -> Batch`, `commit() -> events`.

A step's token budget goes first to the rows that decode (one token each, so that no stream
stalls), then to prompts partly in the cache, then to new requests in the order of `Waiting`.
A new request waits for one of two reasons:

    memory      its prompt does not fit in the free KV blocks. No request overtakes it, or a
                long prompt would starve.
    adapters    its weights are not in a slot yet, or all slots are in use. Others overtake it,
                but only `MAX_OVERTAKEN` times.

If a decode finds no block, the youngest running sequence of the caller with the highest load is
preempted: it gives its blocks up and later computes its prompt and its answer so far again, except
what the prefix cache still has. Its tokens are drawn by position, so the answer does not change.
A new request also preempts, if its caller's load is no higher afterwards than the other's. The
sequence that has run longest is never preempted unless it is alone, so some sequence always ends.

Virtual tokens (prompt tuning, prefix tuning) are positions before the prompt. They count in the
cache, the step and the model's length like any token. Those of a prefix are written to the cache
directly, so that the sequence begins behind them.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as AbstractSequence
from concurrent.futures import Future
from itertools import islice

from lorry.core import (
    Batch,
    Drawn,
    EngineStats,
    Failure,
    FailureCode,
    FinishReason,
    Pooling,
    Request,
    Row,
    RowResult,
    TokenEvent,
    TokenLogprob,
)
from lorry.engine.blocks import BlockPool
from lorry.engine.endings import adapter_failure, grammar_failure, overflowed
from lorry.engine.limits import Limits
from lorry.engine.pace import Pace
from lorry.engine.prefix_cache import PrefixCache
from lorry.engine.restriction import Following
from lorry.engine.sequence import Sequence
from lorry.engine.service import ANSWER
from lorry.engine.sharing import Loads, PromptTokens, giving_way, loads_of, youngest_of_busiest
from lorry.engine.slots import Residency
from lorry.engine.speculation import Speculation
from lorry.engine.taking import take
from lorry.engine.waiting import Waiting
from lorry_adapters.errors import AdapterError

MAX_OVERTAKEN = 64
"""Admissions that may overtake a request which waits for its adapters."""

OUTWEIGHED = 8
"""An admission of a caller that has more running sequences counts as this many: that caller may
hold all the slots."""


class Scheduler:
    """Holds every accepted request from `add` to its final event."""

    def __init__(
        self,
        limits: Limits,
        blocks: BlockPool,
        residency: Residency,
        prefixes: PrefixCache | None = None,
        speculation: Speculation | None = None,
    ) -> None:
        """`speculation`: None for no drafts."""
        self.limits = limits
        self.blocks = blocks
        self.residency = residency
        self.prefixes = prefixes or PrefixCache(blocks, None)
        self.pace = Pace(limits.max_step_time)
        self.preemptions = 0
        self.speculation = speculation
        self._waiting = Waiting()
        self._arrivals = 0
        # In order of admission: the last is the youngest.
        self._running: list[Sequence] = []
        # Requests whose grammar is being compiled. No other request waits for them.
        self._compiling: dict[Sequence, Future[Following]] = {}
        self._by_id: dict[str, Sequence] = {}
        self._events: list[TokenEvent] = []

    # ---- input

    def add(self, request: Request, following: Future[Following] | None = None) -> None:
        """Accept a request. The client has checked that it can fit at all.

        `following` is its constraint, if it has one. The request is not scheduled before it is
        ready."""
        assert request.id not in self._by_id
        sequence = Sequence.of(request, self._arrivals)
        self._arrivals += 1
        self._by_id[request.id] = sequence
        if following is None:
            self._waiting.append(sequence)
        else:
            self._compiling[sequence] = following

    def cancel(self, request_id: str) -> None:
        """End a request now. Unknown and finished ones are ignored: the client may be late."""
        sequence = self._by_id.get(request_id)
        if sequence is not None:
            self._finish(sequence, FinishReason.CANCELLED)

    def fail(self, request_ids: Iterable[str], failure: Failure) -> None:
        for request_id in request_ids:
            sequence = self._by_id.get(request_id)
            if sequence is not None:
                self._finish(sequence, FinishReason.ERROR, failure=failure)

    def fail_waiting(self, digest: str, failure: Failure) -> None:
        """End the requests that wait with an adapter."""
        waiting = [*self._waiting, *self._compiling]
        self.fail([one.request.id for one in waiting if digest in one.digests], failure)

    def fail_all(self, failure: Failure) -> None:
        self.fail(list(self._by_id), failure)

    def take_events(self) -> list[TokenEvent]:
        """Return the final events of requests that ended outside a commit."""
        events, self._events = self._events, []
        return events

    # ---- the step

    def schedule(self) -> Batch | None:
        """Return the next step's batch, or None if nothing can run now."""
        if self._compiling:
            self._take_compiled()
        budget = self.limits.max_num_batched_tokens
        rows: dict[str, int] = {}
        halves: list[Sequence] = []
        for sequence in list(self._running):
            if sequence.missing > 1:
                halves.append(sequence)
            elif sequence in self._running and self._make_room(sequence, sequence.num_tokens):
                rows[sequence.request.id] = 1
                budget -= 1
        if halves or self._waiting:  # Otherwise all rows decode, and there is nothing to share.
            budget = self.pace.limit(budget, [s.num_computed for s in halves], bool(rows))
            tokens = PromptTokens(self._running, halves, self._waiting.callers, budget)
            for sequence in halves:
                if sequence not in self._running:
                    continue
                self.prefixes.take(sequence)  # Another may have computed what comes next.
                count = min(sequence.missing, budget, tokens.for_half(sequence.request.caller))
                if count and self._make_room(sequence, sequence.num_computed + count):
                    rows[sequence.request.id] = count
                    budget -= count
                    tokens.take(sequence.request.caller, count)
            self._admit(rows, budget, tokens)
        # A later row may have preempted an earlier one.
        running = [s for s in self._running if s.request.id in rows]
        drafts = {} if self.speculation is None else self.speculation.drafts(running, rows)
        made = tuple(s.row(rows[s.request.id], drafts.get(s.request.id, ())) for s in running)
        return Batch(made, self.prefixes.copies()) if made else None

    def commit(
        self, batch: Batch, results: AbstractSequence[RowResult], began: float = 0.0
    ) -> list[TokenEvent]:
        """Turn the results of `batch`, begun at `began` (`time.monotonic()`), into events."""
        assert len(batch.rows) == len(results)
        for row, result in zip(batch.rows, results, strict=True):
            sequence = self._by_id.get(row.request_id)
            if sequence is None:
                continue
            sequence.num_computed += len(row.token_ids) - row.drafts
            sequence.started = sequence.started or began
            if row.prompt_targets is not None and sequence.prompt_logprobs is not None:
                sequence.prompt_logprobs.extend(result.prompt)
            overflows = overflowed(result)
            if overflows:
                self.prefixes.withdraw(sequence)
            else:
                self.prefixes.enter(sequence, row.pooling)
            if result.error is not None:
                self._finish(sequence, FinishReason.ERROR, failure=grammar_failure(result.error))
            elif overflows:
                failure = Failure(FailureCode.OVERFLOW)
                self._finish(sequence, FinishReason.ERROR, failure=failure)
            elif row.pooling is not None:
                self._take_vector(sequence, row.pooling, result.vector)
            elif result.drawn:
                self._take_tokens(sequence, row, result.drawn)
        return self.take_events()

    # ---- inspection

    @property
    def num_waiting(self) -> int:
        return len(self._waiting) + len(self._compiling)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_requests(self) -> int:
        """The number of accepted requests without a final event."""
        return len(self._by_id)

    def stats(self) -> EngineStats:
        """The scheduler's part of the snapshot."""

        def names(sequences: Iterable[Sequence]) -> tuple[str, ...]:
            return tuple(sorted({one.name for s in sequences for one in s.request.adapters}))

        return EngineStats(
            running=len(self._running),
            waiting=self.num_waiting,
            kv_blocks_used=self.blocks.num_used,
            kv_blocks_total=self.blocks.num_blocks,
            kv_block_size=self.blocks.block_size,
            kv_blocks_cached=self.blocks.num_entered,
            running_adapters=names(self._running),
            waiting_adapters=names([*self._waiting, *self._compiling]),
            preemptions=self.preemptions,
        )

    # ---- internals

    def _admit(self, rows: dict[str, int], budget: int, tokens: PromptTokens) -> None:
        if not self._waiting:
            return
        running = loads_of(self._running)
        soon = islice(self._waiting.in_order(running), self.limits.prefetch)
        self.residency.prefetch([digest for sequence in soon for digest in sequence.digests])
        passed: list[Sequence] = []
        for sequence in self._waiting.in_order(running):
            caller = sequence.request.caller
            yielding = self._yielding(sequence, running)
            if yielding is None:
                break
            left = budget + sum(rows.get(other.request.id, 0) for other in yielding)
            if left == 0:
                break
            if tokens.for_new(caller, left) == 0:
                continue
            try:
                slots = self.residency.acquire(sequence.digests)
            except AdapterError as error:
                self._finish(sequence, FinishReason.ERROR, failure=adapter_failure(error))
                continue
            if slots is None:
                if sequence.overtaken >= MAX_OVERTAKEN:
                    break
                passed.append(sequence)
                continue
            budget = left
            for other in yielding:
                rows.pop(other.request.id, None)
                running[other.request.caller] -= other.load
                self._preempt(other)
            self._waiting.remove(sequence)
            self._running.append(sequence)
            sequence.uses = sequence.uses_of(slots)
            self.prefixes.take(sequence)
            self._waiting.charge_prompt(sequence)
            count = min(sequence.missing, tokens.for_new(caller, budget))
            tokens.take(caller, count)
            # All blocks of the prompt at once: half a prompt in the cache is useless.
            grown = self.blocks.grow(sequence.blocks, sequence.num_tokens)
            assert grown
            rows[sequence.request.id] = count
            budget -= count
            for waiting in passed:
                outweighed = running[waiting.request.caller] < running[caller]
                waiting.overtaken += OUTWEIGHED if outweighed else 1
            running[caller] += sequence.load
            if any(waiting.overtaken >= MAX_OVERTAKEN for waiting in passed):
                break

    def _yielding(self, sequence: Sequence, running: Loads) -> list[Sequence] | None:
        """Return the sequences to preempt for `sequence`, or None if it has to wait."""
        blocks, found = self.blocks, self.prefixes.found(sequence)
        needed = blocks.blocks_for(sequence.num_tokens) - len(found)
        return giving_way(
            sequence,
            self._running,
            running,
            blocks=needed - (blocks.num_free - blocks.num_idle(found)),
            seats=len(self._running) + 1 - self.limits.max_num_seqs,
            freed=lambda other: blocks.num_freed(other.blocks, frozenset(found)),
        )

    def _make_room(self, sequence: Sequence, num_tokens: int) -> bool:
        """Allocate blocks for `num_tokens` of a running sequence, preempting others if necessary:
        False if it was preempted itself."""
        while not self.blocks.grow(sequence.blocks, num_tokens):
            other = youngest_of_busiest(self._running, loads_of(self._running))
            self._preempt(other)
            if other is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.preemptions += 1
        self._stop_running(sequence)
        sequence.forget_cache()
        self._waiting.put_back(sequence)

    def _stop_running(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self.prefixes.leave(sequence)
        self.blocks.give_back(sequence.blocks)
        sequence.blocks = []
        self.residency.release(sequence.digests)
        sequence.uses = ()

    def _take_compiled(self) -> None:
        """Queue the requests whose constraints are ready."""
        for sequence, following in list(self._compiling.items()):
            if not following.done():
                continue
            error = following.exception()
            if error is None:
                del self._compiling[sequence]
                sequence.following = following.result()
                self._waiting.append(sequence)
            else:
                assert isinstance(error, Exception)
                self._finish(sequence, FinishReason.ERROR, failure=grammar_failure(error))

    def _take_vector(self, sequence: Sequence, pooling: Pooling, vector: tuple[float, ...]) -> None:
        if pooling is Pooling.MEAN:
            sequence.add_to_mean(vector)
            vector = sequence.mean()
        if sequence.num_computed == sequence.num_tokens:
            of, done = sequence.request.id, FinishReason.STOP
            event = TokenEvent(
                of, finish=done, vector=vector, started=sequence.started, cached=sequence.cached
            )
            self._finish(sequence, done, event)

    def _take_tokens(self, sequence: Sequence, row: Row, drawn: tuple[Drawn, ...]) -> None:
        request = sequence.request
        prompt: tuple[TokenLogprob | None, ...] = ()
        if sequence.prompt_logprobs is not None:
            prompt = (None, *sequence.prompt_logprobs)
            sequence.prompt_logprobs = None
        cached = None if sequence.answer else sequence.cached
        taken = take(sequence, drawn, self.limits.max_model_len)
        if row.drafts:
            # Keys and values of the drafts that were right; the last token drawn has none yet.
            sequence.num_computed += max(taken.count - 1, 0)
            self.prefixes.enter(sequence, row.pooling)
            self.blocks.shorten(sequence.blocks, sequence.num_tokens)
        event = TokenEvent(
            request.id,
            drawn[: taken.count],
            prompt,
            taken.finish,
            started=sequence.started,
            cached=cached,
            drafts=row.drafts,
        )
        self._waiting.charge(sequence, ANSWER * taken.count)
        if taken.finish is not None:
            self._finish(sequence, taken.finish, event)
            return
        if taken.count:
            self._events.append(event)
        if taken.failure is not None:
            self._finish(sequence, FinishReason.ERROR, failure=taken.failure)

    def _finish(
        self,
        sequence: Sequence,
        finish: FinishReason,
        event: TokenEvent | None = None,
        *,
        failure: Failure | None = None,
    ) -> None:
        request = sequence.request
        del self._by_id[request.id]
        # First, so that no client waits forever if something below fails.
        self._events.append(event or TokenEvent(request.id, finish=finish, failure=failure))
        if self.speculation is not None and finish is not FinishReason.ERROR:
            self.speculation.ended(sequence)
        if sequence in self._running:
            self._stop_running(sequence)
        elif sequence in self._compiling:
            del self._compiling[sequence]
        else:
            self._waiting.remove(sequence)
