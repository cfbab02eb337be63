"""Grammars over HTTP: what is too much is refused, and the others are served meanwhile."""

from __future__ import annotations

import json
import threading
from typing import Any

import httpx
import pytest

from api.live import Live

MESSAGES = [{"role": "user", "content": "How do I cook rice?"}]
SLOW = {"type": "integer", "multipleOf": 7919 * 7907}


def chat(live: Live, schema: Any, **extra: Any) -> httpx.Response:
    response_format = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    body = {"messages": MESSAGES, "max_tokens": 20, "response_format": response_format, **extra}
    return live.http.post("/v1/chat/completions", json=body)


def generate(live: Live, kind: str, value: Any) -> httpx.Response:
    body = {"inputs": "Ahoy", "parameters": {"grammar": {"type": kind, "value": value}}}
    return live.http.post("/generate", json=body)


def nested(depth: int) -> str:
    return '{"items":' * depth + "{}" + "}" * depth


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"$ref": "#"}, "no text matches it"),
        ({"enum": ["x" * 100] * 50_000}, "the most is 524288"),
        (json.dumps({"enum": ["x" * 100] * 50_000}), "the most is 524288"),
        (nested(200), "recursion limit"),
        (nested(900), "recursion limit"),
        (nested(5000), "not JSON"),
        ({"type": "object", "propertyNames": {"pattern": "a"}}, '"propertyNames"'),
    ],
)
def test_refused(live: Live, schema: Any, words: str) -> None:
    for answer in (chat(live, schema), chat(live, schema, stream=True)):
        assert answer.status_code == 400, answer.text
        error = answer.json()["error"]
        assert words in error["message"]
        assert error["param"] == "response_format"
    tgi = generate(live, "json", schema)
    assert tgi.status_code == 422
    assert words in tgi.json()["error"]


def test_a_deep_schema_of_a_tool_is_refused(live: Live) -> None:
    for depth in (150, 900):
        function = {"name": "f", "parameters": json.loads(nested(depth))}
        tools = [{"type": "function", "function": function}]
        for choice in ("required", {"type": "function", "function": {"name": "f"}}, "auto"):
            body = {"messages": MESSAGES, "tools": tools, "tool_choice": choice, "max_tokens": 3}
            answer = live.http.post("/v1/chat/completions", json=body)
            assert answer.status_code == 400, answer.text


def test_a_pattern_that_is_too_much_to_follow_is_the_request_s_fault(live: Live) -> None:
    answer = generate(live, "regex", "xyz(a{1000}){1000}")
    assert answer.status_code == 422, answer.text
    assert "make it simpler" in answer.json()["error"]
    assert generate(live, "regex", "xyz").json()["generated_text"] == "xyz"


def test_others_are_served_while_a_grammar_takes_its_time(live: Live) -> None:
    answers: list[httpx.Response] = []
    slow = threading.Thread(target=lambda: answers.append(chat(live, SLOW)))
    slow.start()
    served = 0
    while slow.is_alive():
        assert generate(live, "regex", "xyz").json()["generated_text"] == "xyz"
        assert live.http.get("/health").status_code == 200
        served += slow.is_alive()
    slow.join()
    assert served
    assert answers[0].status_code == 400
    assert "processor time" in answers[0].json()["error"]["message"]


def test_sixteen_choices_have_a_grammar_of_their_own(live: Live) -> None:
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    choices = chat(live, schema, n=16, max_tokens=100, temperature=1).json()["choices"]
    ended = [one for one in choices if one["finish_reason"] == "stop"]
    assert len(choices) == 16 and ended
    for one in ended:
        assert json.loads(one["message"]["content"])["ok"] in (True, False)
