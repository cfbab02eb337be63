"""Chat messages on their way to a template."""

from __future__ import annotations

from typing import Any

import pytest

from lorry.api.messages import template_messages
from lorry.errors import InvalidRequest, RequestError, UnsupportedParameter


def test_they_are_as_a_template_s_variable_has_them() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "input_text", "text": "b"}]
    assert template_messages(
        [
            {"role": "developer", "content": "be kind"},
            {"role": "user", "content": parts, "name": "Ann"},
            {"role": "assistant", "content": "c", "refusal": None, "audio": None},
        ]
    ) == [
        {"role": "developer", "content": "be kind"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            "name": "Ann",
        },
        {"role": "assistant", "content": "c"},
    ]


def test_tool_calls() -> None:
    function = {"name": "f", "arguments": '{"x": 1}'}
    call = {"id": "1", "type": "function", "function": function}
    assert template_messages(
        [
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "assistant", "tool_calls": [{"function": function}]},
            {"role": "tool", "content": "2", "tool_call_id": "1"},
        ]
    ) == [
        {"role": "assistant", "tool_calls": [call]},
        {"role": "assistant", "tool_calls": [{"type": "function", "function": function}]},
        {"role": "tool", "content": "2", "tool_call_id": "1"},
    ]


@pytest.mark.parametrize(
    ("messages", "kind", "words"),
    [
        ([], InvalidRequest, "empty"),
        ([{"role": "king", "content": "x"}], InvalidRequest, "messages[0].role"),
        ([{"content": "x"}], InvalidRequest, "messages[0].role"),
        ([{"role": "user"}], InvalidRequest, "messages[0].content is required"),
        ([{"role": "user", "content": 3}], InvalidRequest, "a string or a list"),
        ([{"role": "user", "content": [{"type": "text"}]}], InvalidRequest, "[0].text"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
            UnsupportedParameter,
            "image_url",
        ),
        ([{"role": "user", "content": "x", "mood": "sad"}], UnsupportedParameter, "mood"),
        (
            [{"role": "assistant", "tool_calls": [{"id": 5, "function": {"name": "f"}}]}],
            InvalidRequest,
            "tool_calls[0].id",
        ),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}],
            InvalidRequest,
            "not JSON",
        ),
    ],
)
def test_refused(messages: list[dict[str, Any]], kind: type[RequestError], words: str) -> None:
    with pytest.raises(kind) as caught:
        template_messages(messages)
    assert words in caught.value.message
    assert caught.value.param == "messages"
