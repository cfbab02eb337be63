"""Counts and warnings about examples."""

from __future__ import annotations

from lorry.training.data_survey import survey
from lorry.training.examples import PairExample
from lorry.training.rendering import LearnedTokens


def pair(number: int, prompt: str, completion: str = "b") -> PairExample:
    return PairExample(f"data.jsonl:{number}", prompt, completion)


def tokens(number: int, length: int, learned: int) -> LearnedTokens:
    marks = (False,) * (length - learned) + (True,) * learned
    return LearnedTokens(f"data.jsonl:{number}", tuple(range(length)), marks)


def test_counts() -> None:
    found = survey(
        [pair(1, "a"), pair(2, "b")], [tokens(1, 4, 1), tokens(2, 10, 3), tokens(2, 6, 3)], 8
    )
    assert (found.examples, found.sequences, found.tokens, found.learned_tokens) == (2, 3, 20, 7)
    assert (found.shortest, found.median, found.longest, found.too_long) == (4, 6, 10, 1)
    assert found.warnings == ("left out, as they are longer than 8 tokens: 1 (data.jsonl:2)",)


def test_what_looks_wrong_is_said_with_the_lines() -> None:
    examples = [pair(1, "a"), pair(2, "a"), pair(3, "c", " "), pair(4, "d")]
    found = survey(examples, [], 8, validation=[pair(9, "d"), pair(8, "e")])
    empty, twice, leaked = found.warnings
    assert empty.startswith("empty answers") and empty.endswith(": 1 (data.jsonl:3)")
    assert twice == "examples that are there twice: 1 (data.jsonl:2 (as data.jsonl:1))"
    assert leaked.endswith("validated with and trained on: 1 (data.jsonl:9)")


def test_three_of_many_are_named() -> None:
    found = survey([pair(n, "a") for n in range(6)], [], 8)
    assert ": 5 (data.jsonl:1 (as data.jsonl:0)" in found.warnings[0]
    assert found.warnings[0].count("(as ") == 3
