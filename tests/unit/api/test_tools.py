"""Tools: forced calls by grammar, free calls found in the text."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorry.api.tools import CallReader, Tools, tools_of
from lorry.errors import InvalidRequest

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}


def read(text: str, choice: object = None, cuts: list[int] | None = None) -> Any:
    reader = CallReader(tools_of([TOOL], choice))
    borders = [0, *sorted(cuts or []), len(text)]
    shown = "".join(reader.push(text[start:end]) for start, end in itertools.pairwise(borders))
    rest, calls = reader.end()
    return shown + rest, [call["function"] for call in calls]


def test_a_free_call() -> None:
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'
    text, calls = read("Let me look. " + call + call)
    assert text == "Let me look. "
    assert [json.loads(one["arguments"]) for one in calls] == [{"city": "Köln"}] * 2


@pytest.mark.parametrize(
    "text", ["no call", "a <tool", "<tool_call>not json</tool_call>", "<tool_call>[1]</tool_call>"]
)
def test_what_is_no_call_stays_text(text: str) -> None:
    assert read(text) == (text, [])


@given(st.lists(st.integers(0, 70), max_size=6))
def test_cuts_do_not_matter(cuts: list[int]) -> None:
    text = 'Hi <tool_call>{"name": "weather", "arguments": {}}</tool_call>'
    cuts = [min(cut, len(text)) for cut in cuts]
    assert read(text, None, cuts) == read(text)


def test_forced_calls() -> None:
    assert read('{"name": "weather", "arguments": {"city": "X"}}', "required") == (
        "",
        [{"name": "weather", "arguments": '{"city": "X"}'}],
    )
    choice = {"type": "function", "function": {"name": "weather"}}
    assert read('{"city": "X"}', choice) == (
        "",
        [{"name": "weather", "arguments": '{"city": "X"}'}],
    )
    # Cut off by the length limit: what there is is shown, and is no call.
    assert read('{"city": "', choice) == ('{"city": "', [])


def test_a_forced_answer_has_several_calls_only_where_that_is_asked_for() -> None:
    one = json.loads(grammar_text(tools_of([TOOL], "required")))
    assert one["properties"]["name"] == {"const": "weather"}
    many = json.loads(grammar_text(tools_of([TOOL], "required", parallel=True)))
    assert (many["type"], many["minItems"]) == ("array", 1)
    call = '{"name": "weather", "arguments": {}}'
    reader = CallReader(tools_of([TOOL], "required", parallel=True))
    assert reader.push(f"[{call}, {call}]") == ""
    assert len(reader.end()[1]) == 2


def test_one_call_where_no_parallel_ones_are_wanted() -> None:
    call = '<tool_call>{"name": "weather", "arguments": {}}</tool_call>'
    for parallel, count in ((None, 2), (True, 2), (False, 1)):
        reader = CallReader(tools_of([TOOL], None, parallel=parallel))
        reader.push(call * 2)
        assert len(reader.end()[1]) == count


def grammar_text(tools: Tools) -> str:
    assert tools.grammar is not None
    return tools.grammar.text


def allowed(mode: str, *names: str) -> dict[str, Any]:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


def test_allowed_tools_alone_are_shown_and_called() -> None:
    other = {"type": "function", "function": {"name": "time"}}
    free = tools_of([TOOL, other], allowed("auto", "time"))
    assert free.shown == [other] and not free.forced
    forced = tools_of([TOOL, other], allowed("required", "time"))
    assert forced.shown == [other]
    assert json.loads(grammar_text(forced))["properties"]["name"] == {"const": "time"}
    flat = {
        "type": "allowed_tools",
        "mode": "auto",
        "tools": [{"type": "function", "name": "time"}],
    }
    assert tools_of([TOOL, other], flat).shown == [other]
    assert tools_of([TOOL, other], allowed("auto")).shown is None


def test_none_shows_no_tools() -> None:
    assert tools_of([TOOL], "none").shown is None
    assert tools_of(None, None).shown is None
    assert tools_of([], "none").shown is None


@pytest.mark.parametrize(
    ("tools", "choice"),
    [
        (None, "required"),
        ([{"type": "function"}], None),
        ([{"type": "retrieval", "function": {"name": "x"}}], None),
        ([{"type": "function", "function": {"name": ""}}], None),
        ([{"type": "function", "function": {"name": "x", "parameters": []}}], None),
        ([TOOL], "always"),
        ([TOOL], allowed("auto", "other")),
        ([TOOL], allowed("required")),
        ([TOOL], allowed("none", "weather")),
        ([TOOL], {"type": "allowed_tools"}),
        ([TOOL], {"type": "function", "function": {"name": "other"}}),
    ],
)
def test_refused(tools: Any, choice: object) -> None:
    with pytest.raises(InvalidRequest):
        tools_of(tools, choice)
