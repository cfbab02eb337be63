"""`/v1/responses`."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from api.counted import counts
from api.live import Live, refused
from api.other_words import typed_events
from api.test_chat import chat
from api.test_reasoning import REASONS

INPUT = "How do I cook rice?"


def post(live: Live, **body: Any) -> httpx.Response:
    given = {"input": INPUT, "instructions": "Answer.", "temperature": 0, "max_output_tokens": 8}
    return live.http.post("/v1/responses", json={**given, **body})


def respond(live: Live, **body: Any) -> dict[str, Any]:
    answer = post(live, **body)
    assert answer.status_code == 200, answer.text
    return answer.json()  # type: ignore[no-any-return]


def events(live: Live, **body: Any) -> list[dict[str, Any]]:
    found = typed_events(post(live, stream=True, **body))
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


def text_of(response: dict[str, Any]) -> str:
    (item,) = response["output"]
    assert (item["type"], item["role"]) == ("message", "assistant")
    (part,) = item["content"]
    assert part["type"] == "output_text" and part["annotations"] == []
    return str(part["text"])


USER = {"role": "user", "content": INPUT}


def said_in_chat(live: Live, *messages: dict[str, Any], **extra: Any) -> dict[str, Any]:
    return chat(live, messages=[{"role": "system", "content": "Answer."}, *messages], **extra)


def test_the_answer_is_chat_s(live: Live) -> None:
    for model in (None, "pirate"):
        expected = said_in_chat(live, USER, model=model)
        got = respond(live, model=model)
        assert text_of(got) == expected["choices"][0]["message"]["content"]
        assert (got["object"], got["model"]) == ("response", expected["model"])
        assert got["adapters"] == expected["adapters"]
        usage = got["usage"]
        assert usage["input_tokens"] == expected["usage"]["prompt_tokens"]
        assert usage["output_tokens"] == expected["usage"]["completion_tokens"] == 8
        assert usage["total_tokens"] == expected["usage"]["total_tokens"]
        assert (got["status"], got["incomplete_details"]) == (
            "incomplete",
            {"reason": "max_output_tokens"},
        )
        assert got["output"][0]["status"] == "incomplete"


def test_an_adapter_wins_over_the_model_as_in_chat(live: Live) -> None:
    spec = [{"name": "pirate", "scale": 0.5}, "legal"]
    got = respond(live, model="tiny", adapter=spec)
    assert [(one["name"], one["scale"]) for one in got["adapters"]] == [
        ("pirate", 0.5),
        ("legal", 1.0),
    ]
    expected = said_in_chat(live, USER, adapter=spec)["choices"][0]["message"]["content"]
    assert text_of(got) == expected


def test_an_answer_that_ends_is_completed(live: Live) -> None:
    text = text_of(respond(live))
    assert len(text) > 2
    got = respond(live, stop=text[1:3])
    assert (got["status"], got["incomplete_details"]) == ("completed", None)
    assert text_of(got) == text[: text.index(text[1:3])]
    assert got["completed_at"] >= got["created_at"]


def test_a_stream_tells_every_piece_and_ends_with_the_whole(live: Live) -> None:
    whole = respond(live)
    got = events(live)
    kinds = [event["type"].removeprefix("response.") for event in got]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert set(kinds[4:-4]) == {"output_text.delta"}
    done = ["output_text.done", "content_part.done", "output_item.done", "incomplete"]
    assert kinds[-4:] == done
    assert got[0]["response"]["status"] == "in_progress" and got[0]["response"]["output"] == []
    assert got[2]["item"]["content"] == [] and got[3]["part"]["text"] == ""
    text = "".join(event["delta"] for event in got if event["type"].endswith(".delta"))
    assert text == text_of(whole) == got[-4]["text"] == got[-3]["part"]["text"]
    last = got[-1]["response"]
    assert last["output"] == [got[-2]["item"]]
    assert text_of(last) == text and counts(last) == counts(whole)
    assert {event["item_id"] for event in got if "item_id" in event} == {last["output"][0]["id"]}
    assert live.http.get(f"/v1/responses/{last['id']}").json() == last


def test_structured_output(live: Live) -> None:
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    format = {"type": "json_schema", "name": "answer", "schema": schema, "strict": True}
    got = respond(live, text={"format": format}, max_output_tokens=100)
    assert json.loads(text_of(got))["ok"] in (True, False)
    assert got["status"] == "completed" and got["text"]["format"] == format


def test_reasoning_is_an_item_of_its_own(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live.server.tokenizer, "chat_template", REASONS)
    got = respond(live)
    (item,) = got["output"]
    assert item["type"] == "reasoning" and item["summary"] == []
    (part,) = item["content"]
    assert part["type"] == "reasoning_text" and part["text"]
    told = events(live)
    pieces = [event for event in told if event["type"] == "response.reasoning_text.delta"]
    assert "".join(event["delta"] for event in pieces) == part["text"]
    thought = said_in_chat(live, USER)["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert got["usage"]["output_tokens_details"] == {"reasoning_tokens": thought} and thought > 0
    assert counts(told[-1]["response"]) == counts(got)
    assert text_of(respond(live, reasoning={"effort": "none"}))
    # It is left out of the next prompt.
    more = respond(live, input="And then?", previous_response_id=got["id"])
    again = respond(live, input=[USER, {"role": "user", "content": "And then?"}])
    assert more["usage"]["input_tokens"] == again["usage"]["input_tokens"]


def test_logprobs(live: Live) -> None:
    include = ["message.output_text.logprobs"]
    part = respond(live, include=include, top_logprobs=2)["output"][0]["content"][0]
    assert len(part["logprobs"]) == 8
    assert all(len(one["top_logprobs"]) == 2 for one in part["logprobs"])
    told = events(live, include=include, top_logprobs=2)
    pieces = [
        one
        for event in told
        if event["type"] == "response.output_text.delta"
        for one in event["logprobs"]
    ]
    assert [one["token"] for one in pieces] == [one["token"] for one in part["logprobs"]]
    assert respond(live)["output"][0]["content"][0]["logprobs"] == []
    assert respond(live, top_logprobs=2)["output"][0]["content"][0]["logprobs"] == part["logprobs"]


def test_what_clients_send_by_themselves_is_accepted(live: Live) -> None:
    idle = {
        "include": ["reasoning.encrypted_content"],
        "reasoning": {"effort": "medium", "summary": "auto"},
        "truncation": "disabled",
        "metadata": {"topic": "rice"},
        "parallel_tool_calls": True,
        "prompt_cache_key": "x",
        "safety_identifier": "y",
        "service_tier": "auto",
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "tools": [],
        "tool_choice": "auto",
        "background": False,
        "conversation": None,
        "prompt": None,
        "max_tool_calls": None,
        "client_metadata": {},
        "stream_options": {"include_obfuscation": False},
        "user": "ann",
    }
    got = respond(live, **idle)
    assert text_of(got) == text_of(respond(live))
    assert got["metadata"] == {"topic": "rice"} and got["user"] == "ann"
    assert got["reasoning"] == {"effort": "medium", "summary": "auto"}


@pytest.mark.parametrize(
    ("extra", "param", "words"),
    [
        ({"input": None}, "input", "input is empty"),
        ({"input": []}, "input", "input is empty"),
        ({"input": 5}, None, "input"),
        ({"input": [{"role": "x", "content": "y"}]}, "input", "input[0].role"),
        ({"input": [{"role": "user"}]}, "input", "input[0].content"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input",
            'input[0].content[0]: parts of type "input_image"',
        ),
        ({"input": [{"type": "computer_call"}]}, "input", "'computer_call'"),
        ({"input": [{"type": "item_reference", "id": "msg_x_0"}]}, "input", "send the item"),
        (
            {"input": [{"type": "function_call", "call_id": "a", "name": "f", "arguments": "{"}]},
            "input",
            "input[0].arguments is not JSON",
        ),
        ({"input": "rice " * 600}, "input", "prompt is too long"),
        ({"tools": [{"type": "mcp", "server_label": "x"}]}, "tools", '"mcp"'),
        ({"tools": [{"type": "custom", "name": "x"}]}, "tools", 'tools[0]: tools of type "custom"'),
        ({"tool_choice": {"type": "custom", "name": "x"}}, "tool_choice", 'the type "custom"'),
        (
            {"input": [{"type": "custom_tool_call", "call_id": "1", "name": "x", "input": "y"}]},
            "input",
            "input[0]: items of type 'custom_tool_call' are not served",
        ),
        ({"tools": [{"type": "namespace", "name": "x"}]}, "tools", "tools[0] must have"),
        (
            {"tools": [{"type": "namespace", "name": "x", "tools": [5]}]},
            "tools",
            "tools[0].tools[0]",
        ),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice", '"file_search"'),
        ({"n": 2}, "n", "one answer"),
        ({"prompt_logprobs": 0}, "prompt_logprobs", "is not served here"),
        ({"return_token_ids": True}, "return_token_ids", "must be False"),
        ({"best_of": 2, "stream": True}, "best_of", "it cannot stream"),
        ({"response_format": {"type": "x"}}, "response_format", "response_format.type"),
        ({"max_output_tokens": 0}, "max_output_tokens", "must be from 1"),
        ({"conversation": "conv_1"}, "conversation", "conversation is not served here"),
        ({"text": {"format": {"type": "nothing"}}}, "text.format", "text.format.type"),
        ({"previous_response_id": "resp_1"}, "previous_response_id", "resp_1"),
    ],
)
def test_bad_input(live: Live, extra: dict[str, Any], param: str | None, words: str) -> None:
    answer = post(live, **extra)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert words in error["message"], error
    if param is not None:
        assert error["param"] == param


def test_an_unknown_model_is_not_found(live: Live) -> None:
    refused(post(live, model="nobody"), 404, "model_not_found")
