"""`/v1/completions`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from api.counted import counts
from api.live import Live

PROMPT = "The harbour was quiet"


def complete(live: Live, prompt: Any = PROMPT, **extra: Any) -> dict[str, Any]:
    body = {"model": "tiny", "prompt": prompt, "temperature": 0, **extra}
    answer = live.http.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()  # type: ignore[no-any-return]


def chunks(live: Live, **body: Any) -> list[dict[str, Any]]:
    given = {"prompt": PROMPT, "temperature": 0, "stream": True, **body}
    answer = live.http.post("/v1/completions", json=given)
    assert answer.status_code == 200, answer.text
    frames = answer.text.split("\n\n")
    assert frames[-2:] == ["data: [DONE]", ""]
    return [json.loads(frame.removeprefix("data: ")) for frame in frames[:-2]]


def ids_of(live: Live, text: str) -> list[int]:
    tokens = live.http.post("/tokenize", json={"inputs": text}).json()
    return [one["id"] for one in tokens]


def test_the_answer(live: Live) -> None:
    answer = complete(live)
    assert answer["object"] == "text_completion"
    assert answer["id"].startswith("cmpl-")
    choice = answer["choices"][0]
    assert choice.keys() == {"index", "text", "logprobs", "finish_reason", "stop_reason"}
    assert (choice["index"], choice["logprobs"], choice["finish_reason"]) == (0, None, "length")
    length = len(ids_of(live, PROMPT))
    counts = {"prompt_tokens": length, "completion_tokens": 16, "total_tokens": length + 16}
    assert counts.items() <= answer["usage"].items()
    generated = live.generate(PROMPT, parameters={"max_new_tokens": 16})
    assert choice["text"] == generated["generated_text"]


def test_prompts_of_every_kind(live: Live) -> None:
    one = complete(live)["choices"][0]["text"]
    other = complete(live, "Ahoy")["choices"][0]["text"]
    ids, other_ids = ids_of(live, PROMPT), ids_of(live, "Ahoy")
    for prompt in ([PROMPT, "Ahoy"], [ids, other_ids], [PROMPT, other_ids]):
        choices = complete(live, prompt)["choices"]
        assert [choice["text"] for choice in choices] == [one, other]
        assert [choice["index"] for choice in choices] == [0, 1]
    assert complete(live, ids)["choices"][0]["text"] == one


def test_each_prompt_has_a_seed_of_its_own_where_none_is_given(live: Live) -> None:
    asked = {"prompt": ["The harbour"] * 2, "temperature": 2, "max_tokens": 20, "ignore_eos": True}
    one, other = (choice["text"] for choice in complete(live, **asked)["choices"])
    assert one != other
    one, other = (choice["text"] for choice in complete(live, **asked, seed=3)["choices"])
    assert one == other


def test_n_and_seed(live: Live) -> None:
    asked = {"n": 3, "temperature": 1.2, "seed": 9, "max_tokens": 10}
    answer = complete(live, [PROMPT, "Ahoy"], **asked)
    texts = [choice["text"] for choice in answer["choices"]]
    assert len(texts) == 6 and len(set(texts[:3])) == 3
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    assert answer["usage"]["completion_tokens"] == 60
    assert answer["usage"]["prompt_tokens"] == len(ids_of(live, PROMPT) + ids_of(live, "Ahoy"))
    again = complete(live, [PROMPT, "Ahoy"], **asked)
    assert [choice["text"] for choice in again["choices"]] == texts
    # The first of several is the one that the seed alone makes.
    alone = complete(live, **{**asked, "n": 1})
    assert alone["choices"][0]["text"] == texts[0]


def test_the_default_temperature_is_openais(live: Live) -> None:
    texts = {complete(live, temperature=None, seed=seed)["choices"][0]["text"] for seed in range(4)}
    assert len(texts) > 1


def test_best_of(live: Live) -> None:
    asked = {"temperature": 1.2, "seed": 9, "max_tokens": 6, "logprobs": 0}
    every = complete(live, n=4, **asked)["choices"]
    best = complete(live, n=2, best_of=4, **asked)

    def mean(choice: dict[str, Any]) -> float:
        logprobs = choice["logprobs"]["token_logprobs"]
        return float(sum(logprobs) / len(logprobs))

    ranked = sorted(every, key=mean, reverse=True)
    assert [one["text"] for one in best["choices"]] == [one["text"] for one in ranked[:2]]
    assert best["usage"]["completion_tokens"] == 24


def test_logprobs_and_echo(live: Live) -> None:
    choice = complete(live, logprobs=2, echo=True, max_tokens=4)["choices"][0]
    logprobs, ids = choice["logprobs"], ids_of(live, PROMPT)
    assert choice["text"].startswith(PROMPT)
    assert {len(column) for column in logprobs.values()} == {len(ids) + 4}
    assert logprobs["token_logprobs"][0] is None
    assert all(one < 0 for one in logprobs["token_logprobs"][1:])
    assert logprobs["top_logprobs"][0] is None
    for token, logprob, top in list(
        zip(logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True)
    )[1:]:
        # The token's own stands beside the likeliest where it is none of them.
        assert len(top) - (logprob < sorted(top.values())[-2]) == 2
        assert top[token] == logprob
    prefill = live.generate(PROMPT, parameters={"decoder_input_details": True})["details"][
        "prefill"
    ]
    expected = [one["logprob"] for one in prefill]
    assert logprobs["token_logprobs"][1 : len(ids)] == pytest.approx(expected[1:])
    for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        if token != "<s>" and not token.startswith("bytes:"):
            assert choice["text"][offset:].startswith(token)


def test_the_likeliest_in_the_prompt_are_those_that_an_answer_would_have_had(live: Live) -> None:
    """What scores answers (multiple choice, perplexity) asks whether a token was the likeliest."""
    ids = ids_of(live, PROMPT)
    echoed = complete(live, model="pirate", logprobs=3, echo=True, max_tokens=1)
    tops = echoed["choices"][0]["logprobs"]["top_logprobs"]
    for place in range(1, len(ids)):
        drawn = complete(live, ids[:place], model="pirate", logprobs=3, max_tokens=1)
        top = drawn["choices"][0]["logprobs"]["top_logprobs"][0]
        # The third may change places with the fourth where they are nearly equal.
        best = dict(sorted(top.items(), key=lambda one: -one[1])[:2])
        assert best == pytest.approx({label: tops[place][label] for label in best}, abs=1e-4)


def test_echo_without_a_new_token(live: Live) -> None:
    answer = complete(live, logprobs=1, echo=True, max_tokens=0)
    choice = answer["choices"][0]
    assert choice["text"] == PROMPT
    assert len(choice["logprobs"]["tokens"]) == len(ids_of(live, PROMPT))
    assert answer["usage"]["completion_tokens"] == 0


def test_a_stop_string_is_dropped(live: Live) -> None:
    text = complete(live, max_tokens=30)["choices"][0]["text"]
    stop = text[4:7]
    cut = complete(live, max_tokens=30, stop=stop)["choices"][0]
    assert cut["text"] == text[: text.index(stop)]
    assert cut["finish_reason"] == "stop"
    streamed = chunks(live, max_tokens=30, stop=[stop])
    assert "".join(one["choices"][0]["text"] for one in streamed) == cut["text"]
    assert streamed[-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("stop", ["<|im_end|>", "a<|im_end|>", "a<|im_end|><|im_end|>"])
def test_special_tokens_in_a_stop_string_are_seen_and_not_shown(live: Live, stop: str) -> None:
    a, end = (ids_of(live, text)[-1] for text in ("a", "<|im_end|>"))
    asked = {
        "logit_bias": {str(a): 100, str(end): 100},
        "temperature": 8,
        "max_tokens": 60,
        "ignore_eos": True,
    }
    for seed in range(20):
        asked["seed"] = seed
        choice = complete(live, logprobs=0, **asked)["choices"][0]
        written = "".join(choice["logprobs"]["tokens"])
        if stop in written:
            break
    assert choice["text"] == written.replace("<|im_end|>", "")
    shown = written[: written.index(stop)].replace("<|im_end|>", "")
    cut = complete(live, stop=stop, **asked)["choices"][0]
    assert (cut["text"], cut["finish_reason"]) == (shown, "stop")
    streamed = [one["choices"][0] for one in chunks(live, stop=[stop], **asked)]
    assert "".join(one["text"] for one in streamed) == shown
    assert streamed[-1]["finish_reason"] == "stop"
    messages = [{"role": "user", "content": "Ahoy"}]
    chat = {"messages": messages, "stop": ["<|im_end|>"], **asked}
    answer = live.http.post("/v1/chat/completions", json=chat).json()["choices"][0]
    assert answer["finish_reason"] == "stop"
    assert "<|im_end|>" not in answer["message"]["content"]


def test_an_end_token_ends_a_stop_string(live: Live) -> None:
    a, end = (ids_of(live, text)[-1] for text in ("a", "</s>"))
    asked = {"logit_bias": {str(a): 100, str(end): 100}, "temperature": 8, "max_tokens": 100}
    for seed in range(20):
        whole = complete(live, seed=seed, **asked)["choices"][0]
        if whole["finish_reason"] == "stop" and whole["text"].endswith("a"):
            break
    cut = complete(live, seed=seed, stop="a</s>", **asked)["choices"][0]
    assert (cut["text"], cut["finish_reason"]) == (whole["text"][:-1], "stop")


def test_logit_bias(live: Live) -> None:
    token = ids_of(live, "a")[-1]
    asked = {"logit_bias": {str(token): 100}, "max_tokens": 5}
    assert complete(live, **asked)["choices"][0]["text"] == "aaaaa"


def test_response_format(live: Live) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    schema["additionalProperties"] = False
    format = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    choice = complete(live, response_format=format, max_tokens=100)["choices"][0]
    assert json.loads(choice["text"])["a"] in (True, False)
    assert choice["finish_reason"] == "stop"


def test_streams(live: Live) -> None:
    asked = {"n": 2, "temperature": 1.0, "seed": 3, "max_tokens": 7, "logprobs": 1, "echo": True}
    whole = complete(live, model="pirate", **asked)
    got = chunks(live, model="pirate", stream_options={"include_usage": True}, **asked)
    *parts, last = got
    assert last["choices"] == [] and counts(last) == counts(whole)
    assert all(one["usage"] is None for one in parts)
    assert got[0]["adapters"] == got[-1]["adapters"] == whole["adapters"]
    assert {one["id"] for one in got} == {got[0]["id"]}
    for index in range(2):
        mine = [one["choices"][0] for one in parts if one["choices"][0]["index"] == index]
        assert "".join(one["text"] for one in mine) == whole["choices"][index]["text"]
        assert [one["finish_reason"] for one in mine][-1] == "length"
        # Not the tops: two that are nearly equal may change places with the batch.
        for column in ("tokens", "text_offset", "token_logprobs"):
            values = whole["choices"][index]["logprobs"][column]
            streamed = [one for part in mine for one in part["logprobs"][column]]
            if column == "token_logprobs":
                assert streamed[0] is values[0] is None
                assert streamed[1:] == pytest.approx(values[1:], abs=1e-4)
            else:
                assert streamed == values
    assert "usage" not in chunks(live, max_tokens=2)[-1]


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"prompt": ""}, "empty"),
        ({"prompt": []}, "prompt must be"),
        ({"prompt": [[]]}, "no tokens"),
        ({"prompt": [99999]}, "99999"),
        ({"prompt": [-1]}, "-1"),
        ({"prompt": [1.5]}, "prompt must be"),
        ({"prompt": None}, "prompt must be"),
        ({"prompt": ["x"] * 129}, "128"),
        ({"max_tokens": -2}, "max_tokens must be from -1"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"prompt": "long " * 600}, "this model's maximum context length is 512 tokens"),
        ({"n": 0}, "n must be from 1 to 16"),
        ({"n": 3, "best_of": 2}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"suffix": "end"}, "suffix is not served"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"99999": 1}}, "99999"),
        ({"logit_bias": {"5": 101}}, "from -100 to 100"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"response_format": {"type": "xml"}}, "xml"),
        ({"stop": ["a"] * 20}, "stop"),
        ({"use_beam_search": True}, "use_beam_search is not served"),
    ],
)
def test_bad_input(live: Live, extra: dict[str, Any], words: str) -> None:
    answer = live.http.post("/v1/completions", json={"prompt": "x", **extra})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code", "problems"}
    assert error["type"] == "invalid_request_error"
    assert words in error["message"]


def test_what_has_no_bearing_on_the_answer_is_accepted(live: Live) -> None:
    plain = complete(live)["choices"]
    idle = {"user": "ann", "metadata": {"a": "b"}, "store": False, "service_tier": "auto"}
    assert complete(live, **idle)["choices"] == plain
