"""`/generate`, `POST /`, `/tokenize`: the shape that TGI's and LoRAX's clients parse."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from api.live import Live

PROMPT = "How do I cook rice?"

EVERY_FIELD = {
    "max_new_tokens": None,
    "do_sample": None,
    "temperature": None,
    "top_k": None,
    "top_p": None,
    "min_p": None,
    "typical_p": None,
    "repetition_penalty": None,
    "frequency_penalty": None,
    "presence_penalty": None,
    "seed": None,
    "stop": None,
    "return_full_text": None,
    "truncate": None,
    "add_special_tokens": None,
    "best_of": None,
    "top_n_tokens": None,
    "details": None,
    "decoder_input_details": None,
    "ignore_eos_token": None,
    "grammar": None,
    "response_format": None,
    "watermark": None,
    "adapter_id": None,
    "adapter_source": None,
    "merged_adapters": None,
    "api_token": None,
    "return_k_alternatives": None,
}


def text(live: Live, **parameters: Any) -> str:
    return str(live.generate(PROMPT, parameters=parameters)["generated_text"])


def test_the_answer(live: Live) -> None:
    answer = live.generate(PROMPT, adapter="pirate", parameters={"max_new_tokens": 5})
    details = answer["details"]
    assert set(answer) == {"generated_text", "adapters", "details"}
    assert answer["adapters"][0].keys() == {"name", "version", "digest", "scale"}
    assert details["finish_reason"] == "length"
    assert details["generated_tokens"] == len(details["tokens"]) == 5
    assert details["prompt_tokens"] == len(
        live.http.post("/tokenize", json={"inputs": PROMPT}).json()
    )
    assert details["seed"] is None
    assert details["skipped_tokens"] == 0
    assert details["prefill"] == []
    assert "".join(one["text"] for one in details["tokens"]) == answer["generated_text"]
    for one in details["tokens"]:
        assert one.keys() == {"id", "text", "logprob", "special", "skipped"}
        assert one["logprob"] <= 0 and not one["special"]


def test_without_details_there_are_none(live: Live) -> None:
    answer = live.http.post("/generate", json={"inputs": PROMPT}).json()
    assert answer.keys() == {"generated_text", "adapters"}
    assert answer["adapters"] == []


def test_explicit_nulls_are_the_default(live: Live) -> None:
    nulls = {"inputs": PROMPT, "adapter": None, "stream": None, "parameters": EVERY_FIELD}
    plain = live.http.post("/generate", json={"inputs": PROMPT})
    assert live.http.post("/generate", json=nulls).json() == plain.json()
    alone = {"inputs": PROMPT, "parameters": None}
    assert live.http.post("/generate", json=alone).json() == plain.json()
    body = live.generate(PROMPT, parameters={"max_new_tokens": None})
    assert body["details"]["generated_tokens"] <= 100


def test_greedy_unless_a_temperature_or_do_sample_says_otherwise(live: Live) -> None:
    greedy = text(live)
    assert text(live, do_sample=False) == greedy
    assert text(live, temperature=0.0) == greedy
    assert text(live, temperature=0, do_sample=True) == greedy
    assert text(live, top_p=0.5, top_k=3) == greedy
    drawn = {text(live, do_sample=True, seed=seed) for seed in range(6)}
    assert len(drawn) > 1
    # LoRAX's client sends do_sample false beside a temperature, and means the temperature.
    assert {text(live, do_sample=False, temperature=1, seed=seed) for seed in range(6)} == drawn


def test_seeds_repeat_and_are_told(live: Live) -> None:
    first = live.generate(PROMPT, parameters={"temperature": 1.5, "max_new_tokens": 12})
    seed = first["details"]["seed"]
    assert isinstance(seed, int)
    again = live.generate(
        PROMPT, parameters={"temperature": 1.5, "seed": seed, "max_new_tokens": 12}
    )
    assert again == first
    other = live.generate(
        PROMPT, parameters={"temperature": 1.5, "seed": seed + 1, "max_new_tokens": 12}
    )
    assert other["generated_text"] != first["generated_text"]


def test_a_special_token_stops_where_the_end_is_ignored(live: Live) -> None:
    # So hot that special tokens come up, which are no part of the text.
    drawn = {"temperature": 100, "ignore_eos_token": True, "max_new_tokens": 200}
    found: list[int] = []
    for seed in range(30):
        drawn["seed"] = seed
        tokens = live.generate(PROMPT, parameters=drawn)["details"]["tokens"]
        texts = [one["text"] for one in tokens]
        found = [
            index
            for index in range(1, len(tokens))
            if tokens[index]["special"] and texts[index] not in texts[:index]
            # Half characters come late: the text before is certain.
            if texts[index - 1] and not tokens[index - 1]["special"]
        ]
        if found:
            break
    at = found[0]
    mark, before = texts[at], texts[at - 1]
    shown = "".join(one["text"] for one in tokens[:at] if not one["special"])
    for stop in (mark, before[-1:] + mark):
        asked = {**drawn, "stop": ["never this", stop]}
        answer = live.generate(PROMPT, parameters=asked)
        assert answer["details"]["finish_reason"] == "stop_sequence"
        assert answer["details"]["generated_tokens"] == at + 1
        assert answer["generated_text"] == shown
        body = {"inputs": PROMPT, "parameters": asked, "stream": True}
        frames = live.http.post("/generate", json=body).text.split("\n\n")
        last = json.loads(frames[-2].removeprefix("data:"))
        assert last["details"]["finish_reason"] == "stop_sequence"
        assert last["generated_text"] == shown


def test_full_text_and_truncation(live: Live) -> None:
    answer = text(live)
    assert text(live, return_full_text=True) == PROMPT + answer
    cut = live.generate(PROMPT, parameters={"truncate": 3})
    assert cut["details"]["prompt_tokens"] == 3


def test_prefill(live: Live) -> None:
    details = live.generate(PROMPT, parameters={"decoder_input_details": True, "details": False})[
        "details"
    ]
    tokens = live.http.post("/tokenize", json={"inputs": PROMPT}).json()
    assert [one["id"] for one in details["prefill"]] == [one["id"] for one in tokens]
    assert details["prefill"][0]["logprob"] is None
    assert all(one["logprob"] < 0 for one in details["prefill"][1:])


def test_top_tokens(live: Live) -> None:
    details = live.generate(PROMPT, parameters={"top_n_tokens": 3})["details"]
    for token, top in zip(details["tokens"], details["top_tokens"], strict=True):
        assert len(top) == 3
        assert top[0]["id"] == token["id"]  # greedy
        logprobs = [one["logprob"] for one in top]
        assert logprobs == sorted(logprobs, reverse=True)
    assert "top_tokens" not in live.generate(PROMPT)["details"]


def test_best_of(live: Live) -> None:
    asked = {"best_of": 3, "temperature": 1.0, "seed": 5, "max_new_tokens": 8}
    details = live.generate(PROMPT, parameters=asked)["details"]
    others = details["best_of_sequences"]
    assert len(others) == 2

    def mean(one: dict[str, Any]) -> float:
        return float(sum(token["logprob"] for token in one["tokens"]) / len(one["tokens"]))

    assert mean(details) >= mean(others[0]) >= mean(others[1])
    assert {details["seed"], *(one["seed"] for one in others)} == {5, 6, 7}
    assert others[0].keys() == {
        "generated_text",
        "finish_reason",
        "generated_tokens",
        "seed",
        "prefill",
        "tokens",
    }


def test_a_stop_string_stays_in_the_text_and_ends_it(live: Live) -> None:
    whole = live.generate(PROMPT, parameters={"max_new_tokens": 30})
    answer = whole["generated_text"]
    # Across a border between tokens, from the middle of one to the middle of the next.
    tokens = whole["details"]["tokens"]
    start = next(
        index
        for index in range(2, 25)
        if tokens[index]["text"].isascii()
        and len(tokens[index]["text"]) > 0
        and len(tokens[index + 1]["text"]) > 0
    )
    stop = tokens[start]["text"][-1] + tokens[start + 1]["text"][0]
    cut = live.generate(PROMPT, parameters={"max_new_tokens": 30, "stop": [stop, "never said"]})
    assert cut["generated_text"] == answer[: answer.index(stop) + len(stop)]
    assert cut["details"]["finish_reason"] == "stop_sequence"
    assert cut["details"]["generated_tokens"] < 30
    joined = "".join(one["text"] for one in cut["details"]["tokens"])
    assert joined == cut["generated_text"]
    # A stop that is no list is what curl users write.
    assert live.generate(PROMPT, parameters={"max_new_tokens": 30, "stop": stop}) == cut


def test_end_of_text(live: Live) -> None:
    """Biasless greedy text of a random model rarely ends: a grammar makes it."""
    grammar = {"type": "regex", "value": "(yes|no)"}
    answer = live.generate(PROMPT, parameters={"grammar": grammar, "max_new_tokens": 20})
    assert answer["generated_text"] in ("yes", "no")
    assert answer["details"]["finish_reason"] == "eos_token"


@pytest.mark.parametrize("field", ["grammar", "response_format"])
def test_json(live: Live, field: str) -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer", "maximum": 99, "minimum": 10}},
        "required": ["n"],
        "additionalProperties": False,
    }
    value = {
        "grammar": {"type": "json", "value": schema},
        "response_format": {"type": "json_object", "schema": schema},
    }[field]
    answer = live.generate(PROMPT, parameters={field: value, "max_new_tokens": 120})
    assert answer["details"]["finish_reason"] == "eos_token"
    assert 10 <= json.loads(answer["generated_text"])["n"] <= 99


def test_the_compatible_route_answers_an_array(live: Live) -> None:
    body = {"inputs": PROMPT, "parameters": {"details": True}}
    answer = live.http.post("/", json=body).json()
    assert answer == [live.http.post("/generate", json=body).json()]


def test_tokenize(live: Live) -> None:
    tokens = live.http.post("/tokenize", json={"inputs": "Ahoy!"}).json()
    assert tokens[0] == {"id": 1, "text": "<s>", "start": 0, "stop": 0}
    assert "".join(one["text"] for one in tokens[1:]) == "Ahoy!"
    plain = {"inputs": "Ahoy!", "add_special_tokens": False}
    assert live.http.post("/tokenize", json=plain).json() == tokens[1:]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"inputs": ""}, "inputs is empty"),
    ({}, "inputs is required"),
    ({"inputs": 3}, "inputs must be a string, not 3"),
    ({"inputs": ["a"]}, "inputs must be a string"),
    ({"inputs": "x", "prompt": "y"}, "unknown field prompt"),
    ({"inputs": "x", "parameters": []}, "parameters must be"),
    ({"inputs": "x", "stream": "yes"}, "stream"),
    ({"inputs": "long " * 400}, "length is 512 tokens"),
]
BAD_PARAMETERS: list[tuple[dict[str, Any], str]] = [
    ({"max_new_tokens": 0}, "from 1 to"),
    ({"max_new_tokens": -1}, "-1"),
    ({"max_new_tokens": 1.5}, "integer"),
    ({"max_new_tokens": "5"}, "integer"),
    ({"max_new_tokens": True}, "integer"),
    ({"max_new_tokens": 10**9}, "length is 512 tokens"),
    ({"max_new_tokens": 10**30}, "max_new_tokens"),
    ({"temperature": -0.1}, "temperature must be from 0 to 100, not -0.1"),
    ({"temperature": 1e999}, "temperature"),
    ({"temperature": "hot"}, "temperature must be a number"),
    ({"max_new_tokens": "many"}, "max_new_tokens must be an integer"),
    ({"top_p": 0}, "top_p must be above 0 and at most 1, not 0"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_k": -1}, "top_k"),
    ({"min_p": 2}, "min_p"),
    ({"typical_p": 0}, "typical_p"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"frequency_penalty": 3}, "frequency_penalty must be from -2 to 2, not 3"),
    ({"presence_penalty": -3}, "presence_penalty"),
    ({"seed": 2**64}, "seed"),
    ({"seed": 1.5}, "seed"),
    ({"stop": ["x"] * 17}, "17"),
    ({"stop": [1]}, "stop"),
    ({"truncate": 0}, "truncate"),
    ({"best_of": 2}, "needs sampling"),
    ({"best_of": 17, "temperature": 1}, "from 1 to 16"),
    ({"top_n_tokens": 21}, "top_n_tokens"),
    ({"watermark": True}, "watermark is not served"),
    ({"merged_adapters": {"ids": ["a"]}}, "merged_adapters.weights is required"),
    ({"adapter_source": "hub"}, "adapter_source"),
    ({"return_k_alternatives": 2}, "top_n_tokens"),
    ({"grammar": {"type": "json", "value": {"type": "cat"}}}, "cat"),
    ({"grammar": {"type": "regex", "value": "(a"}}, "regular expression"),
    ({"grammar": {"type": "gbnf", "value": "x"}}, "GBNF grammar"),
    ({"grammar": {"type": "yacc", "value": "x"}}, "yacc"),
    ({"temprature": 1}, "unknown field parameters.temprature"),
]


@pytest.mark.parametrize(
    ("body", "words"),
    [*BAD, *(({"inputs": "x", "parameters": one}, words) for one, words in BAD_PARAMETERS)],
)
@pytest.mark.parametrize("path", ["/generate", "/generate_stream"])
def test_bad_input(live: Live, body: dict[str, Any], words: str, path: str) -> None:
    # httpx refuses to write infinity; a client that writes 1e999 does not.
    content = json.dumps(body).replace("Infinity", "1e999")
    headers = {"Content-Type": "application/json"}
    answer = live.http.post(path, content=content, headers=headers)
    assert answer.status_code == 422, answer.text
    assert answer.json().keys() == {"error", "error_type"}
    assert answer.json()["error_type"] == "validation"
    assert words in answer.json()["error"]


def test_every_wrong_field_is_named(live: Live) -> None:
    body = {"inputs": "x", "parameters": {"top_p": 7, "top_k": -3}, "seeds": 1}
    message = live.http.post("/generate", json=body).json()["error"]
    assert all(word in message for word in ("top_p", "top_k", "seeds"))


@pytest.mark.parametrize(
    ("content", "status"),
    [(b"{", 400), (b'{"inputs": NaN}', 400), (b"\xff", 400), (b"", 400), (b"[1]", 422)],
)
def test_broken_json(live: Live, content: bytes, status: int) -> None:
    headers = {"Content-Type": "application/json"}
    answer = live.http.post("/generate", content=content, headers=headers)
    assert answer.status_code == status
    assert answer.json()["error_type"] == "validation"


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", None])
def test_wrong_content_type(live: Live, kind: str | None) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    answer = live.http.post("/generate", content=b'{"inputs": "x"}', headers=headers)
    assert answer.status_code == 415


def test_a_body_beyond_the_limit(live: Live) -> None:
    body = {"inputs": "x" * (9 << 20)}
    assert live.http.post("/generate", json=body).status_code == 413
    # Without a Content-Length, too.
    chunks = (b" " * (1 << 20) for _ in range(9))
    headers = {"Content-Type": "application/json"}
    assert live.http.post("/generate", content=chunks, headers=headers).status_code == 413


def test_a_default_length_never_refuses_a_prompt_that_fits(live: Live) -> None:
    inputs = "rice " * 450
    length = len(live.http.post("/tokenize", json={"inputs": inputs}).json())
    assert 412 < length < 512
    answer = live.http.post(
        "/generate", json={"inputs": inputs, "parameters": {"details": True}}
    ).json()
    assert answer["details"]["generated_tokens"] <= 512 - length


def test_ignore_eos(live: Live, archives: Callable[[int], Any]) -> None:
    parameters = {"max_new_tokens": 64, "temperature": 3.0, "seed": 11, "ignore_eos_token": True}
    answer = live.generate(PROMPT, parameters=parameters)
    assert answer["details"]["generated_tokens"] == 64
