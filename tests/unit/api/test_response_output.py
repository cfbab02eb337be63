"""Output items from the deltas of a chat."""

from __future__ import annotations

from typing import Any

from lorry.api.response_output import Output


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


def test_thoughts_a_text_and_two_calls_whose_arguments_come_in_pieces() -> None:
    output = Output("k")
    events = output.push({"role": "assistant", "content": ""}, None)
    assert events == []
    events += output.push({"reasoning_content": "Hm"}, None)
    events += output.push({"reasoning_content": "m"}, None)
    events += output.push({"content": "Let me see."}, None)
    first = {"index": 0, "id": "call_a", "type": "function"}
    events += output.push(
        {"tool_calls": [{**first, "function": {"name": "f", "arguments": ""}}]}, None
    )
    for piece in ('{"x"', ": 1}"):
        events += output.push(
            {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}, None
        )
    second = {"index": 1, "id": "call_b", "type": "function"}
    events += output.push(
        {"tool_calls": [{**second, "function": {"name": "g", "arguments": "{}"}}]}, None
    )
    events += output.finish("tool_calls")
    assert kinds(events) == [
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
    ]
    thought, text, f, g = output.items
    assert thought["content"] == [{"type": "reasoning_text", "text": "Hmm"}]
    assert thought["summary"] == []
    assert text["content"][0]["text"] == "Let me see."
    assert (f["name"], f["call_id"], f["arguments"]) == ("f", "call_a", '{"x": 1}')
    assert (g["name"], g["call_id"], g["arguments"]) == ("g", "call_b", "{}")
    assert {item["status"] for item in (text, f, g)} == {"completed"}
    indices = [event["output_index"] for event in events]
    assert indices == [0] * 7 + [1] * 6 + [2] * 5 + [3] * 4
    added = [event["item"] for event in events if event["type"].endswith("item.added")]
    assert added[2]["arguments"] == "" and added[1]["content"] == []


def test_an_answer_without_a_text_is_an_empty_one() -> None:
    output = Output("k")
    assert kinds(output.finish("stop")) == [
        "output_item.added",
        "content_part.added",
        "output_text.done",
        "content_part.done",
        "output_item.done",
    ]
    (item,) = output.items
    assert item["content"][0]["text"] == "" and item["status"] == "completed"


def test_what_was_cut_is_incomplete() -> None:
    output = Output("k")
    output.push({"content": "so"}, None)
    output.finish("length")
    assert output.items[0]["status"] == "incomplete"


def test_a_call_s_logprobs_make_no_message() -> None:
    output = Output("k")
    function = {"name": "f", "arguments": "{}"}
    call = {"index": 0, "id": "call_a", "type": "function", "function": function}
    output.push({"tool_calls": [call]}, {"content": [{"token": "{}", "logprob": -1.0}]})
    output.finish("tool_calls")
    assert [item["type"] for item in output.items] == ["function_call"]
