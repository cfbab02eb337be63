"""Grammars over HTTP: what is too much is refused, and the others are served meanwhile."""

from __future__ import annotations

import json
import re
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


KINDS = [
    ({"type": "regex", "value": "[ab]{3}"}, "[ab]{3}"),
    ({"type": "choice", "value": ["red", "green"]}, "red|green"),
    ({"type": "lark", "value": 'start: "x" /[0-9]{2}/'}, "x[0-9]{2}"),
    ({"type": "gbnf", "value": 'root ::= "y" [0-9]{2}'}, "y[0-9]{2}"),
    ({"type": "grammar", "value": 'root ::= "z"'}, "z"),
    ({"type": "json_schema", "value": {"type": "boolean"}}, "true|false"),
]


def texts(live: Live, grammar: Any, **extra: Any) -> list[tuple[str, str]]:
    """The answer, and why it ended, of every route that generates."""
    chat = {"messages": MESSAGES, "response_format": grammar, "temperature": 1, "seed": 3}
    whole = {"max_tokens": 20, "seed": 3, **extra}
    first = live.http.post("/v1/chat/completions", json={**chat, **whole}).json()["choices"][0]
    text = {"prompt": "Ahoy", "response_format": grammar, **whole}
    second = live.http.post("/v1/completions", json=text).json()["choices"][0]
    parameters = {
        "max_new_tokens": whole["max_tokens"],
        "details": True,
        "do_sample": True,
        "seed": 3,
    }
    found = [
        (first["message"]["content"], first["finish_reason"]),
        (second["text"], second["finish_reason"]),
    ]
    for key in ("grammar", "response_format"):
        third = live.generate(parameters={**parameters, key: grammar})
        found.append((third["generated_text"], third["details"]["finish_reason"]))
    return found


@pytest.mark.parametrize(("grammar", "pattern"), KINDS)
def test_every_kind_on_every_route(live: Live, grammar: Any, pattern: str) -> None:
    for text, reason in texts(live, grammar):
        assert re.fullmatch(pattern, text), text
        assert reason in ("stop", "eos_token")


def test_an_answer_that_is_cut_is_no_error(live: Live) -> None:
    for text, reason in texts(live, {"type": "json_object"}, max_tokens=3):
        assert reason == "length"
        assert text.startswith("{")


def test_an_object_has_the_names_of_its_schema(live: Live) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    for text, _ in texts(live, {"type": "json_schema", "value": schema}, max_tokens=40):
        assert list(json.loads(text)) == ["ok"]


def test_an_impossible_schema_says_where(live: Live) -> None:
    never = {"type": "integer", "minimum": 3, "maximum": 2}
    schema = {"type": "object", "properties": {"n": never}, "required": ["n"]}
    answer = chat(live, schema)
    assert 400 <= answer.status_code < 500
    assert "at #/properties/n: no value matches it" in answer.json()["error"]["message"]


BOOLEAN = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
VLLM = [
    ({"guided_json": BOOLEAN}, r'\{ ?"ok" ?: ?(true|false) ?\}'),
    ({"guided_json": json.dumps(BOOLEAN)}, r'\{ ?"ok" ?: ?(true|false) ?\}'),
    (
        {"guided_json": BOOLEAN, "guided_whitespace_pattern": "[\\n]{2}"},
        r'\{(\n\n)?"ok"(\n\n)?:(\n\n)?(true|false)(\n\n)?\}',
    ),
    ({"guided_regex": "[ab]{3}"}, "[ab]{3}"),
    ({"guided_choice": ["red", "green"]}, "red|green"),
    ({"guided_grammar": 'root ::= "z"'}, "z"),
    ({"structured_outputs": {"json": BOOLEAN}}, r'\{ ?"ok" ?: ?(true|false) ?\}'),
    (
        {"structured_outputs": {"json": BOOLEAN, "disable_any_whitespace": True}},
        r'\{"ok":(true|false)\}',
    ),
    ({"structured_outputs": {"regex": "[ab]{3}", "choice": None}}, "[ab]{3}"),
    ({"structured_outputs": {"choice": ["red", "green"], "backend": "auto"}}, "red|green"),
    ({"structured_outputs": {"grammar": 'start: "x"'}}, "x"),
    ({"structured_outputs": {"json_object": True}}, r"\{.*"),
    ({"response_format": {"type": "text"}, "guided_choice": ["red"]}, "red"),
]
OPENAI = {
    "/v1/chat/completions": {"messages": MESSAGES},
    "/v1/completions": {"prompt": "Ahoy"},
}


