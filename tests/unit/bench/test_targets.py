"""What each API is asked, and how what it answers is read."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from lorry.bench.answer import BenchAnswer
from lorry.bench.targets import (
    LlamaCppTarget,
    LorryTarget,
    OpenAITarget,
    Sampling,
    Target,
    read,
)
from lorry.bench.workload import Ask

BASE = Ask("hello there", None, 1.0, 3, 0.0)
SECOND = Ask("hello there", 1, 0.5, 3, 0.0)


def answer(*events: object, status: int = 200) -> BenchAnswer:
    pieces = []
    for time, event in enumerate(events):
        text = event if isinstance(event, str) else json.dumps(event)
        pieces.append((float(time), f"data: {text}\n\n".encode()))
    return BenchAnswer(status, True, pieces)


def token(number: int, text: str | None = None) -> dict[str, Any]:
    return {"token": {"id": number, "text": "x"}, "generated_text": text, "details": None}


def test_lorry() -> None:
    target = LorryTarget(["a", "b"])
    assert json.loads(target.body(BASE))["adapter"] is None
    asked = json.loads(target.body(SECOND))
    assert asked["inputs"] == "hello there" and asked["stream"] is True
    assert asked["adapter"] == {"name": "b", "scale": 0.5}
    assert asked["parameters"] == {"max_new_tokens": 3, "ignore_eos_token": True}
    reading = read(target, answer(token(7), token(8), token(9, " one two")), 3)
    assert reading.problem is None
    assert (reading.times, reading.tokens, reading.text) == ((0.0, 1.0, 2.0), 3, " one two")
    assert reading.ids == (7, 8, 9)


def test_openai() -> None:
    target = OpenAITarget("base", ["a", "b"])
    assert json.loads(target.body(BASE))["model"] == "base"
    asked = json.loads(target.body(Ask("hello", 1, 1.0, 3, 0.0)))
    assert asked["model"] == "b" and asked["max_tokens"] == 3 and asked["ignore_eos"] is True
    assert asked["temperature"] == 0 and asked["stream_options"] == {"include_usage": True}

    def chunk(text: str, **more: object) -> dict[str, Any]:
        return {"choices": [{"text": text}], **more}

    usage = {"choices": [], "usage": {"completion_tokens": 3}}
    reading = read(
        target, answer(chunk(" one"), chunk(" two three"), chunk(""), usage, "[DONE]"), 3
    )
    # Two tokens came in one event, and the last has none.
    assert reading.problem is None
    assert (reading.times, reading.tokens, reading.text) == ((0.0, 1.0), 3, " one two three")


def test_llama_cpp() -> None:
    target = LlamaCppTarget([4, 2], [2, 3, 4])
    scales = {one["id"]: one["scale"] for one in json.loads(target.body(BASE))["lora"]}
    assert scales == {2: 0.0, 3: 0.0, 4: 0.0}
    asked = json.loads(target.body(SECOND))
    assert {one["id"]: one["scale"] for one in asked["lora"]} == {2: 0.5, 3: 0.0, 4: 0.0}
    assert asked["n_predict"] == 3 and asked["ignore_eos"] is True
    assert asked["cache_prompt"] is False and asked["temperature"] == 0
    events = [{"content": " one", "stop": False}, {"content": " two", "stop": False}]
    last = {"content": "", "stop": True, "tokens_predicted": 3}
    reading = read(target, answer(*events, last), 3)
    assert reading.problem is None
    assert (reading.times, reading.tokens, reading.text) == ((0.0, 1.0), 3, " one two")


def test_sampled() -> None:
    """The same request has the same seed, another one another; greedy ones say nothing new."""
    drawn = Sampling(0.8, 0.95)
    bodies = {
        "lorry": json.loads(LorryTarget(["a", "b"], drawn).body(SECOND))["parameters"],
        "openai": json.loads(OpenAITarget("base", [], drawn).body(BASE)),
        "llamacpp": json.loads(LlamaCppTarget([4, 2], [2, 3, 4], drawn).body(SECOND)),
    }
    for body in bodies.values():
        assert (body["temperature"], body["top_p"]) == (0.8, 0.95)
    assert bodies["lorry"]["seed"] == bodies["llamacpp"]["seed"]
    other = replace(SECOND, prompt="hello, too")
    assert drawn.fields(other)["seed"] != bodies["lorry"]["seed"]
    assert (bodies["llamacpp"]["top_k"], bodies["llamacpp"]["min_p"]) == (0, 0)


TARGETS = [LorryTarget([]), OpenAITarget("base", []), LlamaCppTarget([], [])]


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.api)
@pytest.mark.parametrize("error", ["the step failed", {"message": "the step failed", "code": 500}])
def test_an_error_in_the_stream_is_no_success(target: Target, error: object) -> None:
    assert read(target, answer({"error": error}), 3).problem == "the step failed"


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.api)
def test_a_refusal_is_no_success(target: Target) -> None:
    refused = BenchAnswer(429, True, [(0.0, b'{"error": "the queue is full"}')])
    assert read(target, refused, 3).problem == "429: the queue is full"


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.api)
@pytest.mark.parametrize("events", [["not json"], [[1]], [{"token": 3, "choices": 3, "stop": []}]])
def test_what_is_not_the_api_s_is_no_success(target: Target, events: list[object]) -> None:
    assert read(target, answer(*events), 3).problem is not None


def test_fewer_tokens_than_asked_for_are_no_success() -> None:
    reading = read(LorryTarget([]), answer(token(7), token(8, "x")), 3)
    assert reading.problem == "2 tokens where 3 were asked for"


def test_what_a_server_tells_of_its_prefix_cache() -> None:
    details = {"prompt_tokens": 70, "cached_tokens": 64}
    mine = read(LorryTarget([]), answer(token(7), {**token(8, "x"), "details": details}), 2)
    usage = {"completion_tokens": 1, "prompt_tokens": 70}
    told = {**usage, "prompt_tokens_details": {"cached_tokens": 64}}
    openai, piece = OpenAITarget("base", []), {"choices": [{"text": " one"}]}
    theirs = read(openai, answer(piece, {"choices": [], "usage": told}, "[DONE]"), 1)
    last = {"stop": True, "tokens_predicted": 1, "tokens_evaluated": 70, "timings": {"prompt_n": 6}}
    llama = read(LlamaCppTarget([], []), answer({"content": " one"}, last), 1)
    for reading in (mine, theirs, llama):
        assert reading.problem is None
        assert (reading.prompt_tokens, reading.cached_tokens) == (70, 64)
    silent = {"choices": [], "usage": {**usage, "prompt_tokens_details": None}}
    assert read(openai, answer(piece, silent, "[DONE]"), 1).cached_tokens == 0
    asked = json.loads(LlamaCppTarget([], [], cache_prompt=True).body(BASE))
    assert asked["cache_prompt"] is True
