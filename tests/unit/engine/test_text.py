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


END, TURN = "<|end|>", "<|turn|>"


@pytest.mark.parametrize(
    ("stop", "pieces", "kept", "dropped"),
    [
        (END, ["rice", END], "rice", "rice"),
        (f"e{END}", ["rice", END], "rice", "ric"),
        (f"ice{END}", ["r", "i", "ce", END], "rice", "r"),
        (END + TURN, ["rice", END, END, TURN], "rice", "rice"),
        (f"{END}\n{TURN}", ["rice", END, "\n", TURN], "rice\n", "rice"),
        (f"{END}\n", ["rice", END, "\nmore"], "rice\n", "rice"),
        # Written out in ordinary tokens it is the same text, and never shown.
        (END, ["rice <|e", "nd|>"], "rice <|end|>", "rice "),
    ],
)
def test_a_special_token_in_a_stop_string(
    stop: str, pieces: list[str], kept: str, dropped: str
) -> None:
    for keep, expected in ((True, kept), (False, dropped)):
        stops = StopStrings((stop,), keep=keep, marked=frozenset({stop}))
        shown = ""
        for piece in pieces:
            assert stops.hit is None
            shown += stops.push("", piece) if piece in (END, TURN) else stops.push(piece)
        assert (shown, stops.hit) == (expected, stop)


def test_a_special_token_that_is_in_no_stop_string_breaks_none() -> None:
    stops = StopStrings(("ice", f"rice{END}"), keep=False, marked=frozenset({f"rice{END}"}))
    assert stops.push("ri") + stops.push("", TURN) + stops.push("c") == ""
    assert stops.push("e") == "r"
    assert stops.hit == "ice"


def test_another_special_token_between_is_not_passed_over() -> None:
    stop = f"rice{END}"
    stops = StopStrings((stop,), keep=False, marked=frozenset({stop}))
    assert stops.push("a rice") == "a "
    # Ordinary tokens may still write it out.
    assert stops.push("", TURN) == ""
    assert stops.push("", END) == ""
    assert stops.push(" and") == "rice and"
    assert stops.hit is None
