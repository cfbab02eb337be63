"""`/v1/chat/completions`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from api.counted import counts
from api.live import Live

MESSAGES = [
    {"role": "system", "content": "Answer."},
    {"role": "user", "content": "How do I cook rice?"},
]
CUSTOM = {"type": "custom", "id": "call_1", "custom": {"name": "code", "input": "x"}}
"""OpenAI's tools of free text: one, a choice of it, and a call of it."""
RENDERED = (
    "<|im_start|>system\nAnswer.<|im_end|>\n"
    "<|im_start|>user\nHow do I cook rice?<|im_end|>\n<|im_start|>assistant\n"
)


def chat(live: Live, **extra: Any) -> dict[str, Any]:
    body = {"model": "tiny", "messages": MESSAGES, "temperature": 0, "max_tokens": 8, **extra}
    answer = live.http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()  # type: ignore[no-any-return]


def chunks(live: Live, **extra: Any) -> list[dict[str, Any]]:
    body = {"messages": MESSAGES, "temperature": 0, "max_tokens": 8, "stream": True, **extra}
    answer = live.http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    frames = answer.text.split("\n\n")
    assert frames[-2:] == ["data: [DONE]", ""]
    return [json.loads(frame.removeprefix("data: ")) for frame in frames[:-2]]


def prompt_ids(live: Live) -> list[int]:
    body = {"inputs": RENDERED, "add_special_tokens": False}
    return [one["id"] for one in live.http.post("/tokenize", json=body).json()]


def test_the_answer_is_that_of_the_rendered_template(live: Live) -> None:
    answer = chat(live, model="legal")
    assert answer["object"] == "chat.completion"
    choice = answer["choices"][0]
    assert choice.keys() == {"index", "message", "logprobs", "finish_reason", "stop_reason"}
    body = {"model": "legal", "prompt": prompt_ids(live), "temperature": 0, "max_tokens": 8}
    plain = live.http.post("/v1/completions", json=body).json()
    assert choice["message"] == {"role": "assistant", "content": plain["choices"][0]["text"]}
    assert counts(answer) == counts(plain)
    assert answer["adapters"] == plain["adapters"]


def test_without_a_limit_there_is_all_the_room(live: Live) -> None:
    answer = chat(live, max_tokens=None, ignore_eos=True)
    assert answer["usage"]["total_tokens"] == 512
    assert answer["choices"][0]["finish_reason"] == "length"
    assert chat(live, max_completion_tokens=3)["usage"]["completion_tokens"] == 3


def test_logprobs(live: Live) -> None:
    content = chat(live, logprobs=True, top_logprobs=2)["choices"][0]["logprobs"]["content"]
    assert len(content) == 8
    for one in content:
        assert one.keys() == {"token", "logprob", "bytes", "top_logprobs"}
        assert one["token"] == one["top_logprobs"][0]["token"]
        assert len(one["top_logprobs"]) == 2
    joined = bytes(byte for one in content for byte in one["bytes"])
    assert joined.decode("utf-8", "replace") == chat(live)["choices"][0]["message"]["content"]
    assert chat(live, logprobs=True)["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []


def test_streams(live: Live) -> None:
    asked = {"n": 2, "temperature": 1.0, "seed": 8, "logprobs": True, "top_logprobs": 1}
    whole = chat(live, model="pirate", **asked)
    got = chunks(live, model="pirate", stream_options={"include_usage": True}, **asked)
    *parts, last = got
    assert last["choices"] == [] and counts(last) == counts(whole)
    assert got[0]["adapters"] == last["adapters"] == whole["adapters"]
    for index in range(2):
        mine = [one["choices"][0] for one in parts if one["choices"][0]["index"] == index]
        assert mine[0]["delta"] == {"role": "assistant", "content": ""}
        assert mine[-1]["delta"] == {} and mine[-1]["finish_reason"] == "length"
        assert all(one["finish_reason"] is None for one in mine[:-1])
        text = "".join(one["delta"].get("content", "") for one in mine)
        assert text == whole["choices"][index]["message"]["content"]
        logprobs = [one for part in mine if part["logprobs"] for one in part["logprobs"]["content"]]
        expected = whole["choices"][index]["logprobs"]["content"]
        assert [one["bytes"] for one in logprobs] == [one["bytes"] for one in expected]
        assert [one["logprob"] for one in logprobs] == pytest.approx(
            [one["logprob"] for one in expected], abs=1e-4
        )


def test_json(live: Live) -> None:
    answer = chat(
        live,
        response_format={
            "type": "json_schema",
            "json_schema": {
                "name": "answer",
                "strict": True,
                "schema": {
                    "type": "object",
                    "properties": {"ok": {"type": "boolean"}},
                    "required": ["ok"],
                    "additionalProperties": False,
                },
            },
        },
        max_tokens=100,
    )
    assert json.loads(answer["choices"][0]["message"]["content"])["ok"] in (True, False)


def test_instructions_of_a_developer_are_a_system_message_where_the_template_knows_none(
    live: Live,
) -> None:
    messages = [{**MESSAGES[0], "role": "developer"}, MESSAGES[1]]
    assert chat(live, messages=messages)["choices"] == chat(live)["choices"]


def test_a_template_that_takes_parts_only(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for part in m.content %}"
        "{{ part.text }}{% endfor %}<|im_end|>\n{% endfor %}<|im_start|>assistant{{ '\\n' }}"
    )
    expected = chat(live)["choices"]
    monkeypatch.setattr(live.server.tokenizer, "chat_template", template)
    assert chat(live)["choices"] == expected
    parts = [{"type": "text", "text": "How do I "}, {"type": "text", "text": "cook rice?"}]
    messages = [MESSAGES[0], {"role": "user", "content": parts}]
    assert chat(live, messages=messages)["choices"] == expected


