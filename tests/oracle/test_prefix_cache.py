"""The prefix cache against an engine without one, on tiny models.

On the compiled step every token and every log-probability is the same, bit for bit, whatever was
found, preempted, cancelled, evicted or removed before. Elsewhere they are the same within rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorry.core import (
    AdapterUse,
    Batch,
    FinishReason,
    Pooling,
    Request,
    RowResult,
    SamplingParams,
    TokenEvent,
)
from lorry.engine import block_keys
from lorry.engine.blocks import BlockPool
from lorry.engine.invocation import uses_of
from lorry.engine.limits import Limits
from lorry.engine.prefix_cache import PrefixCache
from lorry.engine.scheduler import Scheduler
from support.compiled import require_compiled_step
from support.executor_driver import BLOCK_SIZE
from support.kind import invocation_tokens
from support.peft_kinds import KINDS
from support.peft_made import load_base, make
from support.prompts import random_prompt
from support.stepped import MAX_LEN, NUM_BLOCKS, House

SYSTEMS = [random_prompt(35, 1), random_prompt(24, 2), random_prompt(35, 1)[:21]]
"""Beginnings of prompts. The last is a part of the first."""
TAILS = [[7], random_prompt(3, 3), random_prompt(13, 4), random_prompt(30, 5)]

Chosen = tuple[tuple[str, float], ...]
"""Names and scales."""

SELECTIONS: list[Chosen] = [
    (),
    (("lora", 1.0),),
    (("lora", 0.5),),
    (("replaced", 1.0),),
    (("lora", 1.0), ("replaced", 0.5)),
    (("lora", 0.5), ("dora", 1.0)),
    (("alora", 1.0),),
    (("alora", 0.5),),
    (("lora", 1.0), ("alora", 1.0)),
    (("prompt tuning", 1.0),),
    (("prefix tuning", 1.0),),
    (("prompt tuning", 1.0), ("lora", 0.5)),
    (("ln_tuning", 1.0),),
]
OFF_STEP = "ln_tuning"
"""It runs beside the compiled step, in company with others by rounding only."""


@dataclass(frozen=True)
class Ask:
    system: int
    tail: int
    chosen: int
    count: int
    sampled: bool = False
    pooling: Pooling | None = None
    logprobs: bool = False

    @property
    def ids(self) -> tuple[int, ...]:
        called = invocation_tokens() if any(n == "alora" for n, _ in self.adapters) else ()
        return (*SYSTEMS[self.system], *called, *TAILS[self.tail])

    @property
    def adapters(self) -> Chosen:
        return SELECTIONS[self.chosen]


@dataclass
class Answer:
    numbers: list[tuple[int, float]] = field(default_factory=list)
    """Tokens and their log-probabilities."""
    prompt: tuple[object, ...] = ()
    vector: tuple[float, ...] = ()
    finish: FinishReason | None = None
    cached: int | None = None


class Engine:
    """A scheduler over the real executor of a tiny model."""

    def __init__(
        self, house: House, folders: Callable[[str], Path], *, cached: bool, **limits: int
    ) -> None:
        """`limits`: seqs, budget, blocks."""
        self.house, self._folders = house, folders
        blocks = BlockPool(limits.get("blocks", NUM_BLOCKS), BLOCK_SIZE)
        self.scheduler = Scheduler(
            Limits((limits.get("seqs") or 4), (limits.get("budget") or 512), MAX_LEN),
            blocks,
            house.slots,
            PrefixCache(blocks, house.executor.path_of if cached else None),
        )
        self.answers: dict[str, Answer] = {}
        self.asks: dict[str, Ask] = {}
        self.copies = 0

    def add(self, ask: Ask) -> str:
        name = str(len(self.asks))
        refs = [replace(self.house.ref(self._folders(n), s), name="same") for n, s in ask.adapters]
        uses: tuple[AdapterUse, ...] = uses_of(refs, ask.ids)
        params = SamplingParams(
            0 if ask.pooling else ask.count,
            temperature=1.0 if ask.sampled else 0.0,
            seed=5,
            prompt_logprobs=0 if ask.logprobs else None,
        )
        self.asks[name], self.answers[name] = ask, Answer()
        self.scheduler.add(Request(name, ask.ids, params, uses, 0.0, pooling=ask.pooling))
        return name

    def step(self) -> None:
        batch = self.scheduler.schedule()
        self._take(self.scheduler.take_events())
        if batch is not None:
            self.copies += len(batch.copies)
            self._take(self.scheduler.commit(batch, self.run(batch)))

    def run(self, batch: Batch) -> list[RowResult]:
        return self.house.executor.run(batch)

    def finish(self) -> None:
        while self.scheduler.num_requests:
            self.step()
        assert self.scheduler.blocks.num_used == 0

    def cancel(self, name: str) -> None:
        self.scheduler.cancel(name)
        self._take(self.scheduler.take_events())

    def remove(self, name: str) -> None:
        """An adapter that nothing runs with."""
        live = [ask for at, ask in self.asks.items() if self.answers[at].finish is None]
        if not any(name in dict(ask.adapters) for ask in live):
            self.scheduler.prefixes.forget(str(self._folders(name)))

    def alone(self, ask: Ask) -> Answer:
        name = self.add(ask)
        self.finish()
        return self.answers[name]

    def _take(self, events: Sequence[TokenEvent]) -> None:
        for event in events:
            answer = self.answers[event.request_id]
            assert event.failure is None, event.failure
            answer.numbers += [(one.token.token_id, one.token.logprob) for one in event.drawn]
            answer.prompt += event.prompt
            answer.vector, answer.finish = event.vector, event.finish
            answer.cached = event.cached if answer.cached is None else answer.cached


@dataclass
class Pair:
    """The same model twice: one engine after another has its cells, the other answers alone."""

    cached: House
    plain: House
    folders: Callable[[str], Path]
    expected: Callable[[Ask], Answer]

    def engine(self, **limits: int) -> Engine:
        return Engine(self.cached, self.folders, cached=True, **limits)


@pytest.fixture(scope="module")
def pair_of(
    tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Pair]]:
    houses: list[House] = []

    @cache
    def of(family: str, quantization: str, kernels: str, kv_cache: str = "auto") -> Pair:
        if kernels == "compiled":
            require_compiled_step()
        model = tiny_model(family)
        root, base = tmp_path_factory.mktemp(family), load_base(model)

        @cache
        def folder(name: str) -> Path:
            kind, seed = ("lora", 2) if name == "replaced" else (name, 1)
            path = root / name.replace(" ", "-")
            return make(KINDS[kind], family, base, path, seed=seed).folder

        options = {"quantization": quantization, "kernels": kernels, "kv_cache": kv_cache}
        cached, plain = (House(model, **options) for _ in range(2))
        houses.extend((cached, plain))

        @cache
        def expected(ask: Ask) -> Answer:
            return Engine(plain, folder, cached=False).alone(ask)

        return Pair(cached, plain, folder, expected)

    yield of
    for house in houses:
        house.executor.paths.close()


asks = st.builds(
    Ask,
    system=st.integers(0, len(SYSTEMS) - 1),
    tail=st.integers(0, len(TAILS) - 1),
    chosen=st.integers(0, len(SELECTIONS) - 1),
    count=st.sampled_from([1, 6, 20]),
    sampled=st.booleans(),
    logprobs=st.sampled_from([False] * 5 + [True]),
    pooling=st.sampled_from([None] * 8 + [Pooling.LAST, Pooling.MEAN]),
)
moves = st.lists(
    st.one_of(
        asks,
        st.tuples(st.just("again"), st.integers(0, 30)),
        st.tuples(st.just("steps"), st.sampled_from([1, 2, 5, 30])),
        st.tuples(st.just("cancel"), st.integers(0, 30)),
        st.tuples(st.just("remove"), st.sampled_from(["lora", "replaced", "alora", OFF_STEP])),
    ),
    min_size=6,
    max_size=24,
)
places = st.fixed_dictionaries(
    {
        "seqs": st.integers(1, 5),
        "budget": st.sampled_from([8, 21, 64, 512]),
        # The longest sequence needs 13.
        "blocks": st.sampled_from([14, 20, 40, NUM_BLOCKS]),
    }
)


def drive(pair: Pair, moves: Sequence[Any], limits: dict[str, int]) -> Engine:
    limits = {**limits, "budget": max(limits["budget"], limits["seqs"])}
    engine = pair.engine(**limits)
    for move in moves:
        match move:
            case Ask():
                engine.add(move)
            case ("again", index) if engine.asks:
                engine.add(engine.asks[str(index % len(engine.asks))])
            case ("steps", count):
                for _ in range(count):
                    engine.step()
            case ("cancel", index) if engine.asks:
                engine.cancel(str(index % len(engine.asks)))
            case ("remove", name):
                engine.remove(name)
    engine.finish()
    return engine


@pytest.mark.parametrize("kv_cache", ["auto", "int8"])
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_the_same_bits_as_without_on_the_compiled_step(
    family: str, kv_cache: str, pair_of: Callable[..., Pair]
) -> None:
    pair = pair_of(family, "int8", "compiled", kv_cache)
    hits: list[int] = []
    copies: list[int] = []

    @settings(max_examples=40, suppress_health_check=list(HealthCheck), deadline=None)
    @given(moves=moves, limits=places)
    def check(moves: Sequence[Any], limits: dict[str, int]) -> None:
        engine = drive(pair, moves, limits)
        copies.append(engine.copies)
        for name, answer in engine.answers.items():
            ask = engine.asks[name]
            hits.append(answer.cached or 0)
            expected = pair.expected(ask)
            if ask.pooling is not None or OFF_STEP in dict(ask.adapters):
                continue
            count = len(answer.numbers)
            assert answer.numbers == expected.numbers[:count]
            assert answer.finish is FinishReason.CANCELLED or count == ask.count
            assert answer.prompt in ((), expected.prompt)

    check()
    assert sum(hit > 0 for hit in hits) > 10 and sum(copies) > 10, "it was hardly tried"


@pytest.mark.parametrize(
    ("family", "quantization"), [("mistral", "none"), ("gemma2", "none"), ("bloom", "none")]
)
def test_the_same_within_rounding_elsewhere(
    family: str, quantization: str, pair_of: Callable[..., Pair]
) -> None:
    """Packed, with a window and without, and padded."""
    pair = pair_of(family, quantization, "torch")

    @settings(max_examples=12, suppress_health_check=list(HealthCheck), deadline=None)
    @given(moves=moves, limits=places)
    def check(moves: Sequence[Any], limits: dict[str, int]) -> None:
        engine = drive(pair, moves, limits)
        for name, answer in engine.answers.items():
            expected = pair.expected(engine.asks[name])
            wanted = expected.numbers[: len(answer.numbers)]
            assert [token for token, _ in answer.numbers] == [token for token, _ in wanted]
            mine = [logprob for _, logprob in answer.numbers]
            assert mine == pytest.approx([logprob for _, logprob in wanted], abs=1e-4)
            if answer.vector:
                assert answer.vector == pytest.approx(expected.vector, abs=1e-3, rel=1e-3)

    check()


# ---- the key, part by part


PLAIN, SCALED, OTHER, SUM, CALLED = (SELECTIONS.index(one) for one in (
    (("lora", 1.0),), (("lora", 0.5),), (("replaced", 1.0),),
    (("lora", 1.0), ("replaced", 0.5)), (("alora", 1.0),),
))  # fmt: skip

PARTS: dict[str, tuple[Ask, Ask]] = {
    "digest": (Ask(0, 1, PLAIN, 6), Ask(0, 1, OTHER, 6)),
    "scale": (Ask(0, 1, PLAIN, 6), Ask(0, 1, SCALED, 6)),
    "the other of the sum": (Ask(0, 1, PLAIN, 6), Ask(0, 1, SUM, 6)),
    "adapter or base": (Ask(0, 1, PLAIN, 6), Ask(0, 1, 0, 6)),
    "tokens": (Ask(0, 1, 0, 6), Ask(1, 3, 0, 6)),
    "the call": (Ask(0, 3, CALLED, 6), Ask(0, 3, CALLED, 6)),
    # With an adapter, which the paths round otherwise; their bases mostly have the same codes.
    "path": (Ask(0, 1, PLAIN, 0, pooling=Pooling.LAST), Ask(0, 1, PLAIN, 6)),
}


def broken(part: str, patch: pytest.MonkeyPatch) -> None:
    changes_in, next_key = block_keys.changes_in, block_keys.next_key

    def changes(keep: Callable[[block_keys.Change], Any]) -> Callable[..., Any]:
        return lambda *given: tuple(map(keep, changes_in(*given)))

    makers: dict[str, tuple[str, Callable[..., Any]]] = {
        "digest": ("changes_in", changes(lambda one: one[1:])),
        "scale": ("changes_in", changes(lambda one: (one[0], one[2]))),
        "the other of the sum": ("changes_in", lambda *given: changes_in(*given)[:1]),
        "adapter or base": ("changes_in", lambda *given: ()),
        "tokens": ("next_key", lambda key, ids, more: next_key(key, [0] * len(ids), more)),
        # As if an activated adapter were active from the start, like any other.
        "the call": ("changes_in", lambda used, begin, end: tuple((a.digest, 0) for a in used)),
        "path": ("first_key", lambda _, *more, of=block_keys.first_key: of("", *more)),
    }
    patch.setattr(block_keys, *makers[part])


def differs(pair: Pair, part: str) -> bool:
    """Whether the second answers otherwise after the first."""
    first, second = PARTS[part]
    engine = pair.engine()
    if part == "the call":
        # The same tokens, called at their end, and by a call somewhere before it: the blocks in
        # between are the base's for the one and the adapter's for the other.
        early = [*SYSTEMS[0][:8], *invocation_tokens(), *SYSTEMS[0][8:]]
        late = [*early, *invocation_tokens()]
        answers = []
        for fresh in (False, True):
            engine = pair.engine() if fresh else engine
            if not fresh:
                run_ids(engine, early)
            answers.append(run_ids(engine, late))
        return answers[0] != answers[1]
    engine.alone(first)
    return engine.alone(second).numbers != pair.expected(second).numbers


def run_ids(engine: Engine, ids: Sequence[int]) -> list[tuple[int, float]]:
    """Of a prompt for the activated LoRA."""
    name, ref = str(len(engine.asks)), engine.house.ref(engine._folders("alora"), 1.0)
    engine.asks[name], engine.answers[name] = PARTS["the call"][0], Answer()
    uses = uses_of([ref], ids)
    engine.scheduler.add(Request(name, tuple(ids), SamplingParams(6), uses, 0.0))
    engine.finish()
    return engine.answers[name].numbers


@pytest.mark.parametrize("part", PARTS)
def test_each_part_of_the_key_is_needed(
    part: str, pair_of: Callable[..., Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = pair_of("llama", "int8", "compiled")
    assert not differs(pair, part)
    broken(part, monkeypatch)
    assert differs(pair, part)
