"""Values as clients and forms send them, where the strict reading helps nobody."""

from __future__ import annotations

from typing import Any

import pytest

import lorry
from api.live import Live

MESSAGES = [{"role": "user", "content": "How do I cook rice?"}]
PROMPTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES},
    "/v1/completions": {"prompt": "How do I"},
}


def ask(live: Live, path: str, **extra: Any) -> dict[str, Any]:
    body = {**PROMPTS[path], "temperature": 0, "max_tokens": 5, **extra}
    answer = live.http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()  # type: ignore[no-any-return]


@pytest.mark.parametrize("path", PROMPTS)
def test_a_whole_number_may_have_a_point(live: Live, path: str) -> None:
    plain = ask(live, path)
    for extra in ({"max_tokens": 5.0}, {"n": 1.0, "top_k": -1.0}, {"seed": 3.0}):
        assert ask(live, path, **extra)["choices"] == plain["choices"]
    body = {**PROMPTS[path], "max_tokens": 5.5}
    assert live.http.post(path, json=body).status_code == 400
    inputs = {"inputs": "x", "parameters": {"max_new_tokens": 3.0, "seed": 1.0, "details": True}}
    tgi = live.http.post("/generate", json=inputs).json()
    assert tgi["details"]["generated_tokens"] == 3


@pytest.mark.parametrize("path", PROMPTS)
def test_minus_one_is_all_the_room(live: Live, path: str) -> None:
    answer = ask(live, path, max_tokens=-1, ignore_eos=True)
    assert answer["usage"]["total_tokens"] == 512


@pytest.mark.parametrize("path", PROMPTS)
def test_what_a_form_leaves_empty(live: Live, path: str) -> None:
    plain = ask(live, path)["choices"]
    for stop in ("", [], [""], ["", "never said"]):
        assert ask(live, path, stop=stop)["choices"] == plain


@pytest.mark.parametrize("path", PROMPTS)
def test_no_mass_is_the_likeliest_token(live: Live, path: str) -> None:
    plain = ask(live, path)["choices"]
    for seed in range(3):
        assert ask(live, path, top_p=0, temperature=2, seed=seed)["choices"] == plain


def test_no_alternatives_need_no_logprobs(live: Live) -> None:
    path = "/v1/chat/completions"
    for extra in ({"top_logprobs": 0}, {"logprobs": False, "top_logprobs": 0}):
        assert ask(live, path, **extra)["choices"] == ask(live, path)["choices"]


@pytest.mark.parametrize("path", PROMPTS)
def test_usage_and_fingerprint_are_whole(live: Live, path: str) -> None:
    answer = ask(live, path, ignore_eos=True)
    usage = answer["usage"]
    assert usage["completion_tokens"] == 5
    assert 0 <= usage["prompt_tokens_details"]["cached_tokens"] < usage["prompt_tokens"]
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 0
    # Its base, what it was quantized to, and the version.
    assert answer["system_fingerprint"] == f"lorry-{lorry.__version__}-tiny-none"
