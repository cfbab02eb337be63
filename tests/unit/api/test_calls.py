"""Calls in the notations of the common families."""

from __future__ import annotations

import pytest

from lorry.api.calls.choice import NOTATIONS, notation_of
from lorry.api.calls.notation import Offered
from lorry.api.calls.reader import Reader, forced
from lorry.api.calls.source import Argued, Called, Done, Said
from lorry.settings import options
from support.calls import ANSWERS, NONE, ONE, TIME, TOOLS, Call, read, reader


@pytest.mark.parametrize(("notation", "answer", "text", "calls"), ANSWERS)
def test_answers(notation: str, answer: str, text: str, calls: list[Call]) -> None:
    assert read(notation, answer) == (text, calls)


@pytest.mark.parametrize(("notation", "answer", "text", "calls"), ANSWERS)
def test_one_call_where_no_parallel_ones_are_wanted(
    notation: str, answer: str, text: str, calls: list[Call]
) -> None:
    said, got = read(notation, answer, several=False)
    assert got == calls[:1]
    assert said == ("" if text == "done" else text)


def test_a_call_is_told_as_soon_as_its_name_is_certain_and_its_arguments_as_they_come() -> None:
    one = reader("hermes")
    assert one.push('<tool_call>{"name": "weather", ') == []
    assert one.push('"arguments": {"ci') == [Called("weather"), Argued('{"ci')]
    assert one.push('ty": "Ro') == [Argued('ty": "Ro')]
    assert not one.complete
    assert one.push('me"}') == [Argued('me"}'), Done()]
    assert one.complete and one.called
    assert one.push("}</tool_call>") == one.end() == []


def test_text_is_shown_at_once() -> None:
    one = reader("hermes")
    assert one.push("Let me see ") == [Said("Let me see ")]
    assert one.push("a < b <to") == [Said("a < b ")]
    assert one.push("p") == [Said("<top")]
    # JSON that is no call: nobody waits for its end.
    one = reader("hermes")
    assert one.push('{"answer":') == [Said('{"answer":')]


def test_a_call_that_was_cut_off() -> None:
    one = reader("hermes")
    one.push('<tool_call>{"name": "weather", "arguments": {"ci')
    assert one.end() == []
    assert one.called and not one.complete
    assert read("hermes", '<tool_call>{"name": "wea') == ('<tool_call>{"name": "wea', [])


@pytest.mark.parametrize(
    ("notation", "answer", "text"),
    [
        ("json", f'{NONE} {{"answer": 3}}', '{"answer": 3}'),
        ("json", f'[{NONE}, {{"answer": 3}}]', ', {"answer": 3}]'),
        ("llama3", f'{NONE}; {{"answer": 3}}', '{"answer": 3}'),
        ("llama3", f'[{NONE}, {{"answer": 3}}]', ', {"answer": 3}]'),
        ("llama3", f'<|python_tag|>{NONE}; {{"answer": 3}}', '{"answer": 3}'),
        ("pythonic", "[time(), nothing]", "nothing]"),
        ("gemma", "```tool_code\ntime()\nnothing = 3\n```", "nothing = 3\n```"),
    ],
)
def test_what_follows_a_call_and_is_none_is_shown_from_its_beginning(
    notation: str, answer: str, text: str
) -> None:
    assert read(notation, answer) == (text, [TIME])


def test_line_breaks_in_texts_are_escaped() -> None:
    answer = '<tool_call>{"name": "weather", "arguments": {"city": "a\nb\tc"}}</tool_call>'
    assert read("hermes", answer) == ("", [("weather", {"city": "a\nb\tc"})])


def test_arguments_that_are_no_json_are_given_out_as_they_are() -> None:
    one = reader("hermes")
    found = one.push('<tool_call>{"name": "time", "arguments": {"a": oops]}</tool_call>')
    assert found[:2] == [Called("time"), Argued('{"a": oops]')]


def test_forced_answers() -> None:
    offered = Offered(TOOLS)
    one = Reader(forced(offered, "weather"))
    assert one.push('{"city": ') == [Called("weather"), Argued('{"city": ')]
    assert one.push('"Rome"}') == [Argued('"Rome"}'), Done()]
    one = Reader(forced(offered, None))
    assert one.push(f"[{ONE}") == [Called("weather"), Argued(ONE[33:-1]), Done()]
    assert one.push(f", {NONE}]") == [Called("time"), Argued("{}"), Done()]
    one = Reader(forced(offered, None))
    assert one.push('{"na') == []
    assert one.end() == [Said('{"na')]


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>{"function": ' * 5000,
        "<tool_call>" * 5000,
        '<tool_call>{"arguments": {' * 5000,
        "[" * 5000,
        "[weather(when=" + "[" * 5000,
        "<|tool_call>call:weather{when:" + "{a:" * 5000,
    ],
)
def test_what_is_nested_without_end_is_read_to_the_end(text: str) -> None:
    for notation in NOTATIONS:
        one = reader(notation)
        one.push(text)
        one.end()


def test_the_template_tells_the_notation() -> None:
    for sign, name in (
        ("<tool_call>", "hermes"),
        ("<|python_tag|>", "llama3"),
        ("[TOOL_CALLS]", "mistral"),
        ("<tool_call>\n<function=", "qwen"),
        ("<|tool|>{{ m.tools }}<|/tool|>", "phi"),
        ("<|start_of_role|>", "granite"),
        ("<start_of_turn>", "gemma"),
        ("{{ tools }}", "hermes"),
    ):
        assert notation_of(f"{{{{ tools }}}} {sign} x").name == name


def test_every_notation_can_be_chosen() -> None:
    (option,) = [one for one in options() if one.name == "tool_parser"]
    assert set(option.choices) == {"auto", *NOTATIONS}
    assert {one[0] for one in ANSWERS} == set(NOTATIONS)
