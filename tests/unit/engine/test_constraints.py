"""A request's constraint is made beside the engine's thread, once for equal ones."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from lorry.constraint import Constraint, Grammar, GrammarKind, Rules, Vocabulary
from lorry.engine.constraints import Constraints, compilers
from lorry.engine.grammar import GrammarCompiler
from lorry.engine.restriction import Following, Restriction
from lorry.errors import InvalidRequest
from lorry_adapters.lora.words import AddedToken
from support.patience import PATIENCE
from support.tokenizer import build_tokenizer

TOKENIZER = build_tokenizer(add_bos=False)


def regex(text: str) -> Grammar:
    return Grammar(GrammarKind.REGEX, text, "grammar")


class Compiler:
    """Stands where a grammar would take long: a test lets all but `open_to` through."""

    def __init__(self, open_to: str = "") -> None:
        self._open_to = open_to
        self.gate = threading.Semaphore(0)
        self.compiled: list[str] = []
        self.begun = threading.Event()

    def compile(self, grammar: Grammar) -> list[Any]:
        self.begun.set()
        assert grammar.text == self._open_to or self.gate.acquire(timeout=PATIENCE)
        self.compiled.append(grammar.text)
        if grammar.text == "(":
            raise InvalidRequest("odd", param="grammar")
        return [object()]

    def close(self) -> None:
        pass


class Bell:
    def __init__(self) -> None:
        self.rung = threading.Semaphore(0)

    def __call__(self) -> None:
        self.rung.release()


@pytest.fixture
def real() -> Iterator[Constraints]:
    one = Constraints(
        compilers(TOKENIZER, vocab_size=len(TOKENIZER) + 1, closed=True), wake=lambda: None
    )
    yield one
    one.close()


def test_rules_alone_are_there_at_once() -> None:
    constraints = Constraints(lambda vocabulary: pytest.fail("no grammar"), wake=Bell())
    future = constraints.begin(Constraint(rules=Rules(40, banned=((3,),))))
    assert future.done() and isinstance(future.result(), Restriction)


def test_each_answer_has_its_own_place_in_the_grammar(real: Constraints) -> None:
    constraint = Constraint(regex("ab"))
    one, other = (real.begin(constraint).result(PATIENCE) for _ in range(2))
    (first,) = TOKENIZER.encode("a", add_special_tokens=False)
    before = [*(one.allowed() or ())]
    assert before == [*(other.allowed() or ())]
    one.advance(first)
    assert [*(one.allowed() or ())] != before == [*(other.allowed() or ())]


def test_rules_and_a_grammar_count_both(real: Constraints) -> None:
    (a,) = TOKENIZER.encode("a", add_special_tokens=False)
    both = Constraint(regex("a|b"), Rules(len(TOKENIZER), banned=((a,),), param="bad_words"))
    following = real.begin(both).result(PATIENCE)
    allowed = following.allowed()
    assert allowed is not None and not allowed[a // 32] >> a % 32 & 1


def test_the_vocabulary_is_the_adapters(real: Constraints) -> None:
    """A token that only the adapter has may come where its text may."""
    number = len(TOKENIZER)
    added = AddedToken(number, "<act>", special=False)
    own = Vocabulary(added=(added,))
    of_adapter = real.begin(Constraint(regex("<act>"), vocabulary=own)).result(PATIENCE)
    of_base = real.begin(Constraint(regex("<act>"))).result(PATIENCE)

    def may_come(following: Following) -> bool:
        mask = following.allowed()
        assert mask is not None
        word, bit = divmod(number, 32)
        return word < len(mask) and bool(mask[word] >> bit & 1)

    assert may_come(of_adapter) and not may_come(of_base)


def waiting(compiler: Compiler, *texts: str) -> tuple[Constraints, Bell, list[Future[Following]]]:
    bell = Bell()
    constraints = Constraints(lambda vocabulary: compiler, wake=bell)  # type: ignore[arg-type, return-value]
    return constraints, bell, [constraints.begin(Constraint(regex(text))) for text in texts]


def test_equal_grammars_keep_one_thread_busy_and_others_have_the_other() -> None:
    compiler = Compiler(open_to="b")
    _, bell, (*same, other) = waiting(compiler, "a", "a", "a", "b")
    assert other.result(PATIENCE)
    assert not any(one.done() for one in same)
    compiler.gate.release(3)
    assert len({id(one.result(PATIENCE)) for one in same}) == 3
    for _ in range(4):
        assert bell.rung.acquire(timeout=PATIENCE)


def test_a_grammar_that_is_refused_is_refused_once_for_all_that_wait() -> None:
    compiler = Compiler()
    _, _, futures = waiting(compiler, "(", "(", "(")
    assert compiler.begun.wait(PATIENCE)
    compiler.gate.release()
    for future in futures:
        with pytest.raises(InvalidRequest, match="odd"):
            future.result(PATIENCE)
    assert compiler.compiled == ["("]


def test_a_thread_that_cannot_be_had_is_the_request_s_error() -> None:
    constraints = Constraints(lambda vocabulary: pytest.fail("no thread"), wake=Bell())
    constraints.close()
    for _ in range(2):
        assert isinstance(
            constraints.begin(Constraint(regex("a"))).exception(PATIENCE), RuntimeError
        )


def test_a_few_compilers_are_kept() -> None:
    made: list[Vocabulary] = []

    def compiler_of(vocabulary: Vocabulary) -> GrammarCompiler:
        made.append(vocabulary)
        compiler: Any = Compiler()
        compiler.gate.release(1000)
        return compiler  # type: ignore[no-any-return]

    constraints = Constraints(compiler_of, wake=lambda: None)
    ends = [Vocabulary(ends=frozenset({number})) for number in range(6)]
    for vocabulary in (*ends, ends[5], ends[1], ends[0]):
        constraints.begin(Constraint(regex("a"), vocabulary=vocabulary)).result(PATIENCE)
    assert made == [*ends, ends[0]]
