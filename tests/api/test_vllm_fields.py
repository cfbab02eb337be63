"""vLLM's sampling fields on OpenAI's routes."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from api.live import Live, refused
from support.tokenizer import EOS, VOCAB_SIZE

MESSAGES = [{"role": "user", "content": "The harbour was quiet"}]
ROUTES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES},
    "/v1/completions": {"prompt": "The harbour was quiet"},
}
IM_START = 3

pytestmark = pytest.mark.parametrize("path", ROUTES)


def ask(live: Live, path: str, **extra: Any) -> dict[str, Any]:
    body = {**ROUTES[path], "temperature": 0, "max_tokens": 12, **extra}
    answer = live.http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()  # type: ignore[no-any-return]


def text_of(answer: dict[str, Any]) -> str:
    (choice,) = answer["choices"]
    text = choice["text"] if "text" in choice else choice["message"]["content"]
    assert isinstance(text, str)
    return text


def tokens_of(live: Live, path: str, **extra: Any) -> list[str]:
    """The answer's tokens, as they are written."""
    top = {"logprobs": True} if "chat" in path else {"logprobs": 0}
    (choice,) = ask(live, path, **top, **extra)["choices"]
    logprobs = choice["logprobs"]
    return logprobs.get("tokens") or [one["token"] for one in logprobs["content"]]


def id_of(live: Live, text: str) -> int:
    (token,) = live.http.post(
        "/tokenize", json={"inputs": text, "add_special_tokens": False}
    ).json()
    return int(token["id"])


def test_min_tokens(live: Live, path: str) -> None:
    ends = {"logit_bias": {str(EOS): 100}}
    assert ask(live, path, **ends)["usage"]["completion_tokens"] == 1
    answer = ask(live, path, **ends, min_tokens=5)
    assert answer["usage"]["completion_tokens"] == 6
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_min_tokens_hold_for_stop_strings(live: Live, path: str) -> None:
    """Of an answer of nothing but `a`."""
    only = {"allowed_token_ids": [id_of(live, "a")], "stop": "aa"}
    assert text_of(ask(live, path, **only)) == ""
    assert text_of(ask(live, path, **only, min_tokens=5)) == "aaaaa"
    kept = ask(live, path, **only, min_tokens=5, include_stop_str_in_output=True)
    assert text_of(kept) == "aaaaaaa"


def test_stop_token_ids(live: Live, path: str) -> None:
    letters = [id_of(live, one) for one in "abcdefghijklm"]
    drawn = {"allowed_token_ids": letters, "temperature": 1, "seed": 3}
    plain = tokens_of(live, path, **drawn)
    end = next(index for index, one in enumerate(plain) if index and one not in plain[:index])
    stop = {**drawn, "stop_token_ids": [id_of(live, plain[end])]}
    answer = ask(live, path, **stop)
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == end + 1
    assert text_of(answer) == "".join(plain[:end])
    shown = ask(live, path, **stop, include_stop_str_in_output=True)
    assert text_of(shown) == "".join(plain[: end + 1])
    later = ask(live, path, **stop, min_tokens=end + 1)
    assert later["usage"]["completion_tokens"] > end + 1


def test_include_stop_str_in_output(live: Live, path: str) -> None:
    only = {"allowed_token_ids": [id_of(live, "a")], "stop": ["aaa"]}
    assert text_of(ask(live, path, **only)) == ""
    assert text_of(ask(live, path, **only, include_stop_str_in_output=True)) == "aaa"


def test_special_tokens_are_shown_where_asked_for(live: Live, path: str) -> None:
    only = {"allowed_token_ids": [IM_START], "max_tokens": 3}
    assert text_of(ask(live, path, **only)) == ""
    assert text_of(ask(live, path, **only, skip_special_tokens=True)) == ""
    shown = ask(live, path, **only, skip_special_tokens=False)
    assert text_of(shown) == "<|im_start|>" * 3
    ends = {"logit_bias": {str(EOS): 100}, "skip_special_tokens": False}
    assert text_of(ask(live, path, **ends)) == ""
    assert text_of(ask(live, path, **ends, include_stop_str_in_output=True)) == "</s>"


def test_bad_words(live: Live, path: str) -> None:
    plain = tokens_of(live, path, ignore_eos=True)
    word = next(one for one in plain if one.strip() and "\ufffd" not in one)
    pair = "".join(plain[:2])
    assert word in text_of(ask(live, path, ignore_eos=True))
    for bad in ([word], [word, "never"]):
        without = tokens_of(live, path, bad_words=bad, ignore_eos=True)
        assert word not in without and " " + word.strip() not in without
    if pair.strip() and "\ufffd" not in pair:
        assert pair not in text_of(ask(live, path, bad_words=[pair], ignore_eos=True))