@pytest.mark.parametrize("path", OPENAI)
@pytest.mark.parametrize(("asked", "pattern"), VLLM)
def test_vllm_s_words(live: Live, path: str, asked: Any, pattern: str) -> None:
    body = {**OPENAI[path], "max_tokens": 40, "seed": 5, **asked}
    answer = live.http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    (choice,) = answer.json()["choices"]
    text = choice["text"] if "text" in choice else choice["message"]["content"]
    assert re.fullmatch(pattern, text, re.DOTALL), text


@pytest.mark.parametrize("path", OPENAI)
@pytest.mark.parametrize(
    "asked", [{"structured_outputs": {}}, {"structured_outputs": {"json_object": False}}]
)
def test_what_asks_for_nothing_asks_for_nothing(live: Live, path: str, asked: Any) -> None:
    plain = {**OPENAI[path], "max_tokens": 4, "temperature": 0}
    answers = [live.http.post(path, json={**plain, **one}).json() for one in ({}, asked)]
    assert answers[0]["choices"] == answers[1]["choices"]


@pytest.mark.parametrize("path", OPENAI)
@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (
            {"guided_choice": ["a"], "response_format": {"type": "json_object"}},
            "response_format and guided_choice each give a format; give one",
        ),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_regex and guided_choice"),
        (
            {"guided_regex": "a", "structured_outputs": {"regex": "a"}},
            "structured_outputs and guided_regex",
        ),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "not regex and choice"),
        ({"structured_outputs": {"whitespace_pattern": " "}}, "not none"),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structural_tag is not served"),
        ({"structured_outputs": {"xml": "a"}}, "unknown field 'xml'"),
        ({"structured_outputs": {"regex": 3}}, "structured_outputs.regex must be"),
        ({"structured_outputs": {"choice": "a"}}, "structured_outputs.choice must be"),
        ({"structured_outputs": {"json": [1]}}, "structured_outputs.json must be"),
        ({"structured_outputs": {"json_object": "yes"}}, "structured_outputs.json_object must"),
        ({"structured_outputs": {"json": {}, "whitespace_pattern": 1}}, "whitespace_pattern"),
        ({"structured_outputs": {"json": {}, "disable_any_whitespace": "x"}}, "true or false"),
        ({"guided_choice": []}, "guided_choice must be"),
        ({"guided_json": "{"}, "guided_json is not JSON"),
        ({"guided_regex": "(a"}, "guided_regex: this regular expression"),
        ({"guided_grammar": "start: b"}, 'unknown name: "b"'),
    ],
)
def test_vllm_s_words_that_are_wrong(live: Live, path: str, asked: Any, words: str) -> None:
    answer = live.http.post(path, json={**OPENAI[path], **asked})
    assert answer.status_code == 400, answer.text
    assert words in answer.json()["error"]["message"]


def test_a_forced_call_and_a_grammar_exclude_each_other(live: Live) -> None:
    function = {"name": "f", "parameters": {"type": "object", "properties": {}}}
    body = {
        "messages": MESSAGES,
        "tools": [{"type": "function", "function": function}],
        "tool_choice": "required",
        "guided_choice": ["a"],
    }
    answer = live.http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert "guided_choice and a forced tool_choice" in answer.json()["error"]["message"]


def test_a_forced_call_has_no_text_for_a_response_format(live: Live) -> None:
    function = {"name": "f", "parameters": {"type": "object", "properties": {}}}
    body = {
        "messages": MESSAGES,
        "tools": [{"type": "function", "function": function}],
        "tool_choice": "required",
        "response_format": {"type": "json_object"},
    }
    answer = live.http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    (call,) = answer.json()["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "f"
