"""Answers with drafts against answers without, on tiny models.

On the compiled step every token and every log-probability is the same, bit for bit, whatever the
parameters, and whatever was preempted or cached. Elsewhere they are the same within rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import wait
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from random import Random

import pytest

from lorry.constraint import Constraint, Grammar, GrammarKind, Rules
from lorry.core import Drawn, Failure, FinishReason, Request, SamplingParams
from lorry.engine.blocks import BlockPool
from lorry.engine.constraints import Constraints, compilers
from lorry.engine.invocation import uses_of
from lorry.engine.limits import Limits
from lorry.engine.prefix_cache import PrefixCache
from lorry.engine.recent_answers import AnswerBook
from lorry.engine.scheduler import Scheduler
from lorry.engine.speculation import Speculation
from support.compiled import require_compiled_step
from support.executor_driver import BLOCK_SIZE
from support.kind import invocation_tokens
from support.patience import PATIENCE
from support.peft_kinds import KINDS
from support.peft_made import load_base, make
from support.prompts import random_prompt
from support.stepped import MAX_LEN, NUM_BLOCKS, House

SELECTIONS: list[tuple[tuple[str, float], ...]] = [
    (),
    (),
    (),
    (("lora", 1.0),),
    (("lora", 0.5), ("dora", 1.0)),
    (("alora", 1.0),),
    (("prompt tuning", 1.0),),
    (("prefix tuning", 1.0),),
]


@dataclass
class Answer:
    drawn: list[Drawn] = field(default_factory=list)
    finish: FinishReason | None = None
    failure: Failure | None = None
    """Where its rules leave no token."""
    drafts: int = 0
    accepted: int = 0


def params_of(chance: Random) -> SamplingParams:
    """Every parameter, alone and with others; mostly such that tokens repeat."""

    def sometimes(value: float, neutral: float, share: float = 0.2) -> float:
        return value if chance.random() < share else neutral

    return SamplingParams(
        chance.choice([1, 2, 7, 30, 60]),
        temperature=chance.choice([0.0, 0.0, 0.1, 0.4, 1.0]),
        top_k=chance.choice([0, 0, 2, 3]),
        top_p=sometimes(0.5, 1.0),
        min_p=sometimes(0.3, 0.0),
        typical_p=sometimes(0.6, 1.0),
        repetition_penalty=sometimes(1.1, 1.0),
        frequency_penalty=sometimes(0.2, 0.0),
        presence_penalty=sometimes(-0.5, 0.0),
        seed=chance.randrange(1000),
        eos_token_ids=frozenset(chance.sample(range(200), chance.choice([0, 1, 8]))),
        # So few tokens are likely that some come again.
        logit_bias=tuple((token, 20.0) for token in chance.sample(range(200), 4))
        if chance.random() < 0.6
        else (),
        top_logprobs=chance.choice([0, 0, 3]),
        prompt_logprobs=chance.choice([None, None, None, 0]),
    )


def request_of(name: str, chance: Random, house: House, folders: Callable[[str], Path]) -> Request:
    adapters = chance.choice(SELECTIONS)
    called = invocation_tokens() if any(kind == "alora" for kind, _ in adapters) else ()
    phrase = random_prompt(chance.randrange(2, 12), chance.randrange(10))
    tail = random_prompt(chance.randrange(1, 20), chance.randrange(10))
    ids = (*phrase * chance.randrange(1, 4), *called, *tail, *phrase[: chance.randrange(1, 5)])
    refs = [replace(house.ref(folders(kind), scale), name=kind) for kind, scale in adapters]
    return Request(
        name,
        ids,
        params_of(chance),
        uses_of(refs, ids),
        0.0,
        constraint=constraint_of(chance, house.loaded.config.vocab_size),
    )


def constraint_of(chance: Random, vocab_size: int) -> Constraint | None:
    if chance.random() < 0.6:
        return None
    grammar = None
    if chance.random() < 0.6:
        # The same words come again, and a few end it.
        text = chance.choice(["(ab|ba)*c", "((one|two), )*three", "[a-f]{3,40}"])
        grammar = Grammar(GrammarKind.REGEX, text, "grammar")
        if chance.random() < 0.5:
            return Constraint(grammar)
    banned = tuple(tuple(chance.choices(range(200), k=chance.choice([1, 2]))) for _ in range(20))
    return Constraint(
        grammar, Rules(vocab_size, least=chance.choice([0, 20]), banned=banned, param="bad_words")
    )


def run(
    pair: Pair,
    requests: Sequence[Request],
    *,
    drafts: bool,
    chance: Random,
    book: AnswerBook | None = None,
) -> list[Answer]:
    """All at once. `book`: answers of others, to draft from."""
    house = pair.house
    limits = Limits(chance.choice([2, 4, len(requests)]), chance.choice([24, 64, 512]), MAX_LEN)
    blocks = BlockPool(chance.choice([18, 30, NUM_BLOCKS]), BLOCK_SIZE)
    cached = chance.random() < 0.5
    scheduler = Scheduler(
        limits,
        blocks,
        house.slots,
        PrefixCache(blocks, house.executor.path_of if cached else None),
        # Anything that was followed by something is drafted.
        Speculation(limits, blocks, always=True, fixed=1e9, answers=book) if drafts else None,
    )
    answers = {one.id: Answer() for one in requests}
    for one in requests:
        constraint = one.constraint
        following = None if constraint is None else pair.constraints.begin(constraint)
        if following is not None:
            wait([following], PATIENCE)
        scheduler.add(one, following)
    while scheduler.num_requests:
        batch = scheduler.schedule()
        assert batch is not None
        assert batch.num_tokens <= limits.max_num_batched_tokens
        for event in scheduler.commit(batch, house.executor.run(batch)):
            answer = answers[event.request_id]
            answer.failure = event.failure
            answer.drawn += event.drawn
            answer.finish = event.finish
            answer.drafts += event.drafts
            answer.accepted += max(len(event.drawn) - 1, 0)
    assert blocks.num_used == 0
    house.preemptions += scheduler.preemptions
    return list(answers.values())


@dataclass
class Pair:
    house: House
    folders: Callable[[str], Path]
    constraints: Constraints


@pytest.fixture(scope="module")
def pair_of(
    tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Pair]]:
    houses: list[House] = []
    followed: list[Constraints] = []

    @cache
    def of(family: str, quantization: str, kernels: str) -> Pair:
        if kernels == "compiled":
            require_compiled_step()
        model = tiny_model(family)
        root, base = tmp_path_factory.mktemp(family), load_base(model)

        @cache
        def folder(name: str) -> Path:
            return make(KINDS[name], family, base, root / name.replace(" ", "-"), seed=1).folder

        houses.append(House(model, quantization=quantization, kernels=kernels))
        loaded = houses[-1].loaded
        compiler_of = compilers(loaded.tokenizer, vocab_size=loaded.config.vocab_size, closed=True)
        followed.append(Constraints(compiler_of, wake=lambda: None))
        return Pair(houses[-1], folder, followed[-1])

    yield of
    for constraints in followed:
        constraints.close()
    for house in houses:
        house.executor.paths.close()


@pytest.mark.parametrize(("family", "groups"), [("llama", 32), ("gemma3", 10), ("gpt2", 10)])
def test_the_same_bits_as_without_drafts(
    family: str, groups: int, pair_of: Callable[..., Pair]
) -> None:
    """520 requests, ten at once, with drafts from their own text, and from others' answers too."""
    pair = pair_of(family, "int8", "compiled")
    drafts = accepted = followed = from_others = 0
    book = AnswerBook(per_caller=False)
    for seed in range(groups):
        chance = Random(seed)
        requests = [request_of(str(index), chance, pair.house, pair.folders) for index in range(10)]
        plain = run(pair, requests, drafts=False, chance=chance)
        made = run(pair, requests, drafts=True, chance=chance)
        others = run(pair, requests, drafts=True, chance=chance, book=book)
        for asked, answer, other, expected in zip(requests, made, others, plain, strict=True):
            assert answer.drawn == other.drawn == expected.drawn, asked
            assert (answer.finish, answer.failure) == (expected.finish, expected.failure)
            assert (other.finish, other.failure) == (expected.finish, expected.failure)
            drafts += answer.drafts
            accepted += answer.accepted
            from_others += other.accepted
            if asked.constraint is not None and asked.constraint.grammar is not None:
                followed += answer.accepted
        # One half comes again after its own answers.
        if seed % 2:
            again = run(pair, requests, drafts=True, chance=chance, book=book)
            assert [one.drawn for one in again] == [one.drawn for one in plain]
            from_others += sum(one.accepted for one in again)
    assert pair.house.preemptions > 0
    assert from_others > 1.8 * accepted, "answers of others were hardly tried"
    assert 10 * groups < accepted < drafts, "it was hardly tried"
    assert groups < followed, "grammars were hardly tried"


@pytest.mark.parametrize("family", ["mistral", "gemma2"])
def test_the_same_within_rounding_elsewhere(family: str, pair_of: Callable[..., Pair]) -> None:
    pair, book = pair_of(family, "none", "torch"), AnswerBook(per_caller=False)
    accepted = 0
    for seed in range(6):
        chance = Random(seed)
        requests = [request_of(str(index), chance, pair.house, pair.folders) for index in range(10)]
        plain = run(pair, requests, drafts=False, chance=chance)
        made = run(pair, requests, drafts=True, chance=chance, book=book)
        for answer, expected in zip(made, plain, strict=True):
            mine = [one.token for one in answer.drawn]
            theirs = [one.token for one in expected.drawn]
            assert [one.token_id for one in mine] == [one.token_id for one in theirs]
            assert [one.logprob for one in mine] == pytest.approx(
                [one.logprob for one in theirs], abs=1e-4
            )
            assert answer.finish is expected.finish
            accepted += answer.accepted
    assert accepted > 50, "it was hardly tried"