def test_allowed_token_ids(live: Live, path: str) -> None:
    ids = [id_of(live, one) for one in "abc"]
    answer = ask(live, path, allowed_token_ids=ids, temperature=1, seed=4)
    assert set(text_of(answer)) <= set("abc") and len(text_of(answer)) == 12
    assert answer["choices"][0]["finish_reason"] == "length"
    mixed = ask(live, path, allowed_token_ids=ids, guided_regex="[b-z]{4}", max_tokens=20)
    assert set(text_of(mixed)) <= set("bc") and len(text_of(mixed)) == 4


def test_what_asks_for_nothing_changes_nothing(live: Live, path: str) -> None:
    nothing = {
        "min_tokens": 0,
        "stop_token_ids": [],
        "bad_words": [],
        "allowed_token_ids": None,
        "include_stop_str_in_output": False,
        "skip_special_tokens": True,
        "spaces_between_special_tokens": True,
    }
    assert ask(live, path, **nothing)["choices"] == ask(live, path)["choices"]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"min_tokens": 13}, "min_tokens must be at most max_tokens: 13 are more than 12"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"stop_token_ids": [384]}, "384 is not a token id"),
        ({"stop_token_ids": ["a"]}, "stop_token_ids"),
        ({"allowed_token_ids": [-1]}, "-1 is not a token id"),
        ({"allowed_token_ids": [1] * 385}, "allowed_token_ids has 385 tokens"),
        ({"bad_words": ["a"] * 257}, "the most is 256"),
        ({"bad_words": [" "]}, "1 to 1000 characters"),
        ({"bad_words": "a"}, "bad_words"),
        ({"allowed_token_ids": [70], "guided_choice": ["x"]}, "no token is left"),
    ],
)
def test_wrong(live: Live, path: str, asked: dict[str, Any], words: str) -> None:
    body = {**ROUTES[path], "max_tokens": 12, **asked}
    error = refused(live.http.post(path, json=body), 400, "invalid_request")
    assert words in error["message"]


def events(live: Live, path: str, **extra: Any) -> list[dict[str, Any]]:
    body = {**ROUTES[path], "temperature": 0, "max_tokens": 12, "stream": True, **extra}
    answer = live.http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    frames = answer.text.split("\n\n")[:-2]
    return [json.loads(one.removeprefix("data: ")) for one in frames]


def prompt_of(answer: dict[str, Any]) -> dict[str, Any]:
    """Where the two routes tell of the prompt."""
    choice: dict[str, Any] = answer["choices"][0]
    return choice if "text" in choice else answer


def test_return_token_ids(live: Live, path: str) -> None:
    assert "token_ids" not in ask(live, path)["choices"][0]
    answer = ask(live, path, return_token_ids=True, n=2)
    assert len(prompt_of(answer)["prompt_token_ids"]) == answer["usage"]["prompt_tokens"]
    (ids, other) = [one["token_ids"] for one in answer["choices"]]
    assert ids == other and len(ids) == 12
    streamed = events(live, path, return_token_ids=True)
    told = [one["choices"][0].get("token_ids", []) for one in streamed]
    assert [one for part in told for one in part] == ids
    first = prompt_of(streamed[0])["prompt_token_ids"]
    assert first == prompt_of(answer)["prompt_token_ids"]
    assert all("prompt_token_ids" not in prompt_of(one) for one in streamed[1:])


@pytest.mark.parametrize("top", [0, 2])
def test_prompt_logprobs(live: Live, path: str, top: int) -> None:
    answer = prompt_of(ask(live, path, prompt_logprobs=top, return_token_ids=True))
    first, *rest = answer["prompt_logprobs"]
    assert first is None
    for token_id, told in zip(answer["prompt_token_ids"][1:], rest, strict=True):
        assert str(token_id) in told
        assert top <= len(told) <= top + 1
        ranks = {one["rank"]: one["logprob"] for one in told.values() if one["rank"]}
        assert sorted(ranks) == list(range(1, top + 1))
        assert all(ranks[rank] >= ranks[rank + 1] for rank in range(1, top))
        assert all(isinstance(one["decoded_token"], str) for one in told.values())


def test_prompt_logprobs_of_the_whole_vocabulary(live: Live, path: str) -> None:
    answer = prompt_of(ask(live, path, prompt_logprobs=-1, return_token_ids=True))
    first, *rest = answer["prompt_logprobs"]
    assert first is None and len(rest) == len(answer["prompt_token_ids"]) - 1
    for token_id, told in zip(answer["prompt_token_ids"][1:], rest, strict=True):
        assert len(told) == VOCAB_SIZE and str(token_id) in told
        assert sorted(one["rank"] for one in told.values()) == list(range(1, VOCAB_SIZE + 1))
        assert sum(math.exp(one["logprob"]) for one in told.values()) == pytest.approx(1, abs=1e-3)
    long = "rice " * 90
    text = {"messages": [{"role": "user", "content": long}]} if "chat" in path else {"prompt": long}
    body = {**text, "prompt_logprobs": -1}
    error = refused(live.http.post(path, json=body), 400, "unsupported_parameter")
    assert error["param"] == "prompt_logprobs" and "the whole vocabulary" in error["message"]


