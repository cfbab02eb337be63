"""What stands in for the model and for the slots where the engine's own logic is tested.

`ToyRunner` is a language model of one line: the next token is a hash of everything
before it and of the adapters in use. It keeps what it is fed in numbered cells, as
the real cache does, and reads its context back from the row's blocks. So two
sequences in one block, a token fed twice, a wrong slot or a lost answer change the
tokens that come out, and `answer_of` says what should have. A cell also says which tokens
and adapters it was computed of, so that a row which reads another's block is found out
where that block is not what the row itself would have computed.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import cycle
from typing import Any

from lorry.constraint import Vocabulary
from lorry.core import (
    SHARED,
    Batch,
    Caching,
    Drawn,
    Request,
    Row,
    RowResult,
    SamplingParams,
    TokenEvent,
    TokenLogprob,
)
from lorry.engine.blocks import BlockPool
from lorry.engine.constraints import Constraints
from lorry.engine.grammar import GrammarCompiler
from lorry.engine.invocation import uses_of
from lorry.engine.letters import Mailbox
from lorry.engine.limits import Limits
from lorry.engine.sequence import Sequence as ScheduledSequence
from lorry.engine.speculation import Speculation
from lorry_adapters.errors import AdapterError
from lorry_adapters.registry.record import AdapterRef
from support.patience import PATIENCE

VOCABULARY = 50

Adapters = Sequence[tuple[str, float]]
"""Digests and scales."""

PROMPT, PREFIX, CALLED = "prompt", "prefix", "called"
"""Digests of adapters of other kinds than LoRA; `CALLED` is an activated one."""

VIRTUAL: Mapping[str, int] = {PROMPT: 3, PREFIX: 5}
INVOCATION = (7,)


def ref_of(digest: str, scale: float) -> AdapterRef:
    return AdapterRef(
        f"name-{digest}",
        1,
        digest,
        scale,
        virtual_tokens=VIRTUAL.get(digest, 0),
        is_prefix=digest == PREFIX,
        invocation=INVOCATION if digest == CALLED else (),
    )


def request(
    name: str,
    prompt: Sequence[int] = (1, 2, 3),
    max_new_tokens: int = 4,
    adapters: Adapters = (),
    *,
    eos: Iterable[int] = (),
    prompt_logprobs: int | None = None,
    caller: str = "",
    caching: Caching = SHARED,
    weight: float = 1.0,
) -> Request:
    params = SamplingParams(
        max_new_tokens, eos_token_ids=frozenset(eos), prompt_logprobs=prompt_logprobs
    )
    refs = tuple(ref_of(digest, scale) for digest, scale in adapters)
    uses = uses_of(refs, prompt)
    return Request(
        name,
        tuple(prompt),
        params,
        uses,
        0.0,
        caller=caller,
        caching=caching or Caching(),
        weight=weight,
    )


def _number(*what: object) -> int:
    return int.from_bytes(hashlib.blake2b(repr(what).encode(), digest_size=8).digest(), "big")


Used = Sequence[tuple[str, float, int]]
"""Digests, scales, and from where on they count."""


def next_token(tokens: Sequence[int], adapters: Used) -> int:
    return _number("token", tuple(tokens), tuple(adapters)) % VOCABULARY


def logprob(before: Sequence[int], token: int) -> float:
    return -(_number("logprob", tuple(before), token) % 1000) / 100


def virtual_of(asked: Request) -> list[int]:
    """What the toy model sees in front of the prompt: -1, -2, ..."""
    count = sum(use.virtual_tokens for use in asked.adapters if use.scale != 0.0)
    return [-1 - index for index in range(count)]


def answer_of(asked: Request) -> list[int]:
    """What the toy model says when it runs the request alone."""
    before = [*virtual_of(asked), *asked.prompt_ids]
    adapters = []
    for use in asked.adapters:
        if use.scale != 0.0:
            called = use.digest == CALLED
            start = len(before) - 1 - before[::-1].index(INVOCATION[0]) if called else 0
            adapters.append((use.digest, use.scale, start))
    answer: list[int] = []
    while len(answer) < asked.params.max_new_tokens:
        answer.append(next_token([*before, *answer], adapters))
        if answer[-1] in asked.params.eos_token_ids:
            break
    return answer


def prompt_logprobs_of(asked: Request) -> tuple[TokenLogprob | None, ...]:
    virtual, prompt = virtual_of(asked), asked.prompt_ids
    rest = [TokenLogprob(token, logprob([*virtual, *prompt[: i + 1]], token)) for i, token in
            enumerate(prompt[1:])]  # fmt: skip
    return (None, *rest)


class ToyRunner:
    """Deterministic, and as forgetful as a real cache: it knows only what its cells say."""

    def __init__(self, block_size: int, digest_in: Callable[[int], str | None]) -> None:
        self.block_size = block_size
        self.digest_in = digest_in
        self.cells: dict[int, tuple[int, int]] = {}
        self.histories: dict[int, int] = {}
        """By cell: a hash of all that its keys and values depend on."""
        self.batches: list[list[tuple[str, int, tuple[int, ...]]]] = []
        """(request, start, tokens) of every row of every step."""
        self.failing: Exception | None = None

    def run(self, batch: Batch) -> list[RowResult]:
        self.batches.append([(r.request_id, r.start, tuple(r.token_ids)) for r in batch.rows])
        for cells in (self.cells, self.histories):
            read = [
                (copy.target, at, cells[copy.source * self.block_size + at])
                for copy in batch.copies
                for at in range(copy.count)
            ]
            cells.update({block * self.block_size + at: what for block, at, what in read})
        if self.failing is not None:
            raise self.failing
        # As on a real device: everything is written, then everything is read.
        for row in batch.rows:
            if any(self.digest_in(use.slot) == PREFIX for use in row.adapters):
                assert not row.virtual
                if row.start == VIRTUAL[PREFIX]:
                    for position in range(row.start):
                        self._write(row, position, -1 - position)
            for offset, token in enumerate(row.token_ids):
                position = row.start + offset
                if offset < row.virtual:
                    assert token == 0
                    token = -1 - position
                self._write(row, position, token)
        return [self._result(row) for row in batch.rows]

    def _result(self, row: Row) -> RowResult:
        end = row.start + len(row.token_ids)
        context = [self.cells[self._cell(row, position)] for position in range(end)]
        assert [position for position, _ in context] == list(range(end)), "another's cells"
        tokens = [token for _, token in context]
        history = 0
        for position, token in enumerate(tokens):
            history = self._history(row, position, token, history)
            assert self.histories[self._cell(row, position)] == history, "computed otherwise"
        prompt = tuple(
            TokenLogprob(target, logprob(tokens[: row.start + row.virtual + i + 1], target))
            for i, target in enumerate(row.prompt_targets or ())
        )
        if row.sample is None:
            return RowResult((), prompt)
        if row.sample.mask is not None:
            try:
                row.sample.mask(0)
            except Exception as error:  # noqa: BLE001 - as the executor
                return RowResult((), prompt, error=error)
        last = end - row.drafts
        fed = [*row.sample.prompt, *row.sample.answer, *tokens[last:]]
        assert [token for token in tokens if token >= 0] == fed, "another's tokens"
        adapters = []
        for use in row.adapters:
            digest = self.digest_in(use.slot)
            assert digest is not None, "an empty slot"
            adapters.append((digest, use.scale, use.start))
        drawn: list[Drawn] = []
        for place in range(last, end + 1):
            before = tokens[:place]
            token = next_token(before, adapters)
            drawn.append(Drawn(TokenLogprob(token, logprob(before, token))))
            if place == end or token != tokens[place]:
                break
        return RowResult(tuple(drawn), prompt)

    def _write(self, row: Row, position: int, token: int) -> None:
        before = self.histories[self._cell(row, position - 1)] if position else 0
        cell = self._cell(row, position)
        self.cells[cell] = (position, token)
        self.histories[cell] = self._history(row, position, token, before)

    def _history(self, row: Row, position: int, token: int, before: int) -> int:
        active = [(self.digest_in(u.slot), u.scale) for u in row.adapters if u.start <= position]
        return hash((before, token, *active))

    def _cell(self, row: Row, position: int) -> int:
        return row.blocks[position // self.block_size] * self.block_size + (
            position % self.block_size
        )


class Drafts(Speculation):
    """Some that come true, then one that does not, then anything: `pattern` says how many of each,
    for one row after another."""

    def __init__(
        self, limits: Limits, blocks: BlockPool, pattern: Sequence[tuple[int, int]]
    ) -> None:
        super().__init__(limits, blocks, always=True, fixed=0.0)
        self._pattern = cycle(pattern)

    def drafts(
        self, running: Sequence[ScheduledSequence], rows: Mapping[str, int]
    ) -> dict[str, list[int]]:
        most = self._limits.max_num_batched_tokens - sum(rows[one.request.id] for one in running)
        found: dict[str, list[int]] = {}
        for one in running:
            if one.missing > 1 or not one.answer:
                continue
            right, wrong = next(self._pattern)
            begun = len(one.answer)
            coming = answer_of(one.request)[begun:-1][:right]
            room = self._limits.max_model_len - one.num_tokens - 1
            mine = [*coming, *range(VOCABULARY - wrong, VOCABULARY)][: min(most, room)]
            if mine and self._blocks.grow(one.blocks, one.num_tokens + len(mine)):
                found[one.request.id] = mine
                most -= len(mine)
        return found


class ToyResidency:
    """Slots without threads: a test says what has arrived and what is broken."""

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self.arrived: set[str] = set()
        self.broken: set[str] = set()
        self.pins: dict[str, int] = {}
        self.wanted: list[tuple[str, ...]] = []
        """What was asked for ahead, call by call."""
        self._slots: dict[str, int] = {}

    def digest_in(self, slot: int) -> str | None:
        """Of a slot in use: nothing may run on one that is not pinned."""
        return next((d for d, s in self._slots.items() if s == slot and self.pins.get(d)), None)

    def holds(self, digest: str) -> bool:
        """Whether it lies in a slot, in use or not."""
        return digest in self._slots

    def acquire(self, digests: Sequence[str]) -> tuple[int, ...] | None:
        for digest in digests:
            if digest in self.broken:
                raise AdapterError(f"{digest} is broken")
        missing = {d for d in digests if d not in self._slots}
        if not missing <= self.arrived:
            return None
        idle = [d for d in self._slots if not self.pins.get(d) and d not in digests]
        free = [s for s in range(1, self.num_slots + 1) if s not in self._slots.values()]
        if len(missing) > len(free) + len(idle):
            return None
        for digest in sorted(missing):
            slot = free.pop() if free else self._slots.pop(idle.pop())
            self._slots[digest] = slot
        for digest in digests:
            self.pins[digest] = self.pins.get(digest, 0) + 1
        return tuple(self._slots[digest] for digest in digests)

    def release(self, digests: Sequence[str]) -> None:
        for digest in digests:
            assert self.pins[digest] > 0, "released more often than acquired"
            self.pins[digest] -= 1

    def prefetch(self, digests: Sequence[str]) -> None:
        self.wanted.append(tuple(digests))


class Gated(ToyRunner):
    """A toy runner whose steps a test lets through one by one, once it sets `gate`."""

    gate: threading.Semaphore | None = None

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.entered = threading.Event()

    def run(self, batch: Batch) -> list[RowResult]:
        self.entered.set()
        if self.gate is not None:
            assert self.gate.acquire(timeout=PATIENCE)
        return super().run(batch)


def tokens_of(events: Iterable[TokenEvent], name: str) -> list[int]:
    """Of one request's answer so far."""
    mine = (event for event in events if event.request_id == name)
    return [one.token.token_id for event in mine for one in event.drawn]


def constraints_of(mailbox: Mailbox) -> Constraints:
    """For requests that have no grammar."""

    def compiler_of(vocabulary: Vocabulary) -> GrammarCompiler:
        raise AssertionError("no grammar was sent")

    return Constraints(compiler_of, wake=mailbox.wake)
