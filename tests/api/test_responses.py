"""`/v1/responses`."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from api.live import Live, refused
from api.test_chat import FORECAST, TEMPLATE
from api.test_reasoning import REASONS

INPUT = "How do I cook rice?"
TOOL = {"type": "function", **FORECAST["function"], "strict": True}


def post(live: Live, **body: Any) -> httpx.Response:
    given = {"input": INPUT, "instructions": "Answer.", "temperature": 0, "max_output_tokens": 8}
    return live.http.post("/v1/responses", json={**given, **body})


def respond(live: Live, **body: Any) -> dict[str, Any]:
    answer = post(live, **body)
    assert answer.status_code == 200, answer.text
    return answer.json()  # type: ignore[no-any-return]


def events(live: Live, **body: Any) -> list[dict[str, Any]]:
    answer = post(live, stream=True, **body)
    assert answer.status_code == 200, answer.text
    found = []
    for number, frame in enumerate(answer.text.removesuffix("\n\n").split("\n\n")):
        name, data = frame.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert event["sequence_number"] == number
        found.append(event)
    return found


def text_of(response: dict[str, Any]) -> str:
    (item,) = response["output"]
    assert (item["type"], item["role"]) == ("message", "assistant")
    (part,) = item["content"]
    assert part["type"] == "output_text" and part["annotations"] == []
    return str(part["text"])


def chat(live: Live, *messages: dict[str, Any], **extra: Any) -> dict[str, Any]:
    system = {"role": "system", "content": "Answer."}
    body = {"messages": [system, *messages], "temperature": 0, "max_tokens": 8, **extra}
    answer = live.http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()  # type: ignore[no-any-return]


def tokens(live: Live, text: str) -> int:
    body = {"inputs": text, "add_special_tokens": False}
    return len(live.http.post("/tokenize", json=body).json())


USER = {"role": "user", "content": INPUT}


def test_the_answer_is_chat_s(live: Live) -> None:
    for model in (None, "pirate"):
        expected = chat(live, USER, model=model)
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
    expected = chat(live, USER, adapter=spec)["choices"][0]["message"]["content"]
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
    assert text_of(last) == text and last["usage"] == whole["usage"]
    assert {event["item_id"] for event in got if "item_id" in event} == {last["output"][0]["id"]}
    assert live.http.get(f"/v1/responses/{last['id']}").json() == last


def test_a_stored_response_is_read_and_forgotten(live: Live) -> None:
    made = respond(live)
    assert made["store"] is True
    path = f"/v1/responses/{made['id']}"
    assert live.http.get(path).json() == made
    items = live.http.get(f"{path}/input_items").json()
    (item,) = items["data"]
    assert item["content"] == [{"type": "input_text", "text": INPUT}]
    assert (items["object"], items["has_more"]) == ("list", False)
    assert items["first_id"] == items["last_id"] == item["id"]
    refused(live.http.get(path, params={"stream": True}), 400, "unsupported_parameter")
    refused(live.http.post(f"{path}/cancel"), 400, "invalid_request")
    deleted = live.http.delete(path)
    assert deleted.json() == {"id": made["id"], "object": "response", "deleted": True}
    for answer in (
        live.http.get(path),
        live.http.delete(path),
        live.http.post(f"{path}/cancel"),
        live.http.get(f"{path}/input_items"),
    ):
        refused(answer, 404, "response_not_found")


def test_pages_of_input_items(live: Live) -> None:
    made = respond(live, input=[{"role": "user", "content": str(one)} for one in range(5)])
    path = f"/v1/responses/{made['id']}/input_items"

    def page(**params: Any) -> tuple[list[str], bool]:
        found = live.http.get(path, params=params).json()
        return [one["content"][0]["text"] for one in found["data"]], found["has_more"]

    assert page() == (["4", "3", "2", "1", "0"], False)
    assert page(order="asc", limit=2) == (["0", "1"], True)
    third = live.http.get(path, params={"order": "asc"}).json()["data"][2]["id"]
    assert page(order="asc", after=third) == (["3", "4"], False)
    refused(live.http.get(path, params={"limit": 0}), 400, "invalid_request")
    refused(live.http.get(path, params={"after": "nothing"}), 400, "invalid_request")


def test_what_is_not_to_be_stored_is_not(live: Live) -> None:
    made = respond(live, store=False)
    assert made["store"] is False
    refused(live.http.get(f"/v1/responses/{made['id']}"), 404, "response_not_found")
    answer = post(live, previous_response_id=made["id"])
    error = refused(answer, 400, "previous_response_not_found")
    assert error["param"] == "previous_response_id"


def test_a_response_goes_on_from_another(live: Live) -> None:
    first = respond(live)
    said = {"role": "assistant", "content": text_of(first)}
    more = {"role": "user", "content": "And then?"}
    second = respond(live, input="And then?", previous_response_id=first["id"])
    assert second["previous_response_id"] == first["id"]
    expected = chat(live, USER, said, more)
    assert text_of(second) == expected["choices"][0]["message"]["content"]
    assert second["usage"]["input_tokens"] == expected["usage"]["prompt_tokens"]
    # It has all of the conversation, whatever becomes of the first.
    assert live.http.delete(f"/v1/responses/{first['id']}").status_code == 200
    third = respond(live, input="Why?", previous_response_id=second["id"])
    given = live.http.get(f"/v1/responses/{third['id']}/input_items?order=asc").json()["data"]
    assert [item["role"] for item in given] == ["user", "assistant", "user", "assistant", "user"]
    assert given[1] == first["output"][0]


def test_items_as_clients_send_them_back(live: Live) -> None:
    first = respond(live)
    item = first["output"][0]
    more = {"role": "user", "content": [{"type": "input_text", "text": "And then?"}]}
    user = {"type": "message", **USER}
    thought = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": None}
    whole = respond(live, input=[user, thought, item, more])
    reference = {"type": "item_reference", "id": item["id"]}
    assert text_of(respond(live, input=[user, reference, more])) == text_of(whole)
    said = {"role": "assistant", "content": text_of(first)}
    assert text_of(respond(live, input=[user, said, more])) == text_of(whole)
    expected = chat(live, USER, said, {"role": "user", "content": "And then?"})
    assert text_of(whole) == expected["choices"][0]["message"]["content"]


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


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "forecast"}])
def test_a_tool_is_called_and_answered(
    live: Live, monkeypatch: pytest.MonkeyPatch, choice: Any
) -> None:
    monkeypatch.setattr(live.server.loaded.tokenizer, "chat_template", TEMPLATE)
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
    monkeypatch.setattr(live.server.loaded.tokenizer, "chat_template", TEMPLATE)
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
    monkeypatch.setattr(live.server.loaded.tokenizer, "chat_template", template)
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"}
    more = respond(live, input=[call, result], instructions=None)
    assert more["usage"]["input_tokens"] == tokens(live, "agents__forecast agents__forecast")


def test_reasoning_is_an_item_of_its_own(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live.server.loaded.tokenizer, "chat_template", REASONS)
    got = respond(live)
    (item,) = got["output"]
    assert item["type"] == "reasoning" and item["summary"] == []
    (part,) = item["content"]
    assert part["type"] == "reasoning_text" and part["text"]
    told = events(live)
    pieces = [event for event in told if event["type"] == "response.reasoning_text.delta"]
    assert "".join(event["delta"] for event in pieces) == part["text"]
    assert text_of(respond(live, reasoning={"effort": "none"}))
    # It is left out of the next prompt.
    more = respond(live, input="And then?", previous_response_id=got["id"])
    again = respond(live, input=[USER, {"role": "user", "content": "And then?"}])
    assert more["usage"]["input_tokens"] == again["usage"]["input_tokens"]


def test_a_conversation_with_calls_reaches_the_template(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = (
        "{% for m in messages %}[{{ m.role }}{% for c in m.tool_calls or [] %} "
        "{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}"
        " {{ m.name or '' }} {{ m.content }}]{% endfor %}"
    )
    monkeypatch.setattr(live.server.loaded.tokenizer, "chat_template", template)
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
        ({"tools": [{"type": "namespace", "name": "x"}]}, "tools", "tools[0] must have"),
        (
            {"tools": [{"type": "namespace", "name": "x", "tools": [5]}]},
            "tools",
            "tools[0].tools[0]",
        ),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice", '"file_search"'),
        ({"background": True}, "background", "background"),
        ({"n": 2}, "n", "one answer"),
        ({"max_output_tokens": 0}, "max_output_tokens", "must be from 1"),
        ({"conversation": "conv_1"}, "conversation", "conversation"),
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
