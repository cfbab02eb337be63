"""Drafts of one sequence against a search through all of its tokens."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorry.engine.drafter import LONGEST, PLACES, Drafter

few = st.lists(st.integers(0, 3), max_size=40)


def search(tokens: list[int]) -> tuple[int, int]:
    """Where the tokens go on that end like all of them, and how many are equal."""
    best, size = (0, 0), len(tokens)
    places = [at for at in range(size - 1, 1, -1) if tokens[at - 2 : at] == tokens[size - 2 :]]
    for at in places[:PLACES]:
        equal = 2
        while equal < min(at, LONGEST) and tokens[at - equal - 1] == tokens[size - equal - 1]:
            equal += 1
        if equal > best[1]:
            best = (at, equal)
    return best


@settings(max_examples=300)
@given(tokens=few)
def test_the_draft_follows_the_longest_equal_end(tokens: list[int]) -> None:
    drafter = Drafter(tokens)
    at, equal = search(tokens)
    assert (drafter.chance(0) > 0) == (equal > 0)
    if equal:
        assert drafter.draft(0) == tokens[at]


@settings(max_examples=300)
@given(prompt=few, answer=few)
def test_a_draft_is_what_followed_an_equal_end(prompt: list[int], answer: list[int]) -> None:
    """Token by token, where a draft that came true is followed without a search."""
    drafter, tokens = Drafter(prompt), list(prompt)
    for token in answer:
        drafter.take(token)
        tokens.append(token)
        assert (drafter.chance(0) > 0) == (search(tokens)[1] > 0)
        if drafter.chance(0):
            followed = {
                tokens[at] for at in range(2, len(tokens)) if tokens[at - 2 : at] == tokens[-2:]
            }
            assert drafter.draft(0) in followed


def test_all_tokens_of_a_copy_are_drafted() -> None:
    text = list(range(100, 140))
    drafter = Drafter([*text, 1, 2, *text[:2]])
    assert [drafter.draft(index) for index in range(38)] == text[2:]
    for token in text[2:10]:
        drafter.take(token)
    assert [drafter.draft(index) for index in range(30)] == text[10:]


def test_a_period_goes_on() -> None:
    drafter = Drafter([9, 8, 1, 2, 3, 1, 2, 3, 1])
    assert [drafter.draft(index) for index in range(7)] == [2, 3, 1, 2, 3, 1, 2]


@pytest.mark.parametrize("tokens", [[], [1], [1, 2], [1, 2, 3, 4], [1, 2, 3, 2]])
def test_without_a_repetition_there_is_no_draft(tokens: list[int]) -> None:
    assert Drafter(tokens).chance(0) == 0


def test_more_equal_tokens_are_a_better_chance() -> None:
    drafter = Drafter([*range(50), *range(2)])
    chances = [drafter.chance(index) for index in range(40)]
    assert chances == sorted(chances)
    assert chances[0] < 0.5 < 0.8 < chances[-1]


def test_what_came_true_is_learnt_and_what_did_not() -> None:
    text = list(range(1000))
    right, wrong = Drafter([*text, 0, 1]), Drafter([*text, 0, 1])
    begun = right.chance(0)
    for token in text[2:400]:
        right.take(token)
    assert right.chance(0) > 0.95
    for place in range(100):
        # Two tokens as before, and then another one.
        for token in (place, place + 1, 5000 + place):
            wrong.take(token)
    wrong.take(500)
    wrong.take(501)
    assert 0 < wrong.chance(0) < 0.1 < begun
    # It is learnt again as fast.
    for token in text[502:900]:
        wrong.take(token)
    wrong.take(0)
    wrong.take(1)
    assert wrong.chance(0) > 0
