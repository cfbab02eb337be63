"""Text as it streams, case by case; `tests/property/test_text.py` has the laws."""

from __future__ import annotations

import pytest

from lorry.engine.text import Detokenizer, StopStrings
from support.tokenizer import BOS, build_tokenizer

TOKENIZER = build_tokenizer(add_bos=False).backend_tokenizer
SPECIAL = frozenset(range(5))


def detokenizer() -> Detokenizer:
    return Detokenizer(lambda ids: TOKENIZER.decode(list(ids)), SPECIAL)


def test_a_character_of_four_tokens_comes_with_the_last() -> None:
    ids = TOKENIZER.encode("🚚").ids
    assert len(ids) == 4
    text = detokenizer()
    assert [text.push(one) for one in ids] == ["", "", "", "🚚"]
    assert text.flush() == ""


def test_half_a_character_at_the_end_shows_that_something_is_missing() -> None:
    text = detokenizer()
    assert [text.push(one) for one in TOKENIZER.encode("a🚚").ids[:-1]] == ["a", "", "", ""]
    assert text.flush() == "\ufffd"


def test_special_tokens_are_no_text_and_break_nothing() -> None:
    first, *rest = TOKENIZER.encode("é").ids
    text = detokenizer()
    assert [text.push(one) for one in (first, BOS, *rest)] == ["", "", "é"]


def test_a_stop_string_inside_one_token_cuts_it() -> None:
    stops = StopStrings(("\n",), keep=True)
    assert stops.push("a\n\nb") == "a\n"
    assert stops.hit == "\n"
    dropped = StopStrings(("\n",), keep=False)
    assert dropped.push("a\n\nb") == "a"


def test_the_one_that_is_complete_first_wins() -> None:
    stops = StopStrings(("long stop", "g s"), keep=False)
    assert stops.push("a long stop") == "a lon"
    assert stops.hit == "g s"


def test_nothing_may_follow_a_stop_string() -> None:
    stops = StopStrings(("x",), keep=True)
    stops.push("x")
    with pytest.raises(AssertionError):
        stops.push("y")
