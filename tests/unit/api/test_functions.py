"""The older words for tools, and back."""

from __future__ import annotations

from typing import Any

import pytest

from lorry.api.functions import choice_to, messages_from, tools_from
from lorry.api.messages import template_messages
from lorry.errors import InvalidRequest

FUNCTION = {"name": "weather", "parameters": {"type": "object"}}


def test_functions_are_tools() -> None:
    tools = [{"type": "function", "function": FUNCTION}]
    assert tools_from([FUNCTION], "auto") == (tools, "auto")
    named = {"type": "function", "function": {"name": "weather"}}
    assert tools_from([FUNCTION], {"name": "weather"}) == (tools, named)


@pytest.mark.parametrize(
    ("functions", "call", "param"),
    [
        ([{}], None, "functions"),
        ([{"name": "f", "parameters": []}], None, "functions"),
        ([FUNCTION], "required", "function_call"),
        ([FUNCTION], 3, "function_call"),
    ],
)
def test_mistakes_are_told_in_the_words_of_the_request(
    functions: list[Any], call: object, param: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        tools_from(functions, call)
    assert caught.value.param == param


def test_a_round_trip_in_the_older_words() -> None:
    call = {"name": "weather", "arguments": "{}"}
    messages = [
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": None, "function_call": call},
        {"role": "function", "name": "weather", "content": "rain"},
    ]
    _, called, answered = template_messages(messages_from(messages))
    assert called["tool_calls"][0]["function"] == call
    assert answered["role"] == "tool" and answered["content"] == "rain"
    assert answered["tool_call_id"] == called["tool_calls"][0]["id"]


def test_answers() -> None:
    function = {"name": "weather", "arguments": "{}"}
    message = {"role": "assistant", "content": None, "tool_calls": [{"function": function}]}
    got = choice_to({"index": 0, "message": message, "finish_reason": "tool_calls"})
    assert got["message"] == {"role": "assistant", "content": None, "function_call": function}
    assert got["finish_reason"] == "function_call"
    plain = {"index": 0, "delta": {"content": "x"}, "finish_reason": None}
    assert choice_to(plain) == plain