def test_prompt_logprobs_are_what_an_echo_says(live: Live, path: str) -> None:
    if "chat" in path:
        return
    (choice,) = ask(live, path, echo=True, logprobs=1, prompt_logprobs=3)["choices"]
    columns = choice["logprobs"]
    told = choice["prompt_logprobs"]
    for at, one in list(enumerate(told))[1:]:
        assert columns["token_logprobs"][at] in [value["logprob"] for value in one.values()]
        assert len(columns["top_logprobs"][at]) <= 2 and len(one) >= 3


def reasons(live: Live, path: str, **asked: Any) -> tuple[Any, Any]:
    """Why an answer ended, and by what."""
    (choice,) = ask(live, path, **asked)["choices"]
    ended = [
        one["choices"][0]
        for one in events(live, path, **asked)
        if one["choices"] and one["choices"][0]["finish_reason"]
    ]
    assert len(ended) == 1
    assert ended[0]["stop_reason"] == choice["stop_reason"]
    assert ended[0]["finish_reason"] == choice["finish_reason"]
    return choice["finish_reason"], choice["stop_reason"]


def test_stop_reason(live: Live, path: str) -> None:
    assert reasons(live, path) == ("length", None)
    answer = ask(live, path, return_token_ids=True)
    stop = text_of(answer)[1:3]
    assert reasons(live, path, stop=["not this", stop]) == ("stop", stop)
    token = answer["choices"][0]["token_ids"][3]
    assert reasons(live, path, stop_token_ids=[token]) == ("stop", token)
    ends = {"logit_bias": {str(EOS): 100}}
    assert reasons(live, path, **ends) == ("stop", None)
    assert reasons(live, path, **ends, stop_token_ids=[EOS]) == ("stop", None)
    own = {**ends, "ignore_eos": True, "stop_token_ids": [EOS]}
    assert reasons(live, path, **own) == ("stop", EOS)


def test_truncate_prompt_tokens(live: Live, path: str) -> None:
    whole = prompt_of(ask(live, path, return_token_ids=True))["prompt_token_ids"]
    cut = ask(live, path, truncate_prompt_tokens=5, return_token_ids=True)
    kept = prompt_of(cut)["prompt_token_ids"]
    assert len(kept) == cut["usage"]["prompt_tokens"] == 5
    assert kept[-4:] == whole[-4:]
    context = live.http.get("/info").json()["max_model_len"]
    long = "rice " * context
    text = {"messages": [{"role": "user", "content": long}]} if "chat" in path else {"prompt": long}
    refused(live.http.post(path, json={**text, "max_tokens": 12}), 400, "context_length_exceeded")
    all_room = ask(live, path, **text, truncate_prompt_tokens=-1)
    assert all_room["usage"]["prompt_tokens"] == context - 12
    assert all_room["usage"]["completion_tokens"] == 12


def test_best_of(live: Live, path: str) -> None:
    drawn = {"temperature": 1.5, "seed": 7}
    every = ask(live, path, **drawn, n=4, return_token_ids=True)
    best = ask(live, path, **drawn, best_of=4, return_token_ids=True)
    assert len(best["choices"]) == 1 and best["choices"][0]["index"] == 0
    assert best["choices"][0]["token_ids"] in [one["token_ids"] for one in every["choices"]]
    assert best["usage"]["completion_tokens"] == every["usage"]["completion_tokens"]
    again = ask(live, path, **drawn, best_of=4, return_token_ids=True)
    assert again["choices"] == best["choices"]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"best_of": 2, "n": 3}, "best_of must be at least n"),
        ({"best_of": 2, "stream": True}, "best_of above n"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs cannot stream"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"prompt_logprobs": -2}, "prompt_logprobs"),
        ({"prompt_logprobs": -1, "stream": True}, "prompt_logprobs cannot stream"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens must be -1, or at least 1"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
    ],
)
def test_wrong_reports(live: Live, path: str, asked: dict[str, Any], words: str) -> None:
    error = refused(live.http.post(path, json={**ROUTES[path], **asked}), 400, "invalid_request")
    assert words in error["message"]


def test_a_text_to_embed_is_cut_to_the_context(live: Live, path: str) -> None:
    del path
    context = live.http.get("/info").json()["max_model_len"]
    body = {"input": "rice " * context, "truncate_prompt_tokens": -1}
    answer = live.http.post("/v1/embeddings", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["prompt_tokens"] == context
    error = live.http.post("/v1/embeddings", json={**body, "truncate_prompt_tokens": 0})
    assert "truncate_prompt_tokens" in refused(error, 400, "invalid_request")["message"]
