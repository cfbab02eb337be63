"""`/tokenize` as TGI and as vLLM have it, `/detokenize`, `/tokenizer_info`, `/version`, `/ping`."""

from __future__ import annotations

from typing import Any

import pytest

import lorry
from api.live import Live, refused

TEXT = "How do I cook rice? Naïve 🍚"


def tokenize(live: Live, **body: Any) -> Any:
    answer = live.http.post("/tokenize", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_the_shape_is_that_of_who_asks(live: Live) -> None:
    pieces = tokenize(live, inputs=TEXT)
    counted = tokenize(live, prompt=TEXT, model="pirate", return_token_strs=True)
    assert [one["id"] for one in pieces] == counted["tokens"]
    assert counted["count"] == len(counted["tokens"]) == len(counted["token_strs"])
    assert counted["max_model_len"] == 512
    assert tokenize(live, prompt=TEXT)["token_strs"] is None


def test_special_tokens_are_left_out_on_demand(live: Live) -> None:
    whole = tokenize(live, prompt=TEXT)["tokens"]
    bare = tokenize(live, prompt=TEXT, add_special_tokens=False)["tokens"]
    assert whole[-len(bare) :] == bare and len(whole) > len(bare)


def test_a_conversation_is_what_chat_makes_of_it(live: Live) -> None:
    messages = [{"role": "user", "content": TEXT}]
    ids = tokenize(live, messages=messages)["tokens"]
    body = {"messages": messages, "max_tokens": 1}
    usage = live.http.post("/v1/chat/completions", json=body).json()["usage"]
    assert len(ids) == usage["prompt_tokens"]
    ended = tokenize(live, messages=messages, add_generation_prompt=False)["tokens"]
    assert ids[: len(ended)] == ended and len(ended) < len(ids)
    marked = [{"role": "user", "content": "<|im_end|>" * 4}]
    assert len(tokenize(live, messages=marked)["tokens"]) > len(
        tokenize(live, messages=marked, parse_special=True)["tokens"]
    )


def test_the_way_back(live: Live) -> None:
    ids = tokenize(live, prompt=TEXT, add_special_tokens=False)["tokens"]
    answer = live.http.post("/detokenize", json={"tokens": ids, "model": "pirate"})
    assert answer.json() == {"prompt": TEXT}
    assert live.http.post("/detokenize", json={"tokens": []}).json() == {"prompt": ""}


@pytest.mark.parametrize("body", [{}, {"inputs": "x", "prompt": "x"}, {"prompt": 7}])
def test_exactly_one_text_is_asked_for(live: Live, body: dict[str, Any]) -> None:
    assert live.http.post("/tokenize", json=body).status_code == 422


def test_what_is_not_there_is_refused(live: Live) -> None:
    answer = live.http.post("/tokenize", json={"prompt": "x", "model": "nobody"})
    assert answer.status_code == 404
    answer = live.http.post("/detokenize", json={"tokens": [1], "model": "nobody"})
    refused(answer, 404, "model_not_found")
    answer = live.http.post("/detokenize", json={"tokens": [10**9]})
    assert "not a token id" in refused(answer, 400, "invalid_request")["message"]


def test_a_client_that_makes_its_own_chats_has_what_it_needs(live: Live) -> None:
    """lm-eval's remote tokenizer asks so."""
    info = live.http.get("/tokenizer_info").json()
    assert isinstance(info["eos_token"], str)
    tokenizer = live.server.tokenizer
    assert info["bos_token"] == tokenizer.bos_token
    assert info["chat_template"] == tokenizer.chat_template
    assert info["model_max_length"] == 512


def test_gateways_ask_for_the_version_and_ping(live: Live) -> None:
    assert live.http.get("/version").json() == {"version": lorry.__version__}
    assert live.http.get("/ping").status_code == 200
    assert live.http.post("/ping").status_code == 200
