"""Reasoning, parted from answers."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorry.api.calls.hermes import HERMES
from lorry.api.calls.reader import Reader
from lorry.api.calls.source import Said, Thought
from lorry.api.reasoning import THOUGHTS, choice_of, parting, thoughts_in
from lorry.api.runs import Ending
from lorry.api.telling import Telling, message_of
from lorry.api.tools import tools_of

THINK = THOUGHTS["think"]
TOOL = {"type": "function", "function": {"name": "weather"}}
CALL = '<tool_call>{"name": "weather", "arguments": {}}</tool_call>'


def parted(*pieces: str, opened: bool = False, name: str = "think") -> tuple[str, str]:
    reader = Reader(parting(THOUGHTS[name], opened=opened))
    found = [one for piece in pieces for one in reader.push(piece)] + reader.end()
    reasoning = "".join(one.text for one in found if isinstance(one, Thought))
    return reasoning, "".join(one.text for one in found if isinstance(one, Said))


@pytest.mark.parametrize(
    ("text", "opened", "expected"),
    [
        ("<think>\nTwo and\ntwo.\n</think>\n\nFour.\n", False, ("Two and\ntwo.", "Four.\n")),
        ("\n<think></think>Four.", False, ("", "Four.")),
        ("Two and two.\n</think>\n\nFour.", True, ("Two and two.", "Four.")),
        ("Two and two", True, ("Two and two", "")),
        ("<think>Two", False, ("Two", "")),
        ("<think>a</think>b<think>c</think>", False, ("a", "b<think>c</think>")),
        (" Four, <think>", False, ("", " Four, <think>")),
        ("<thin", False, ("", "<thin")),
        ("", False, ("", "")),
    ],
)
def test_it_is_what_is_between_the_marks(
    text: str, opened: bool, expected: tuple[str, str]
) -> None:
    assert parted(text, opened=opened) == expected
    assert parted(*text, opened=opened) == expected


@pytest.mark.parametrize("name", THOUGHTS)
def test_marks_of_families(name: str) -> None:
    marks = THOUGHTS[name]
    assert parted(f"{marks.opener}a\n{marks.closer}\nb", name=name) == ("a", "b")
    assert thoughts_in(f"{{{{ x }}}}{marks.opener}{marks.closer}") is marks
    assert choice_of(name)("") is marks


def test_none_where_nobody_thinks() -> None:
    assert thoughts_in("{{ messages }}") is None
    assert choice_of("none")("<think></think>") is None


@given(
    st.text(st.sampled_from("<think>/ \na"), max_size=40),
    st.booleans(),
    st.lists(st.integers(0, 60), max_size=8),
)
def test_cuts_do_not_matter(text: str, opened: bool, cuts: list[int]) -> None:
    text = text.replace("nkn", "</think>").replace("kk", "<think>")
    borders = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[start:end] for start, end in itertools.pairwise(borders)]
    assert parted(*pieces, opened=opened) == parted(text, opened=opened)


def test_prompts_that_end_in_reasoning() -> None:
    assert THINK.open_in("<|assistant|><think>\n")
    assert not THINK.open_in("<|assistant|><think>\n\n</think>\n\n")
    assert THINK.continued_in("<think>Two and")
    assert not THINK.continued_in("<think>Two</think>Fo")


def test_calls_are_looked_for_behind_it_and_not_in_it() -> None:
    telling = Telling(
        tools_of([TOOL], None).reader(HERMES),
        thinking=Reader(parting(THINK, opened=True)),
        echo="Say: ",
    )
    deltas = [*telling.push(f"maybe {CALL}\n</think>\n"), *telling.push(CALL), *telling.end()]
    message = message_of(deltas)
    assert message["reasoning_content"] == f"maybe {CALL}"
    assert message["content"] == "Say: "
    assert [one["function"]["name"] for one in message["tool_calls"]] == ["weather"]
    assert telling.reason(Ending.EOS) == "tool_calls"


def test_who_wants_to_see_none_gets_none() -> None:
    telling = Telling(
        tools_of(None, None).reader(HERMES),
        thinking=Reader(parting(THINK, opened=False)),
        silent=True,
    )
    deltas = [*telling.push("<think>a</think>b"), *telling.end()]
    assert message_of(deltas) == {"role": "assistant", "content": "b"}


def test_tokens_of_the_reasoning_are_counted() -> None:
    pieces = ["Two", " and", " two.", "</", "think", ">", "\n", "Four", "."]
    for opened, marks in ((True, []), (False, ["<think>"])):
        telling = Telling(
            tools_of(None, None).reader(HERMES), thinking=Reader(parting(THINK, opened=opened))
        )
        deltas = [one for piece in (*marks, *pieces) for one in telling.push(piece)]
        assert message_of([*deltas, *telling.end()])["reasoning_content"] == "Two and two."
        assert telling.reasoning_tokens == 3 + len(marks)
    thinking = Reader(parting(THINK, opened=False))
    plain = Telling(tools_of(None, None).reader(HERMES), thinking=thinking)
    assert [*plain.push("Four"), *plain.push("."), *plain.end()]
    assert plain.reasoning_tokens == 0
