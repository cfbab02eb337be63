"""What a request says of tools, and calls in its answer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lorry.api.calls.hermes import HERMES
from lorry.api.runs import Ending
from lorry.api.telling import Telling, message_of
from lorry.api.tools import Tools, tools_of
from lorry.errors import InvalidRequest

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}


def test_a_forced_answer_has_several_calls_only_where_that_is_asked_for() -> None:
    one = json.loads(grammar_text(tools_of([TOOL], "required")))
    assert one["properties"]["name"] == {"const": "weather"}
    many = json.loads(grammar_text(tools_of([TOOL], "required", parallel=True)))
    assert (many["type"], many["minItems"]) == ("array", 1)


@pytest.mark.parametrize(("parallel", "count"), [(None, 2), (True, 2), (False, 1)])
def test_a_free_answer_has_one_call_where_no_parallel_ones_are_wanted(
    parallel: bool | None, count: int
) -> None:
    call = '<tool_call>{"name": "weather", "arguments": {}}</tool_call>'
    telling = Telling(tools_of([TOOL], None, parallel=parallel).reader(HERMES))
    message = message_of([*telling.push(call * 2), *telling.end()])
    assert len(message["tool_calls"]) == count
    assert telling.reason(Ending.EOS) == "tool_calls"


def test_without_tools_everything_is_text() -> None:
    text = '<tool_call>{"name": "weather", "arguments": {}}</tool_call>'
    telling = Telling(tools_of(None, None).reader(HERMES))
    assert telling.push(text) == [{"content": text}]
    assert telling.end() == []


def test_an_id_and_a_name_come_once_and_arguments_in_pieces() -> None:
    telling = Telling(tools_of([TOOL], "required").reader(HERMES))
    begun, more = telling.push('{"name": "weather", "arguments": {"ci')
    (rest,) = telling.push('ty": "X"}}')
    (call,) = begun["tool_calls"]
    assert call.pop("id").startswith("call_")
    weather = {"name": "weather", "arguments": ""}
    assert call == {"index": 0, "type": "function", "function": weather}
    assert more == {"tool_calls": [{"index": 0, "function": {"arguments": '{"ci'}}]}
    assert rest == {"tool_calls": [{"index": 0, "function": {"arguments": 'ty": "X"}'}}]}


def test_a_call_that_was_cut_off_is_none_that_could_be_made() -> None:
    named = {"type": "function", "function": {"name": "weather"}}
    telling = Telling(tools_of([TOOL], named).reader(HERMES))
    message = message_of([*telling.push('{"city": "'), *telling.end()])
    (call,) = message["tool_calls"]
    assert call["function"] == {"name": "weather", "arguments": '{"city": "'}
    assert telling.reason(Ending.LENGTH) == "length"


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
