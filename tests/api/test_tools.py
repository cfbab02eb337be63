"""Tools in `/v1/chat/completions` on a base whose template takes none."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from api.live import Live, serve
from api.test_chat import FORECAST, MESSAGES, chat, chunks
from lorry.settings import Settings

FUNCTION: dict[str, Any] = FORECAST["function"]  # type: ignore[assignment]
NAMED = {"type": "function", "function": {"name": "forecast"}}
ONLY = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAMED]}}
LONG = {"max_tokens": 200, "tools": [FORECAST]}


def test_the_prompt_carries_the_tools(long: Live) -> None:
    plain = chat(long)["usage"]["prompt_tokens"]
    assert chat(long, tools=[FORECAST])["usage"]["prompt_tokens"] > plain + 50
    assert chat(long, tools=[FORECAST], tool_choice="none")["usage"]["prompt_tokens"] == plain


@pytest.mark.parametrize("choice", ["required", NAMED, ONLY, "forecast"])
def test_a_call_is_forced(long: Live, choice: Any) -> None:
    answer = chat(long, tool_choice=choice, **LONG)["choices"][0]
    assert answer["finish_reason"] == "tool_calls"
    (call,) = answer["message"]["tool_calls"]
    assert (call["type"], call["function"]["name"]) == ("function", "forecast")
    assert json.loads(call["function"]["arguments"])["days"] in (1, 2)


def test_a_round_trip(long: Live) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    history = [
        *MESSAGES,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
    ]
    with_call = chat(long, messages=history)["usage"]["prompt_tokens"]
    without = [*MESSAGES, {"role": "assistant", "content": ""}, {"role": "user", "content": "rain"}]
    assert with_call > chat(long, messages=without)["usage"]["prompt_tokens"] + 10
    assert chat(long, messages=history, tools=[FORECAST])["choices"][0]["message"]["content"]


def test_a_schema_that_refers_to_itself(long: Live) -> None:
    node = {
        "type": "object",
        "properties": {
            "v": {"enum": [1]},
            "next": {"anyOf": [{"$ref": "#/$defs/N"}, {"type": "null"}]},
        },
        "required": ["v", "next"],
        "additionalProperties": False,
    }
    schema = {"$defs": {"N": node}, "$ref": "#/$defs/N"}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema, "strict": True}}
    for choice in ("required", {"type": "function", "function": {"name": "f"}}):
        answer = chat(long, tools=[tool], tool_choice=choice, max_tokens=300)["choices"][0]
        (call,) = answer["message"]["tool_calls"]
        made = re.sub(r"\s", "", call["function"]["arguments"])
        assert re.match(r'\{"v":1,"next":(null\}|\{"v":1)', made), made


def test_the_older_words(long: Live) -> None:
    asked = {"functions": [FUNCTION], "function_call": {"name": "forecast"}, "max_tokens": 200}
    answer = chat(long, **asked)["choices"][0]
    assert answer["finish_reason"] == "function_call"
    assert "tool_calls" not in answer["message"]
    made = answer["message"]["function_call"]
    assert made["name"] == "forecast" and json.loads(made["arguments"])["days"] in (1, 2)
    parts = [one["choices"][0] for one in chunks(long, **asked)]
    deltas = [one["delta"]["function_call"] for one in parts if "function_call" in one["delta"]]
    assert "".join(one.get("arguments", "") for one in deltas) == made["arguments"]
    assert deltas[0]["name"] == "forecast" and parts[-1]["finish_reason"] == "function_call"


def test_mixed_words_are_refused(long: Live) -> None:
    body = {"messages": MESSAGES, "tools": [FORECAST], "functions": [FUNCTION]}
    answer = long.http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "functions"


def test_tools_are_refused_where_the_template_alone_may_carry_them(
    tmp_path: Path, settings_for: Callable[..., Settings]
) -> None:
    with serve(settings_for(tmp_path / "home", tool_prompt="template")) as strict:
        body = {"messages": MESSAGES, "tools": [FORECAST]}
        answer = strict.http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert "cannot take tools" in answer.json()["error"]["message"]


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[[str], Path]) -> Path:
    """A base whose tokenizer has Mistral's mark as the token 3, and whose template takes tools."""
    folder = tmp_path_factory.mktemp("marked") / "model"
    shutil.copytree(tiny_model("llama"), folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        file = folder / name
        file.write_text(file.read_text().replace("<|im_start|>", "[TOOL_CALLS]"))
    template = (
        "{% for t in tools or [] %}[TOOL_CALLS]{{ t.function.name }}{% endfor %}"
        "{{ messages[-1].content }}"
    )
    (folder / "chat_template.jinja").write_text(template)
    return folder


def test_a_mark_that_is_a_special_token_is_read_where_there_are_tools(
    tmp_path: Path, settings_for: Callable[..., Settings], marked: Path
) -> None:
    with serve(settings_for(tmp_path / "home", model=str(marked))) as mistral:
        asked = {"logit_bias": {"3": 100}, "max_tokens": 3, "stop": ["\n", "[x"]}
        # No call follows, so the marks are text; without tools they are hidden, as any other.
        message = chat(mistral, tools=[FORECAST], **asked)["choices"][0]["message"]
        assert message == {"role": "assistant", "content": "[TOOL_CALLS]" * 3}
        parts = [one["choices"][0] for one in chunks(mistral, tools=[FORECAST], **asked)]
        said = "".join(one["delta"].get("content", "") for one in parts)
        assert said == "[TOOL_CALLS]" * 3
        assert chat(mistral, **asked)["choices"][0]["message"]["content"] == ""
