"""Drafts of one sequence against a search through all of its tokens."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorry.engine.drafter import Drafter
from lorry.engine.recent_answers import RecentAnswers
from lorry.engine.token_index import LONGEST, PLACES

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


def search_all(tokens: list[int], texts: list[list[int]]) -> tuple[list[int], int, int]:
    """The same among several texts, the last of which counts most, and its own before them."""
    found = [(tokens, *search(tokens))]
    for text in reversed(texts):
        best, end = (0, 0), tokens[-2:]
        places = [at for at in range(len(text) - 1, 1, -1) if text[at - 2 : at] == end]
        for at in places[:PLACES]:
            equal = 2
            while (
                equal < min(at, len(tokens), LONGEST)
                and text[at - equal - 1] == tokens[len(tokens) - equal - 1]
            ):
                equal += 1
            if equal > best[1]:
                best = (at, equal)
        found.append((text, *best))
    # Of the answers first: of equals the newest, and only then one's own.
    answers = max(found[1:], key=lambda one: one[2])
    more = answers[2] > found[0][2] and answers[0][answers[1]] >= 0
    return answers if more else found[0]


@settings(max_examples=300)
@given(tokens=few.filter(lambda ids: len(ids) > 1), entered=st.lists(few, max_size=6))
def test_answers_are_searched_too(tokens: list[int], entered: list[list[int]]) -> None:
    answers, texts = RecentAnswers(), [list[int]()]
    for answer in entered:
        answers.enter(answer)
        texts[-1] += [*answer, -1] if answer else []
    drafter = Drafter(tokens, answers)
    text, at, equal = search_all(tokens, texts)
    assert (drafter.chance(0) > 0) == (equal > 0)
    if equal:
        assert drafter.draft(0) == text[at]


@settings(max_examples=300)
@given(entered=st.lists(few, max_size=6), prompt=few, answer=few)
def test_a_draft_of_an_answer_ends_where_it_ends(
    entered: list[list[int]], prompt: list[int], answer: list[int]
) -> None:
    """Token by token, while more answers come."""
    answers, drafter = RecentAnswers(), None
    for text in entered:
        answers.enter(text)
    drafter, tokens = Drafter(prompt, answers), list(prompt)
    for place, token in enumerate(answer):
        drafter.take(token)
        tokens.append(token)
        if place % 5 == 4:
            answers.enter(tokens[-9:])
            entered = [*entered, tokens[-9:]]
        drafted: list[int] = []
        while len(drafted) < 9 and drafter.chance(len(drafted)):
            drafted.append(drafter.draft(len(drafted)))
        if drafted:
            assert min(drafted) >= 0
            # Of one answer from one place on, or of its own text, which may go round.
            end = [*tokens[-2:], *drafted]
            within = any(
                text[at : at + len(end)] == end for text in entered for at in range(len(text))
            )
            assert within or drafter.chance(100) > 0


def test_an_answer_like_the_last_one_is_drafted_whole() -> None:
    answers, answer = RecentAnswers(), list(range(200, 230))
    assert Drafter([1, 2, 3], answers).chance(0) == 0
    answers.enter([1, 2, 3, *answer])
    drafter = Drafter([7, 8, 2, 3], answers)
    assert [drafter.draft(index) for index in range(30)] == answer
    assert drafter.chance(29) > 0 == drafter.chance(30)
    for token in answer:
        drafter.take(token)
    assert drafter.chance(0) == 0


def test_what_answers_were_worth_is_learnt_by_all_that_draft_from_them() -> None:
    answers, other = RecentAnswers(), RecentAnswers()
    for one in (answers, other):
        one.enter([1, 2, 3, 4])
    before = Drafter([1, 2], answers).chance(0)
    for _ in range(20):
        Drafter([1, 2], answers).take(9)
    assert Drafter([1, 2], answers).chance(0) < before / 3
    assert Drafter([1, 2], other).chance(0) == Drafter([1, 2, 3, 1, 2]).chance(0) == before


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
