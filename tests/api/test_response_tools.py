"""`/v1/responses`: tools and their calls."""

from __future__ import annotations

import json
from typing import Any

import pytest

from api.live import Live
from api.other_words import CALLS, tokens
from api.test_chat import FORECAST, TEMPLATE
from api.test_responses import events, post, respond

TOOL = {"type": "function", **FORECAST["function"], "strict": True}


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "forecast"}])
def test_a_tool_is_called_and_answered(
    live: Live, monkeypatch: pytest.MonkeyPatch, choice: Any
) -> None:
    monkeypatch.setattr(live.server.tokenizer, "chat_template", TEMPLATE)
    asked = {"tools": [TOOL, {"type": "web_search"}], "tool_choice": choice}
    answer = post(live, max_output_tokens=200, **asked)
    assert answer.headers["x-lorry-ignored"] == "tools.web_search"
    got = answer.json()
    (call,) = got["output"]
    assert (call["type"], call["name"], call["status"]) == (
        "function_call",
        "forecast",
        "completed",
    )
    assert json.loads(call["arguments"])["days"] in (1, 2)
    # Those that the model was offered.
    assert got["tools"] == [TOOL] and got["status"] == "completed"

    told = events(live, max_output_tokens=200, **asked)
    kinds = [event["type"].removeprefix("response.") for event in told]
    assert kinds[2] == "output_item.added" and told[2]["item"]["arguments"] == ""
    assert set(kinds[3:-3]) == {"function_call_arguments.delta"}
    assert kinds[-3:] == ["function_call_arguments.done", "output_item.done", "completed"]
    arguments = "".join(event["delta"] for event in told[3:-3])
    assert arguments == told[-3]["arguments"] == call["arguments"]
    assert told[-1]["response"]["output"] == [told[-2]["item"]]

    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"}
    more = respond(live, input=[result], previous_response_id=got["id"], tools=[TOOL])
    assert more["usage"]["input_tokens"] == tokens(live, "forecast sunny")


def test_a_function_in_a_namespace_is_called_by_it_and_its_name(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Codex sends some."""
    monkeypatch.setattr(live.server.tokenizer, "chat_template", TEMPLATE)
    agents = {"type": "namespace", "name": "agents", "description": "Helpers", "tools": [TOOL]}
    choice = {"type": "function", "name": "forecast", "namespace": "agents"}
    asked = {"tools": [TOOL, agents], "tool_choice": choice, "max_output_tokens": 200}
    got = respond(live, **asked)
    (call,) = got["output"]
    assert (call["name"], call["namespace"]) == ("forecast", "agents")
    assert got["tools"] == [TOOL, agents]
    told = events(live, **asked)
    for event in told[2], told[-2]:
        assert (event["item"]["name"], event["item"]["namespace"]) == ("forecast", "agents")
    plain = respond(live, **{**asked, "tool_choice": {"type": "function", "name": "forecast"}})
    assert "namespace" not in plain["output"][0]

    template = "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ c.function.name }} "
    template += "{% endfor %}{% endfor %}{{ messages[-1].name }}"
    monkeypatch.setattr(live.server.tokenizer, "chat_template", template)
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"}
    more = respond(live, input=[call, result], instructions=None)
    assert more["usage"]["input_tokens"] == tokens(live, "agents__forecast agents__forecast")


def test_a_conversation_with_calls_reaches_the_template(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live.server.tokenizer, "chat_template", CALLS)
    items = [
        {"role": "user", "content": "weather"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "A"}]},
        {"type": "function_call", "call_id": "a", "name": "f", "arguments": '{"x": 1}'},
        {"type": "function_call", "call_id": "b", "name": "g", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "b", "output": "B"},
        {
            "type": "function_call_output",
            "call_id": "a",
            "output": [{"type": "input_text", "text": "C"}],
        },
    ]
    got = respond(live, input=items, instructions=None)
    rendered = '[user  weather][assistant f{"x": 1} g{}  A][tool g B][tool f C]'
    assert got["usage"]["input_tokens"] == tokens(live, rendered)
