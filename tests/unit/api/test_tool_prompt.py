"""Tools, calls and results in the words of a prompt."""

from __future__ import annotations

from typing import Any

from lorry.api.tool_prompt import LEAD, PROMPT, carried

TOOLS = [{"type": "function", "function": {"name": "weather"}}, {"type": "function", "x": "ü"}]
SAID = PROMPT.format(
    lead=LEAD,
    tools='{"type": "function", "function": {"name": "weather"}}\n{"type": "function", "x": "ü"}',
)
ASKED = {"role": "user", "content": "And?"}


def call(name: str, arguments: object) -> dict[str, Any]:
    return {"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}}


def test_the_tools_stand_in_the_system_message() -> None:
    assert carried([ASKED], TOOLS, in_system=True) == [{"role": "system", "content": SAID}, ASKED]
    parts = [{"type": "text", "text": "Be "}, {"type": "text", "text": "kind."}]
    for role in ("system", "developer"):
        for content in ("Be kind.", parts):
            given = [{"role": role, "content": content}, ASKED]
            expected = {"role": role, "content": f"Be kind.\n\n{SAID}"}
            assert carried(given, TOOLS, in_system=True) == [expected, ASKED]


def test_the_first_message_has_them_where_there_is_no_system_message() -> None:
    expected = [{"role": "user", "content": f"{SAID}\n\nAnd?"}]
    assert carried([ASKED], TOOLS, in_system=False) == expected


def test_calls_and_results_are_texts() -> None:
    messages = [
        ASKED,
        {
            "role": "assistant",
            "content": "Let me look.",
            "tool_calls": [call("weather", '{"city": "Köln"}'), call("time", {})],
        },
        {"role": "tool", "content": "rain", "tool_call_id": "1"},
        {"role": "tool", "content": [{"type": "text", "text": "noon"}], "tool_call_id": "2"},
        {"role": "user", "content": "Well?"},
        {"role": "assistant", "tool_calls": [call("time", "")]},
    ]
    assert carried(messages, None, in_system=True) == [
        ASKED,
        {
            "role": "assistant",
            "content": "Let me look.\n"
            '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>\n'
            '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>',
        },
        {
            "role": "user",
            "content": "<tool_response>\nrain\n</tool_response>\n"
            "<tool_response>\nnoon\n</tool_response>\nWell?",
        },
        {
            "role": "assistant",
            "content": '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>',
        },
    ]
    assert messages[-1]["tool_calls"]


def test_a_request_may_word_the_beginning() -> None:
    (system, _) = carried([ASKED], TOOLS, in_system=True, lead="Your tools {}:")
    assert system["content"] == SAID.replace(LEAD, "Your tools {}:")
