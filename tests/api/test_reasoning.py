"""Reasoning, and how a chat's prompt ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from api.counted import counts
from api.live import Live, refused, serve
from api.test_chat import MESSAGES, RENDERED, chat, chunks
from lorry.settings import Settings
from support.patience import client
from support.tokenizer import CHAT_TEMPLATE

REASONS = CHAT_TEMPLATE.replace(
    "assistant\n{% endif %}",
    "assistant\n{% if enable_thinking is not defined or enable_thinking %}<think>\n{% endif %}"
    "{% endif %}{# </think> #}",
)


@pytest.fixture
def thinker(live: Live, monkeypatch: pytest.MonkeyPatch) -> Live:
    """A base whose template begins the reasoning."""
    monkeypatch.setattr(live.server.tokenizer, "chat_template", REASONS)
    return live


def completed(live: Live, prompt: str, **extra: Any) -> str:
    """What the model says to a prompt as it stands."""
    body = {"inputs": prompt, "add_special_tokens": False}
    ids = [one["id"] for one in live.http.post("/tokenize", json=body).json()]
    asked = {"prompt": ids, "temperature": 0, "max_tokens": 8, **extra}
    answer = live.http.post("/v1/completions", json=asked)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])


def test_an_answer_that_never_ends_its_reasoning_is_all_of_it(thinker: Live) -> None:
    said = completed(thinker, RENDERED + "<think>\n").strip()
    whole = chat(thinker)
    message = whole["choices"][0]["message"]
    assert message == {"role": "assistant", "content": "", "reasoning_content": said}
    *streamed, last = chunks(thinker, stream_options={"include_usage": True})
    assert counts(last) == counts(whole)
    details = whole["usage"]["completion_tokens_details"]
    assert 0 < details["reasoning_tokens"] <= whole["usage"]["completion_tokens"] == 8
    parts = [one["choices"][0]["delta"] for one in streamed]
    assert "".join(one.get("reasoning_content", "") for one in parts) == said
    assert not any(one.get("content") for one in parts)
    assert chat(thinker, include_reasoning=False)["choices"][0]["message"] == {
        "role": "assistant",
        "content": "",
    }


@pytest.mark.parametrize(
    "off", [{"enable_thinking": False}, {"chat_template_kwargs": {"enable_thinking": False}}]
)
def test_reasoning_is_switched_off_where_the_template_has_a_switch(
    thinker: Live, off: dict[str, Any]
) -> None:
    message = chat(thinker, **off)["choices"][0]["message"]
    assert message == {"role": "assistant", "content": completed(thinker, RENDERED)}


def test_an_answer_that_must_match_something_does_not_reason(thinker: Live) -> None:
    schema = {"type": "object", "properties": {"ok": {"enum": [True]}}, "required": ["ok"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    answer = chat(thinker, response_format=wanted, max_tokens=60)
    assert json.loads(answer["choices"][0]["message"]["content"]) == {"ok": True}
    ended = RENDERED + "<think>\n</think>\n\n"
    body = {"inputs": ended, "add_special_tokens": False}
    ids = thinker.http.post("/tokenize", json=body).json()
    assert answer["usage"]["prompt_tokens"] == len(ids)


def test_a_message_is_continued(live: Live) -> None:
    messages = [*MESSAGES, {"role": "assistant", "content": "Rinse the"}]
    asked = {"messages": messages, "continue_final_message": True}
    more = completed(live, RENDERED + "Rinse the")
    for extra in ({}, {"add_generation_prompt": False}):
        assert chat(live, **asked, **extra)["choices"][0]["message"]["content"] == more
    assert chat(live, echo=True, **asked)["choices"][0]["message"]["content"] == "Rinse the" + more
    parts = [one["choices"][0]["delta"] for one in chunks(live, echo=True, **asked)]
    assert "".join(one.get("content", "") for one in parts) == "Rinse the" + more


def test_nobody_s_turn_is_begun(live: Live) -> None:
    ended = RENDERED.removesuffix("<|im_start|>assistant\n")
    message = chat(live, add_generation_prompt=False)["choices"][0]["message"]
    assert message["content"] == completed(live, ended)


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"continue_final_message": True}, "continue_final_message"),
        (
            {"continue_final_message": True, "add_generation_prompt": True},
            "continue_final_message",
        ),
        ({"chat_template": "{{ messages[0].content }}"}, "chat_template"),
    ],
)
def test_refused(live: Live, extra: dict[str, Any], param: str) -> None:
    answer = live.http.post("/v1/chat/completions", json={"messages": MESSAGES, **extra})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


ENDLESS_LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
DOUBLING = (
    "{% set n = namespace(text='x' * 9999) %}"
    "{% for i in range(60) %}{% set n.text = n.text ~ n.text %}{% endfor %}"
)


@pytest.mark.parametrize("template", [ENDLESS_LOOP, DOUBLING])
def test_a_request_s_template_takes_neither_the_server_nor_its_memory(
    tmp_path: Path, settings_for: Callable[..., Settings], template: str
) -> None:
    body = {"messages": MESSAGES, "chat_template": template}
    with serve(settings_for(tmp_path / "home", trust_request_chat_template=True)) as trusting:
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(trusting.http.post, "/v1/chat/completions", json=body)
            with client(trusting.url) as other:
                while not answer.done():
                    assert other.get("/health").status_code == 200
        error = refused(answer.result(), 400, "invalid_request")
        assert error["param"] == "chat_template"
        assert error["message"].startswith("chat_template: the chat template takes more than 2 s")
        tokens = {"messages": MESSAGES, "chat_template": template}
        assert trusting.http.post("/tokenize", json=tokens).status_code in (400, 422)
        assert chat(trusting, chat_template="{{ messages[0].content }}")["choices"]


def test_a_request_s_own_template_where_the_server_takes_one(
    tmp_path: Path, settings_for: Callable[..., Settings]
) -> None:
    with serve(settings_for(tmp_path / "home", trust_request_chat_template=True)) as trusting:
        own = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        message = chat(trusting, chat_template=own)["choices"][0]["message"]
        said = completed(trusting, "system: Answer.\nuser: How do I cook rice?\n")
        assert message["content"] == said
        for hostile in (
            "{{ ''.__class__.__mro__ }}",
            "{% for i in range(10**9) %}x{% endfor %}",
            "{{ 1 / 0 }}",
            "{% for %}",
            "{{ messages.append(1) }}",
        ):
            body = {"messages": MESSAGES, "chat_template": hostile}
            answer = trusting.http.post("/v1/chat/completions", json=body)
            assert answer.status_code == 400, (hostile, answer.text)
