"""`/v1/messages` and `/v1/messages/count_tokens`."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from api.counted import counts
from api.live import Live
from api.other_words import CALLS, tokens, typed_events
from api.test_chat import FORECAST, TEMPLATE, chat
from api.test_reasoning import REASONS
from lorry.api.errors import respond
from lorry.errors import QueueFull, ShuttingDown
from lorry_adapters.errors import OutOfMemory

USER = {"role": "user", "content": "How do I cook rice?"}
TOOL = {
    "name": "forecast",
    "description": "The weather",
    "input_schema": FORECAST["function"]["parameters"],
}


def post(live: Live, path: str = "/v1/messages", **body: Any) -> httpx.Response:
    given = {"model": "tiny", "messages": [USER], "system": "Answer.", "temperature": 0}
    if path == "/v1/messages":
        given["max_tokens"] = 8
    headers = {"anthropic-version": "2023-06-01", "anthropic-beta": "anything"}
    return live.http.post(path, json={**given, **body}, headers=headers)


def message(live: Live, **body: Any) -> dict[str, Any]:
    answer = post(live, **body)
    assert answer.status_code == 200, answer.text
    return answer.json()  # type: ignore[no-any-return]


def events(live: Live, **body: Any) -> list[dict[str, Any]]:
    return typed_events(post(live, stream=True, **body))


def count(live: Live, **body: Any) -> int:
    answer = post(live, "/v1/messages/count_tokens", **body)
    assert answer.status_code == 200, answer.text
    assert answer.json().keys() == {"input_tokens"}
    return int(answer.json()["input_tokens"])


def refused(answer: httpx.Response, status: int, kind: str, code: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert body.keys() == {"type", "error"} and body["type"] == "error"
    error: dict[str, Any] = body["error"]
    assert (error["type"], error["code"]) == (kind, code)
    return error


def test_the_answer_is_chat_s(live: Live) -> None:
    for model in ("tiny", "pirate"):
        expected = chat(live, model=model)
        got = message(live, model=model)
        assert (got["type"], got["role"], got["model"]) == ("message", "assistant", model)
        said = expected["choices"][0]["message"]["content"]
        assert got["content"] == [{"type": "text", "text": said}]
        assert (got["stop_reason"], got["stop_sequence"]) == ("max_tokens", None)
        assert counts(got)["input_tokens"] == expected["usage"]["prompt_tokens"]
        assert got["usage"]["output_tokens"] == 8
        assert got["adapters"] == expected["adapters"]
    blocks = [{"type": "text", "text": "Answer.", "cache_control": {"type": "ephemeral"}}]
    asked = [{"role": "user", "content": [{"type": "text", "text": USER["content"]}]}]
    assert message(live, system=blocks, messages=asked)["content"] == message(live)["content"]


def test_an_adapter_wins_over_the_model_as_in_chat(live: Live) -> None:
    spec = {"name": "pirate", "scale": 0.5}
    got = message(live, adapter=spec)
    assert [(one["name"], one["scale"]) for one in got["adapters"]] == [("pirate", 0.5)]
    said = chat(live, adapter=spec)["choices"][0]["message"]["content"]
    assert got["content"][0]["text"] == said


def test_a_stream_tells_every_piece(live: Live) -> None:
    whole = message(live)
    got = events(live)
    kinds = [event["type"] for event in got]
    assert kinds[:3] == ["message_start", "ping", "content_block_start"]
    assert set(kinds[3:-3]) == {"content_block_delta"}
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    start = got[0]["message"]
    assert start["content"] == [] and start["stop_reason"] is None
    assert counts(start)["input_tokens"] == counts(whole)["input_tokens"]
    assert got[2]["content_block"] == {"type": "text", "text": ""}
    assert {event["index"] for event in got[2:-2]} == {0}
    assert {event["delta"]["type"] for event in got[3:-3]} == {"text_delta"}
    text = "".join(event["delta"]["text"] for event in got[3:-3])
    assert text == whole["content"][0]["text"]
    assert got[-2]["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}
    assert counts(got[-2]) == counts(whole)


def test_the_likeliest_of_several_is_given(live: Live) -> None:
    later = False
    for seed in range(4):
        sampled = {"temperature": 1.0, "seed": seed}
        got = message(live, best_of=4, **sampled)
        expected = chat(live, best_of=4, **sampled)
        assert got["content"][0]["text"] == expected["choices"][0]["message"]["content"]
        assert got["usage"]["output_tokens"] == expected["usage"]["completion_tokens"] == 4 * 8
        assert counts(got)["input_tokens"] == expected["usage"]["prompt_tokens"]
        later |= got["content"] != message(live, **sampled)["content"]
    assert later, "the first was the likeliest each time"


def test_a_stop_sequence_is_named(live: Live) -> None:
    text = message(live)["content"][0]["text"]
    stop = text[1:3]
    got = message(live, stop_sequences=["never there", stop])
    assert (got["stop_reason"], got["stop_sequence"]) == ("stop_sequence", stop)
    assert got["content"][0]["text"] == text[: text.index(stop)]
    told = events(live, stop_sequences=[stop])
    assert told[-2]["delta"] == {"stop_reason": "stop_sequence", "stop_sequence": stop}
    for chat_s in (stop, [stop]):
        assert message(live, stop=chat_s, stop_sequences=["never there"])["stop_sequence"] == stop


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "forecast"}])
def test_a_tool_is_used_and_answers(
    live: Live, monkeypatch: pytest.MonkeyPatch, choice: Any
) -> None:
    monkeypatch.setattr(live.server.tokenizer, "chat_template", TEMPLATE)
    web = {"type": "web_search_20250305", "name": "web_search"}
    asked = {"tools": [TOOL, web], "tool_choice": choice, "max_tokens": 200}
    answer = post(live, **asked)
    assert answer.headers["x-lorry-ignored"] == "tools.web_search_20250305"
    got = answer.json()
    (block,) = got["content"]
    assert (block["type"], block["name"]) == ("tool_use", "forecast")
    assert block["input"]["days"] in (1, 2)
    assert got["stop_reason"] == "tool_use"

    told = events(live, **asked)
    kinds = [event["type"] for event in told]
    assert kinds[2] == "content_block_start" and told[2]["content_block"]["input"] == {}
    pieces = [event["delta"] for event in told if event["type"] == "content_block_delta"]
    assert {piece["type"] for piece in pieces} == {"input_json_delta"}
    assert json.loads("".join(piece["partial_json"] for piece in pieces)) == block["input"]
    assert told[-2]["delta"]["stop_reason"] == "tool_use"

    result = {"type": "tool_result", "tool_use_id": block["id"], "content": "sunny"}
    messages = [USER, {"role": "assistant", "content": [block]}]
    messages.append({"role": "user", "content": [result]})
    more = message(live, messages=messages, tools=[TOOL])
    assert counts(more)["input_tokens"] == tokens(live, "forecast sunny")


def test_a_use_that_is_cut_off_has_no_input(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live.server.tokenizer, "chat_template", TEMPLATE)
    choice = {"type": "tool", "name": "forecast"}
    got = message(live, tools=[TOOL], tool_choice=choice, max_tokens=4)
    assert got["stop_reason"] == "max_tokens"
    (block,) = got["content"]
    assert (block["type"], block["name"], block["input"]) == ("tool_use", "forecast", {})


def test_one_tool_is_used_at_a_time_where_that_is_asked_for(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live.server.tokenizer, "chat_template", TEMPLATE)
    call = '<tool_call>{"name": "forecast", "arguments": {"days": 1}}</tool_call>'
    asked = {"tools": [TOOL], "guided_choice": [call * 2], "max_tokens": 400}
    for choice, uses in (
        ({"type": "auto"}, 2),
        ({"type": "auto", "disable_parallel_tool_use": True}, 1),
    ):
        content = message(live, tool_choice=choice, **asked)["content"]
        assert [block["type"] for block in content].count("tool_use") == uses


def test_a_conversation_with_tools_reaches_the_template(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live.server.tokenizer, "chat_template", CALLS)
    messages = [
        {"role": "user", "content": "weather"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm", "signature": "x"},
                {"type": "text", "text": "A"},
                {"type": "tool_use", "id": "a", "name": "f", "input": {"x": 1}},
                {"type": "tool_use", "id": "b", "name": "g", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "a", "content": "B"},
                {
                    "type": "tool_result",
                    "tool_use_id": "b",
                    "content": [{"type": "text", "text": "C"}],
                    "is_error": True,
                },
                {"type": "text", "text": "D"},
            ],
        },
    ]
    rendered = '[system  Answer.][user  weather][assistant f{"x": 1} g{}  A][tool f B][tool g C]'
    assert count(live, messages=messages) == tokens(live, rendered + "[user  D]")


def test_the_answer_goes_on_with_what_the_assistant_has_begun(live: Live) -> None:
    system, begun = {"role": "system", "content": "Answer."}, {"role": "assistant", "content": "So"}
    got = message(live, messages=[USER, begun])
    expected = chat(live, messages=[system, USER, begun], continue_final_message=True)
    assert got["content"][0]["text"] == expected["choices"][0]["message"]["content"]
    assert counts(got)["input_tokens"] == expected["usage"]["prompt_tokens"]
    assert counts(got)["input_tokens"] < count(live, messages=[USER, begun, USER])


def test_reasoning_is_a_block_of_its_own(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live.server.tokenizer, "chat_template", REASONS)
    (block,) = message(live)["content"]
    assert block["type"] == "thinking" and block["signature"] == "" and block["thinking"]
    told = events(live)
    assert told[2]["content_block"] == {"type": "thinking", "thinking": "", "signature": ""}
    pieces = [event["delta"] for event in told if event["type"] == "content_block_delta"]
    assert "".join(piece["thinking"] for piece in pieces) == block["thinking"]
    (block,) = message(live, thinking={"type": "disabled"})["content"]
    assert block["type"] == "text"


def test_structured_output(live: Live) -> None:
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    config = {"format": {"type": "json_schema", "schema": schema}}
    for asked in ({"output_config": config}, {"output_format": config["format"]}):
        got = message(live, **asked, max_tokens=100)
        assert json.loads(got["content"][0]["text"])["ok"] in (True, False)
        assert got["stop_reason"] == "end_turn"


def test_thinking_is_the_template_s(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    template = "{{ messages[-1].content }}{% if enable_thinking %} long{% endif %}"
    monkeypatch.setattr(live.server.tokenizer, "chat_template", template)
    plain = count(live)
    assert count(live, thinking={"type": "disabled"}) == plain
    assert count(live, thinking={"type": "enabled", "budget_tokens": 1024}) > plain
    assert count(live, thinking={"type": "adaptive"}) > plain


def test_tokens_are_counted_as_they_are_used(live: Live) -> None:
    assert count(live) == counts(message(live))["input_tokens"]
    assert count(live, max_tokens=8, tool_choice={"type": "auto"}) == count(live)
    # More than the model takes can be counted all the same.
    assert count(live, messages=[{"role": "user", "content": "rice " * 600}]) > 600


def test_what_ends_the_reasoning_of_a_bound_answer_is_counted(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live.server.tokenizer, "chat_template", REASONS)
    config = {"format": {"type": "json_schema", "schema": {"type": "object"}}}
    for bound in (
        {"output_config": config},
        {"tools": [TOOL], "tool_choice": {"type": "any"}},
    ):
        counted = count(live, **bound)
        assert counted == counts(message(live, **bound))["input_tokens"]
        assert counted > count(live, **{**bound, "output_config": None, "tool_choice": None})


def test_a_tool_reaches_the_template_whole(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    template = (
        "{% for one in tools or [] %}{{ one.function.name }} {{ one.function.description }} "
        "{{ one.function.strict }} {{ one.function.parameters | tojson }}{% endfor %}"
        "{{ messages[-1].content }}"
    )
    monkeypatch.setattr(live.server.tokenizer, "chat_template", template)
    shown = f"forecast The weather True {json.dumps(TOOL['input_schema'])}{USER['content']}"
    assert count(live, tools=[{**TOOL, "strict": True}]) == tokens(live, shown)


def test_what_clients_send_by_themselves_is_accepted(live: Live) -> None:
    idle = {
        "metadata": {"user_id": "ann"},
        "service_tier": "auto",
        "thinking": {"type": "disabled"},
        "tools": [],
        "cache_control": {"type": "ephemeral"},
        "container": None,
        "mcp_servers": [],
        "output_config": {"effort": "high"},
        "stop_sequences": [],
    }
    assert message(live, **idle)["content"] == message(live)["content"]


CALL = {"type": "tool_use", "id": "a", "name": "f", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "a"}
FORMAT = {"type": "json_schema", "schema": {"type": "object"}}
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}


@pytest.mark.parametrize(
    ("extra", "param", "words"),
    [
        ({"messages": []}, "messages", "messages is empty"),
        ({"messages": [{"role": "x", "content": "y"}]}, "messages", "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages", "messages[0].content must be a string"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages", '"image"'),
        (
            {"messages": [USER, {"role": "assistant", "content": [CALL]}]},
            "messages",
            "messages: the last message must be",
        ),
        ({"messages": [{"role": "user", "content": "rice " * 600}]}, "messages", "too long"),
        ({"system": [IMAGE]}, "system", "system[0]"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools", '"bash_20250124"'),
        ({"tool_choice": {"type": "some"}}, "tool_choice", "tool_choice.type"),
        ({"output_config": {"format": {"type": "x"}}}, "output_config", "output_config.format"),
        ({"output_format": {"type": "x"}}, "output_format", "output_format must be"),
        (
            {"output_format": FORMAT, "output_config": {"format": {**FORMAT, "schema": {}}}},
            "output_format",
            "output_format and output_config.format differ",
        ),
        ({"max_tokens": None}, "max_tokens", "max_tokens"),
        ({"max_tokens": 0}, "max_tokens", "max_tokens"),
        ({"stop_sequences": ["x" * 2000]}, "stop_sequences", "stop_sequences"),
        (
            {"messages": [{"role": "user", "content": [{**RESULT, "content": {}}]}]},
            "messages",
            "messages[0].content[0].content must be a string or a list",
        ),
        ({"n": 2}, "n", "one message"),
        ({"prompt_logprobs": 0}, "prompt_logprobs", "is not served here"),
        ({"return_token_ids": True}, "return_token_ids", "must be False"),
        ({"best_of": 2, "stream": True}, "best_of", "it cannot stream"),
        ({"response_format": {"type": "x"}}, "response_format", "response_format.type"),
        ({"temperature": "hot"}, "temperature", "temperature"),
    ],
)
def test_bad_input(live: Live, extra: dict[str, Any], param: str, words: str) -> None:
    answer = post(live, **extra)
    assert answer.status_code == 400, answer.text
    body = answer.json()
    assert body["type"] == "error"
    assert body["error"]["type"] == "invalid_request_error"
    assert words in body["error"]["message"]
    assert body["error"]["param"] == param


def test_errors_have_anthropic_s_shape_and_statuses(live: Live) -> None:
    refused(post(live, model="nobody"), 404, "not_found_error", "model_not_found")
    refused(live.http.get("/v1/messages"), 405, "invalid_request_error", "method_not_allowed")
    answer = live.http.post(
        "/v1/messages", content=b"{", headers={"content-type": "application/json"}
    )
    refused(answer, 400, "invalid_request_error", "malformed_body")
    refused(post(live, system="x" * (9 << 20)), 413, "request_too_large", "body_too_large")
    busy = respond("/v1/messages", ShuttingDown("later"))
    assert (busy.status_code, busy.headers["retry-after"]) == (529, "5")
    assert json.loads(bytes(busy.body))["error"]["type"] == "overloaded_error"
    full = respond("/v1/messages", QueueFull("later", retry_after=3))
    assert (full.status_code, full.headers["retry-after"]) == (429, "3")
    assert json.loads(bytes(full.body))["error"]["type"] == "rate_limit_error"
    memory = respond("/v1/messages", OutOfMemory("no memory"))
    assert memory.status_code == 507
    assert json.loads(bytes(memory.body))["error"]["type"] == "api_error"
