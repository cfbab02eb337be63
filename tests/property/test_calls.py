"""Calls are found alike however the answer is cut into deltas."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from lorry.api.calls.choice import NOTATIONS
from support.calls import ANSWERS, events, reader

TEXTS = sorted({answer for _, answer, _, _ in ANSWERS})
PIECES = [
    "<tool_call>",
    "</tool_call>",
    "<",
    "[",
    "]",
    "{",
    "}",
    '"',
    "\\",
    ",",
    ":",
    "`",
    " ",
    "\n",
]


@st.composite
def answers(draw: st.DrawFn) -> str:
    """Answers with calls, two of them behind one another, cut off, and with something put in."""
    text = draw(st.sampled_from(TEXTS)) + draw(st.sampled_from(["", "", *TEXTS]))
    text = text[: draw(st.integers(0, len(text)))] if draw(st.booleans()) else text
    for piece in draw(st.lists(st.sampled_from(PIECES), max_size=3)):
        place = draw(st.integers(0, len(text)))
        text = text[:place] + piece + text[place:]
    return text


@given(
    st.sampled_from(sorted(NOTATIONS)),
    answers(),
    st.lists(st.integers(0, 400), max_size=12),
    st.booleans(),
)
@settings(max_examples=400)
def test_cuts_do_not_matter(notation: str, text: str, cuts: list[int], several: bool) -> None:
    whole = events(reader(notation, several=several), [text])
    borders = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[start:end] for start, end in itertools.pairwise(borders)]
    assert events(reader(notation, several=several), pieces) == whole
    assert events(reader(notation, several=several), text) == whole
