"""Tokens that may not come do not, and all others may."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorry.constraint import Rules
from lorry.engine.restriction import Restriction
from lorry.errors import InvalidRequest

SIZE = 40
TOKENS = st.integers(0, SIZE - 1)


def listed(words: Sequence[int] | None, size: int = SIZE) -> set[int]:
    if words is None:
        return set(range(size))
    return {
        32 * index + bit for index, word in enumerate(words) for bit in range(32) if word >> bit & 1
    }


def mask(*tokens: int) -> list[int]:
    words = [0, 0]
    for token in tokens:
        words[token // 32] |= 1 << token % 32
    return words


@dataclass
class Spelled:
    """A grammar of one answer: its tokens, then token 0."""

    answer: list[int]
    taken: list[int] = field(default_factory=list)

    def look_ahead(self, drafts: Sequence[int]) -> None:
        pass

    def allowed(self, place: int = 0) -> Sequence[int]:
        return mask([*self.answer, 0][len(self.taken)])

    def advance(self, token_id: int) -> None:
        self.taken.append(token_id)

    def finished(self) -> bool:
        return len(self.taken) > len(self.answer)


@given(
    least=st.integers(0, 6),
    ends=st.frozensets(TOKENS, max_size=3),
    only=st.none() | st.frozensets(TOKENS, min_size=3, max_size=10),
    banned=st.lists(st.lists(TOKENS, min_size=1, max_size=3).map(tuple), max_size=6),
    seed=st.integers(0, 1000),
)
def test_what_may_come_is_what_the_rules_leave(
    least: int,
    ends: frozenset[int],
    only: frozenset[int] | None,
    banned: list[tuple[int, ...]],
    seed: int,
) -> None:
    rules = Rules(SIZE, least=least, ends=ends, only=only, banned=tuple(banned))
    one = Restriction(rules)
    answer: list[int] = []
    draw = random.Random(seed)
    for _ in range(12):
        expected = {
            token
            for token in range(SIZE)
            if (only is None or token in only)
            and not (token in ends and len(answer) < least)
            and not any(tuple([*answer, token][-len(word) :]) == word for word in banned)
        }
        if not expected:
            with pytest.raises(InvalidRequest, match="no token is left"):
                one.allowed()
            return
        assert listed(one.allowed()) == expected
        token = draw.choice(sorted(expected))
        one.advance(token)
        answer.append(token)
        assert not one.finished()


def test_a_least_length_costs_nothing_when_it_is_reached() -> None:
    one = Restriction(Rules(SIZE, least=1, ends=frozenset({2})))
    assert listed(one.allowed()) == set(range(SIZE)) - {2}
    one.advance(3)
    assert one.allowed() is None


def test_a_grammar_counts_too_and_its_end_goes_before_the_least_length() -> None:
    grammar = Spelled([5, 6])
    one = Restriction(Rules(SIZE, least=9, ends=frozenset({0})), grammar)
    for token in (5, 6, 0):
        assert listed(one.allowed()) == {token}
        one.advance(token)
    assert one.finished()
    assert grammar.taken == [5, 6, 0]


def test_a_grammar_and_rules_that_leave_nothing_are_told() -> None:
    one = Restriction(Rules(SIZE, banned=((6,),), param="bad_words"), Spelled([5, 6]))
    one.allowed()
    one.advance(5)
    with pytest.raises(InvalidRequest, match="bad_words and the grammar: no token is left") as it:
        one.allowed()
    assert it.value.param == "bad_words"


def test_a_token_that_the_model_has_not_is_told() -> None:
    """An adapter may know fewer tokens than the base: of a mask of others it draws the first."""
    one = Restriction(Rules(SIZE, only=frozenset({38}), param="allowed_token_ids"))
    one.allowed()
    with pytest.raises(InvalidRequest, match="no token is left"):
        one.advance(0)