def test_documents_need_a_template_that_takes_them(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = [{"title": "Rice", "text": "Boil it."}]
    body = {"messages": MESSAGES, "documents": documents}
    answer = live.http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "documents"
    template = "{% for d in documents or [] %}{{ d.text }}{% endfor %}{{ messages[-1].content }}"
    monkeypatch.setattr(live.server.tokenizer, "chat_template", template)
    more = chat(live, documents=documents)["usage"]["prompt_tokens"]
    assert more > chat(live)["usage"]["prompt_tokens"]


def test_parts_are_joined(live: Live) -> None:
    parts = [{"type": "text", "text": "How do I "}, {"type": "text", "text": "cook rice?"}]
    messages = [MESSAGES[0], {"role": "user", "content": parts}]
    assert chat(live, messages=messages)["choices"] == chat(live)["choices"]


TEMPLATE = (
    "{% for one in tools or [] %}{{ one.function.name }} {% endfor %}{{ messages[-1].content }}"
)
FORECAST = {
    "type": "function",
    "function": {
        "name": "forecast",
        "parameters": {
            "type": "object",
            "properties": {"days": {"enum": [1, 2]}},
            "required": ["days"],
            "additionalProperties": False,
        },
    },
}


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "forecast"}}]
)
def test_a_forced_tool_call(live: Live, monkeypatch: pytest.MonkeyPatch, choice: Any) -> None:
    monkeypatch.setattr(live.server.tokenizer, "chat_template", TEMPLATE)
    asked = {"tools": [FORECAST], "tool_choice": choice, "max_tokens": 200}
    answer = chat(live, **asked)["choices"][0]
    assert answer["finish_reason"] == "tool_calls"
    call = answer["message"]["tool_calls"][0]
    assert (call["type"], call["function"]["name"]) == ("function", "forecast")
    assert json.loads(call["function"]["arguments"])["days"] in (1, 2)
    *parts, last = (one["choices"][0] for one in chunks(live, **asked))
    begun, *more = [one["delta"]["tool_calls"][0] for one in parts if "tool_calls" in one["delta"]]
    assert begun["id"] and begun["type"] == "function"
    assert begun["function"] == {"name": "forecast", "arguments": ""}
    assert all(one.keys() == {"index", "function"} for one in more)
    assert all(one["index"] == 0 and one["function"].keys() == {"arguments"} for one in more)
    assert len(more) > 2
    streamed = "".join(one["function"]["arguments"] for one in more)
    assert streamed == call["function"]["arguments"]
    assert last["delta"] == {} and last["finish_reason"] == "tool_calls"
    free = chat(live, tools=[FORECAST], max_tokens=5)
    assert free["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"messages": []}, "messages is empty"),
        ({"messages": "hi"}, "messages must be a list"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "x", "content": "y"}]}, "messages[0].role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "image_url",
        ),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"top_logprobs": 2}, "logprobs: true"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"tools": [FORECAST, CUSTOM]}, 'tools[1]: tools of type "custom" are not served'),
        ({"tools": [FORECAST], "tool_choice": CUSTOM}, 'tool_choice: the type "custom"'),
        (
            {"messages": [{"role": "assistant", "tool_calls": [CUSTOM]}]},
            'messages[0].tool_calls[0]: calls of type "custom" are not served',
        ),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs.tokenize"),
    ],
)
def test_bad_input(live: Live, extra: dict[str, Any], words: str) -> None:
    answer = live.http.post("/v1/chat/completions", json={"messages": MESSAGES, **extra})
    assert answer.status_code == 400, answer.text
    assert words in answer.json()["error"]["message"]


def test_a_prompt_that_is_too_long_names_the_messages(live: Live) -> None:
    messages = [{"role": "user", "content": "rice " * 600}]
    answer = live.http.post("/v1/chat/completions", json={"messages": messages})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == ("messages", "context_length_exceeded")
    # LangChain and LiteLLM look for these words.
    assert "prompt is too long" in error["message"]
    assert "this model's maximum context length is 512 tokens" in error["message"]


def test_what_has_no_bearing_on_the_answer_is_accepted(live: Live) -> None:
    idle = {
        "user": "ann",
        "metadata": {},
        "store": True,
        "parallel_tool_calls": False,
        "tool_choice": "none",
        "tools": None,
        "modalities": ["text"],
        "prediction": None,
        "safety_identifier": "x",
        "prompt_cache_key": "y",
    }
    assert chat(live, **idle)["choices"] == chat(live)["choices"]
