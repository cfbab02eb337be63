"""vLLM's sampling fields on OpenAI's routes."""

from __future__ import annotations

from typing import Any

import pytest

from api.live import Live, refused
from support.tokenizer import EOS

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
        ({"stop_token_ids": [384]}, "384 is no token id"),
        ({"stop_token_ids": ["a"]}, "stop_token_ids"),
        ({"allowed_token_ids": [-1]}, "-1 is no token id"),
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
