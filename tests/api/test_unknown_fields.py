"""Fields that no route serves: accepted and named in a header, or refused by name."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from api.counted import counts
from api.live import Live, refused, serve
from lorry.settings import Settings

MESSAGES = [{"role": "user", "content": "How do I cook rice?"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES, "temperature": 0, "max_tokens": 4},
    "/v1/completions": {"prompt": "How do I", "temperature": 0, "max_tokens": 4},
    "/v1/embeddings": {"input": "How do I"},
    "/generate": {"inputs": "How do I", "parameters": {"max_new_tokens": 4}},
}
HARMLESS = {
    "keep_alive": "5m",
    "num_ctx": 4096,
    "max_retries": 2,
    "reasoning_effort": "low",
    "use_beam_search": False,
    "length_penalty": 1.0,
    "mirostat": 0,
    "a_new_penalty": None,
    "plugins": [],
    "logits_processors": [],
    "tenant": "kitchen",
}


def said(answer: dict[str, Any]) -> Any:
    """What does not differ between two answers to one question."""
    kept = {key: value for key, value in answer.items() if key not in ("id", "created")}
    return {**kept, "usage": counts(answer)} if "usage" in answer else kept


@pytest.mark.parametrize("path", BODIES)
def test_harmless_fields_are_accepted_and_named(live: Live, path: str) -> None:
    plain = live.http.post(path, json=BODIES[path])
    assert "x-lorry-ignored" not in plain.headers
    answer = live.http.post(path, json={**BODIES[path], **HARMLESS})
    assert answer.status_code == 200, answer.text
    assert said(answer.json()) == said(plain.json())
    assert set(answer.headers["x-lorry-ignored"].split(", ")) == set(HARMLESS)


def test_a_stream_names_them_too(live: Live, caplog: pytest.LogCaptureFixture) -> None:
    body = {**BODIES["/v1/chat/completions"], "stream": True, "store": True, "num_ctx": 1}
    with caplog.at_level(logging.DEBUG, "lorry.api.remarks"):
        answer = live.http.post("/v1/chat/completions", json=body)
    assert answer.text.endswith("data: [DONE]\n\n")
    assert set(answer.headers["x-lorry-ignored"].split(", ")) == {"store", "num_ctx"}
    told = [record for record in caplog.records if record.name == "lorry.api.remarks"]
    assert len(told) == 1


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"use_beam_search": True}, "use_beam_search is not served; only false is accepted"),
        ({"length_penalty": 0.8}, "length_penalty"),
        ({"mirostat": 2}, "mirostat"),
        ({"logits_processors": ["x"]}, "logits_processors is not served; leave it out"),
        ({"a_new_penalty": 0.5}, "unknown field a_new_penalty"),
        ({"adaptor": "pirate"}, "unknown field adaptor; did you mean adapter?"),
        ({"lora": "pirate"}, "`adapter`"),
        ({"topP": 0.5}, "topP"),
    ],
)
def test_what_would_change_the_answer_is_refused(
    live: Live, path: str, extra: dict[str, Any], words: str
) -> None:
    answer = live.http.post(path, json={**BODIES[path], **extra, "num_ctx": 1})
    if path == "/generate":
        assert answer.status_code == 422, answer.text
        assert words in answer.json()["error"]
    else:
        error = refused(answer, 400, "invalid_request")
        assert words in error["message"]
        assert error["param"] == next(iter(extra))


def test_all_that_is_wrong_is_told_at_once(live: Live) -> None:
    body = {"prompt": 5, "temperature": "hot", "use_beam_search": True, "stop": 5}
    problems = refused(live.http.post("/v1/completions", json=body), 400, "invalid_request")
    text = "\n".join(problems["problems"])
    assert "temperature" in text and "use_beam_search" in text


def test_parameters_take_what_the_table_has(live: Live) -> None:
    def ask(**parameters: Any) -> Any:
        body = {"inputs": "x", "parameters": {"max_new_tokens": 2, **parameters}}
        return live.http.post("/generate", json=body)

    accepted = ask(max_retries=3, use_beam_search=False, brand_new=None)
    assert accepted.status_code == 200, accepted.text
    assert set(accepted.headers["x-lorry-ignored"].split(", ")) == {
        "parameters.max_retries",
        "parameters.use_beam_search",
        "parameters.brand_new",
    }
    refusal = ask(brand_new=1)
    assert refusal.status_code == 422
    assert "unknown field parameters.brand_new" in refusal.json()["error"]


def test_messages_are_looked_through_wherever_they_stand(live: Live) -> None:
    messages = [{**MESSAGES[0], "annotations": []}]
    answer = live.http.post("/tokenize", json={"messages": messages})
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-lorry-ignored"] == "messages.annotations"


def test_usage_in_every_chunk(live: Live) -> None:
    for path in ("/v1/chat/completions", "/v1/completions"):
        options = {"include_usage": True, "continuous_usage_stats": True, "new_thing": None}
        body = {**BODIES[path], "stream": True, "stream_options": options, "ignore_eos": True}
        answer = live.http.post(path, json=body)
        assert answer.headers["x-lorry-ignored"] == "stream_options.new_thing"
        frames = answer.text.split("\n\n")[:-2]
        usages = [json.loads(one.removeprefix("data: "))["usage"] for one in frames]
        counts = [one["completion_tokens"] for one in usages]
        assert counts == sorted(counts) and counts[-1] == 4 and len(set(counts)) > 2
        assert len({one["prompt_tokens"] for one in usages}) == 1
    body["stream_options"] = {"new_thing": 1}
    error = refused(live.http.post(path, json=body), 400, "invalid_request")
    assert "stream_options.new_thing" in error["message"]


def test_an_answer_can_be_sent_back_as_it_came(live: Live) -> None:
    """As OpenAI, LiteLLM and agents replay messages."""

    def ask(*messages: dict[str, Any]) -> Any:
        body = {**BODIES["/v1/chat/completions"], "messages": list(messages)}
        answer = live.http.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        return answer

    user, answered = MESSAGES[0], {"role": "assistant", "content": "Boil it."}
    plain = ask(user, answered, user)
    extra = {
        "id": "msg_1",
        "annotations": [],
        "refusal": None,
        "audio": None,
        "function_call": None,
        "cache_control": {"type": "ephemeral"},
        "reasoning_content": None,
    }
    replayed = ask(user, {**answered, **extra}, user)
    assert replayed.json()["choices"] == plain.json()["choices"]
    assert set(replayed.headers["x-lorry-ignored"].split(", ")) == {
        "messages.id",
        "messages.annotations",
        "messages.audio",
        "messages.cache_control",
    }
    refusal = [{"type": "refusal", "refusal": "Boil it."}]
    output = [{"type": "output_text", "text": "Boil it.", "annotations": []}]
    for content in (refusal, output):
        same = ask(user, {"role": "assistant", "content": content}, user)
        assert same.json()["choices"] == plain.json()["choices"]
    whole = ask(user, {"role": "assistant", "content": None, "refusal": "Boil it."}, user)
    assert whole.json()["choices"] == plain.json()["choices"]
    empty = ask(user, {"role": "assistant", "content": ""}, user).json()
    for silent in ({"content": None}, {}):
        said = ask(user, {"role": "assistant", **silent}, user).json()
        assert counts(said) == counts(empty)
    result = {"name": "weather", "content": "Rain."}
    of_tool = ask(user, {"role": "tool", **result}).json()
    assert ask(user, {"role": "function", **result}).json()["choices"] == of_tool["choices"]


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"images": ["data:..."]}, "messages[0].images is not served"),
        ({"prefix": True}, "messages[0].prefix is not served; only false"),
        ({"tool_call": []}, ""),
        ({"contents": "x"}, "did you mean content?"),
        ({"video": "x"}, "unknown field messages[0].video"),
    ],
)
def test_a_message_with_more_than_text(live: Live, message: dict[str, Any], words: str) -> None:
    body = {**BODIES["/v1/chat/completions"], "messages": [{**MESSAGES[0], **message}]}
    answer = live.http.post("/v1/chat/completions", json=body)
    assert (answer.status_code, words in answer.text) == (400 if words else 200, True), answer.text


def test_a_header_has_no_room_for_tricks(live: Live) -> None:
    names = {"a\r\nSet-Cookie: x=1": 1, "ü" * 90: 1, **{f"odd{index}": 1 for index in range(90)}}
    answer = live.http.post("/v1/completions", json={**BODIES["/v1/completions"], **names})
    assert answer.status_code == 200, answer.text
    assert "set-cookie" not in answer.headers
    told = answer.headers["x-lorry-ignored"]
    assert "a??Set-Cookie??x?1" in told and told.endswith(", ...") and len(told) < 1000


def test_none_is_accepted_where_the_rule_is_strict(
    tmp_path: Path, settings_for: Callable[..., Settings]
) -> None:
    with serve(settings_for(tmp_path / "home", unknown_fields="refuse")) as strict:
        for path, body in BODIES.items():
            for extra in ({"keep_alive": 1}, {"use_beam_search": False}, {"plugins": None}):
                answer = strict.http.post(path, json={**body, **extra})
                assert answer.status_code == (422 if path == "/generate" else 400), answer.text
                assert f"unknown field {next(iter(extra))}" in answer.text
            assert strict.http.post(path, json=body).status_code == 200
        body = {**BODIES["/v1/chat/completions"], "user": "ann", "metadata": {}}
        assert strict.http.post("/v1/chat/completions", json=body).status_code == 200
        body["messages"] = [{**MESSAGES[0], "annotations": []}]
        answer = strict.http.post("/v1/chat/completions", json=body)
        assert "messages[0].annotations" in refused(answer, 400, "unsupported_parameter")["message"]
