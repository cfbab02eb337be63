"""Who runs in this step. Pure Python: `schedule() -> Batch`, `commit() -> events`.

A step's token budget goes first to the rows that decode (one token each, so that
nobody's stream stalls), then to prompts half in the cache, then to new requests, of
which `Waiting` says who is next. Two things make a new request wait:

memory    its prompt does not fit in the free KV blocks. Nobody overtakes it, or a
          long prompt would starve.
adapters  its weights are on their way to a slot, or all slots are in use. Others
          overtake it, but only `MAX_OVERTAKEN` times.

When a decode finds no block, the youngest running sequence of the caller with the most gives its
blocks up and starts over later from its prompt and its answer so far; its tokens are drawn by
position, so the answer does not change. The same makes room for a new request whose caller has
fewer running by two at least, so that nothing goes back and forth. The sequence that has run
longest never gives way, unless it is alone: something always ends.

Virtual tokens (prompt tuning, prefix tuning) are positions in front of the prompt:
they take room in the cache, the step and the model's length like any token. Those of
a prefix are put in the cache ready made, so that the sequence begins behind them.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from lorry.core import (
    Batch,
    EngineStats,
    FinishReason,
    Pooling,
    Request,
    Row,
    RowResult,
    Sample,
    TokenEvent,
    TokenLogprob,
)
from lorry.engine.blocks import BlockPool
from lorry.engine.endings import grammar_error, overflow, overflowed
from lorry.engine.sequence import Sequence
from lorry.engine.sharing import Counts, PromptTokens, counted, giving_way, youngest_of_most
from lorry.engine.waiting import Waiting
from lorry_adapters.errors import AdapterError

MAX_OVERTAKEN = 64
"""Admissions that may pass a request which waits for its adapters."""

OUTWEIGHED = 8
"""As many passes counts one by a caller that has more running: the slots may be all theirs."""


class Residency(Protocol):
    """Puts adapters in slots; the scheduler's view of it."""

    def acquire(self, digests: AbstractSequence[str]) -> tuple[int, ...] | None:
        """Pin all of `digests` in slots, or none of them and say None: not yet.

        Raises:
            AdapterError: one of them cannot be loaded, now or ever.
        """
        ...

    def release(self, digests: AbstractSequence[str]) -> None: ...

    def prefetch(self, digests: AbstractSequence[str]) -> None:
        """These will be wanted, the most urgent first: begin to bring them nearer. What
        was asked for earlier and is not among them may be let go."""
        ...


@dataclass(frozen=True, slots=True)
class Limits:
    max_num_seqs: int
    """Sequences in the cache at once."""
    max_num_batched_tokens: int
    """Tokens in one step."""
    max_model_len: int
    """Prompt and answer of one request, tokens."""
    prefetch: int = 8
    """Waiting requests whose adapters are fetched ahead."""

    def __post_init__(self) -> None:
        # Or the rows at the end of a full batch would never decode.
        assert self.max_num_batched_tokens >= self.max_num_seqs


class Scheduler:
    """Holds every accepted request from `add` to its final event."""

    def __init__(self, limits: Limits, blocks: BlockPool, residency: Residency) -> None:
        self.limits = limits
        self.blocks = blocks
        self.residency = residency
        self.preemptions = 0
        self._waiting = Waiting()
        self._arrivals = 0
        # In order of admission: the last is the youngest.
        self._running: list[Sequence] = []
        self._by_id: dict[str, Sequence] = {}
        self._events: list[TokenEvent] = []

    # ---- what comes in

    def add(self, request: Request) -> None:
        """Accept a request. The client has checked that it can fit at all."""
        assert request.id not in self._by_id
        sequence = Sequence.of(request, self._arrivals)
        self._arrivals += 1
        self._by_id[request.id] = sequence
        self._waiting.append(sequence)

    def cancel(self, request_id: str) -> None:
        """End a request now; unknown and finished ones are no mistake: the client may be late."""
        sequence = self._by_id.get(request_id)
        if sequence is not None:
            self._finish(sequence, FinishReason.CANCELLED)

    def fail(self, request_ids: Iterable[str], error: Exception) -> None:
        for request_id in request_ids:
            sequence = self._by_id.get(request_id)
            if sequence is not None:
                self._finish(sequence, FinishReason.ERROR, error=error)

    def fail_waiting(self, digest: str, error: Exception) -> None:
        """End what waits with an adapter."""
        self.fail([one.request.id for one in self._waiting if digest in one.digests], error)

    def fail_all(self, error: Exception) -> None:
        self.fail(list(self._by_id), error)

    def take_events(self) -> list[TokenEvent]:
        """Final events of requests that ended outside a commit."""
        events, self._events = self._events, []
        return events

    # ---- the step

    def schedule(self) -> Batch | None:
        """The next step's batch; None when nothing can run now."""
        budget = self.limits.max_num_batched_tokens
        rows: dict[str, int] = {}
        halves: list[Sequence] = []
        for sequence in list(self._running):
            if sequence.missing > 1:
                halves.append(sequence)
            elif sequence in self._running and self._make_room(sequence, sequence.num_tokens):
                rows[sequence.request.id] = 1
                budget -= 1
        if halves or self._waiting:
            # Not in a step where all decode: most do, and there is nothing to share out.
            tokens = PromptTokens(self._running, halves, self._waiting.callers, budget)
            for sequence in halves:
                count = min(sequence.missing, budget, tokens.for_half(sequence.request.caller))
                if count == 0 or sequence not in self._running:
                    continue
                if self._make_room(sequence, sequence.num_computed + count):
                    rows[sequence.request.id] = count
                    budget -= count
                    tokens.take(sequence.request.caller, count)
            self._admit(rows, budget, tokens)
        # A later row may have preempted an earlier one.
        running = [s for s in self._running if s.request.id in rows]
        made = [self._row(s, rows[s.request.id]) for s in running]
        batch = Batch(tuple(row for row in made if row is not None))
        return batch if batch.rows else None

    def commit(
        self, batch: Batch, results: AbstractSequence[RowResult], began: float = 0.0
    ) -> list[TokenEvent]:
        """What the runner made of `batch` from `began` (`time.monotonic()`) on, as events."""
        assert len(batch.rows) == len(results)
        for row, result in zip(batch.rows, results, strict=True):
            sequence = self._by_id.get(row.request_id)
            if sequence is None:
                continue
            sequence.num_computed += len(row.token_ids)
            sequence.started = sequence.started or began
            if row.prompt_targets is not None and sequence.prompt_logprobs is not None:
                sequence.prompt_logprobs.extend(result.prompt)
            if overflowed(result):
                self._finish(sequence, FinishReason.ERROR, error=overflow(sequence))
            elif row.pooling is not None:
                self._take_vector(sequence, row.pooling, result.vector)
            elif result.token is not None:
                self._take_token(sequence, result)
        return self.take_events()

    # ---- what it looks like from outside

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_requests(self) -> int:
        """Accepted, and without a final event yet."""
        return len(self._by_id)

    def stats(self) -> EngineStats:
        """The part of the snapshot that the scheduler knows."""

        def names(sequences: Iterable[Sequence]) -> tuple[str, ...]:
            return tuple(sorted({ref.name for s in sequences for ref in s.request.lease.refs}))

        return EngineStats(
            running=len(self._running),
            waiting=len(self._waiting),
            kv_blocks_used=self.blocks.num_used,
            kv_blocks_total=self.blocks.num_blocks,
            kv_block_size=self.blocks.block_size,
            running_adapters=names(self._running),
            waiting_adapters=names(self._waiting),
            preemptions=self.preemptions,
        )

    # ---- inside

    def _admit(self, rows: dict[str, int], budget: int, tokens: PromptTokens) -> None:
        if not self._waiting:
            return
        running = counted(self._running)
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
                self._finish(sequence, FinishReason.ERROR, error=error)
                continue
            if slots is None:
                if sequence.overtaken >= MAX_OVERTAKEN:
                    break
                passed.append(sequence)
                continue
            budget = left
            for other in yielding:
                rows.pop(other.request.id, None)
                running[other.request.caller] -= 1
                self._preempt(other)
            self._waiting.remove(sequence)
            self._running.append(sequence)
            sequence.uses = sequence.uses_of(slots)
            count = min(sequence.missing, tokens.for_new(caller, budget))
            tokens.take(caller, count)
            # The whole prompt's blocks at once: half a prompt in the cache helps nobody.
            grown = self.blocks.grow(sequence.blocks, sequence.num_tokens)
            assert grown
            rows[sequence.request.id] = count
            budget -= count
            for waiting in passed:
                outweighed = running[waiting.request.caller] < running[caller]
                waiting.overtaken += OUTWEIGHED if outweighed else 1
            running[caller] += 1
            if any(waiting.overtaken >= MAX_OVERTAKEN for waiting in passed):
                break

    def _yielding(self, sequence: Sequence, running: Counts) -> list[Sequence] | None:
        """Who must give way for `sequence` to be admitted; None where it has to wait."""
        needed = self.blocks.blocks_for(sequence.num_tokens)
        return giving_way(
            sequence,
            self._running,
            running,
            blocks=needed - self.blocks.num_free,
            seats=len(self._running) + 1 - self.limits.max_num_seqs,
        )

    def _make_room(self, sequence: Sequence, num_tokens: int) -> bool:
        """Blocks for `num_tokens` of a running sequence, if need be those of others.

        False where it was its own turn to give way."""
        while not self.blocks.grow(sequence.blocks, num_tokens):
            other = youngest_of_most(self._running, counted(self._running))
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
        self.blocks.give_back(sequence.blocks)
        sequence.blocks = []
        self.residency.release(sequence.digests)
        sequence.uses = ()

    def _row(self, sequence: Sequence, count: int) -> Row | None:
        """None where the request has just ended: its grammar failed."""
        request, start = sequence.request, sequence.num_computed
        prompt = request.prompt_ids
        sample: Sample | None = None
        ends = start + count == sequence.num_tokens
        pooling = request.pooling if ends or request.pooling is Pooling.MEAN else None
        if ends and request.pooling is None:
            allowed: AbstractSequence[int] | None = None
            if request.constraint is not None:
                try:
                    allowed = request.constraint.allowed()
                except Exception as error:  # noqa: BLE001 - a grammar is its user's: only they end
                    self._finish(sequence, FinishReason.ERROR, error=grammar_error(error))
                    return None
            sample = Sample(request.params, prompt, sequence.answer, allowed)
        virtual = min(max(sequence.virtual - start, 0), count)
        targets: AbstractSequence[int] | None = None
        first = start + virtual - sequence.virtual
        if sequence.prompt_logprobs is not None and first < len(prompt):
            targets = prompt[first + 1 : first + count - virtual + 1]
        return Row(
            request_id=request.id,
            token_ids=sequence.next_tokens(count),
            start=start,
            blocks=sequence.blocks,
            adapters=sequence.uses,
            sample=sample,
            prompt_targets=targets,
            prompt_top=0 if targets is None else request.params.prompt_logprobs or 0,
            virtual=virtual,
            pooling=pooling,
        )

    def _take_vector(self, sequence: Sequence, pooling: Pooling, vector: tuple[float, ...]) -> None:
        if pooling is Pooling.MEAN:
            sequence.add_to_mean(vector)
            vector = sequence.mean()
        if sequence.num_computed == sequence.num_tokens:
            of, done = sequence.request.id, FinishReason.STOP
            event = TokenEvent(of, finish=done, vector=vector, started=sequence.started)
            self._finish(sequence, done, event)

    def _take_token(self, sequence: Sequence, result: RowResult) -> None:
        assert result.token is not None
        request, token = sequence.request, result.token
        sequence.answer.append(token.token_id)
        prompt: tuple[TokenLogprob | None, ...] = ()
        if sequence.prompt_logprobs is not None:
            prompt = (None, *sequence.prompt_logprobs)
            sequence.prompt_logprobs = None
        finish: FinishReason | None = None
        ends = token.token_id in request.params.eos_token_ids
        if request.constraint is not None and not ends:
            try:
                request.constraint.advance(token.token_id)
                ends = request.constraint.finished()
            except Exception as error:  # noqa: BLE001 - as in `_row`
                self._finish(sequence, FinishReason.ERROR, error=grammar_error(error))
                return
        if ends:
            finish = FinishReason.STOP
        elif (
            len(sequence.answer) >= request.params.max_new_tokens
            or sequence.num_tokens >= self.limits.max_model_len
        ):
            finish = FinishReason.LENGTH
        event = TokenEvent(request.id, token, result.top, prompt, finish, started=sequence.started)
        if finish is None:
            self._events.append(event)
        else:
            self._finish(sequence, finish, event)

    def _finish(
        self,
        sequence: Sequence,
        finish: FinishReason,
        event: TokenEvent | None = None,
        *,
        error: Exception | None = None,
    ) -> None:
        request = sequence.request
        del self._by_id[request.id]
        # First of all: whatever may go wrong below, nobody waits for ever.
        self._events.append(event or TokenEvent(request.id, finish=finish, error=error))
        if sequence in self._running:
            self._stop_running(sequence)
        else:
            self._waiting.remove(sequence)
        request.lease.release()
