"""Statuses as the clients of each shape know them: OpenAI's routes say 400, the others 422."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from api.live import Live, refused, serve
from lorry.api.errors import headers_of, respond
from lorry.settings import Settings
from lorry_adapters.errors import HomeUnusable

MESSAGES = [{"role": "user", "content": "How do I cook rice?"}]
LONG = "rice " * 600


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("/v1/chat/completions", {"messages": MESSAGES, "n": 0}, "invalid_request"),
        ("/v1/chat/completions", {"messages": []}, "invalid_request"),
        ("/v1/completions", {"prompt": "x", "temperature": -1}, "invalid_request"),
        ("/v1/completions", {"prompt": "x", "suffix": "y"}, "unsupported_parameter"),
        ("/v1/completions", {"prompt": "x", "adapter": 7}, "invalid_selection"),
        ("/v1/completions", {"prompt": LONG}, "context_length_exceeded"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": LONG}]},
         "context_length_exceeded"),
        ("/v1/embeddings", {"input": LONG}, "context_length_exceeded"),
        ("/v1/embeddings", {"input": "x", "encoding_format": "hex"}, "invalid_request"),
    ],
)  # fmt: skip
def test_openai_s_routes_say_400(live: Live, path: str, body: dict[str, Any], code: str) -> None:
    for stream in (False, True) if path != "/v1/embeddings" else (None,):
        streamed = {} if stream is None else {"stream": stream}
        error = refused(live.http.post(path, json={**body, **streamed}), 400, code)
        assert error["problems"] and error["param"]
        if code == "context_length_exceeded":
            # LangChain and LiteLLM look for these words.
            assert "prompt is too long" in error["message"]
            assert "this model's maximum context length is 512 tokens" in error["message"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"])
def test_a_model_that_is_not_there_is_404(live: Live, path: str) -> None:
    body = {"model": "nobody", "messages": MESSAGES, "prompt": "x", "input": "x"}
    field = {"/v1/chat/completions": "messages", "/v1/completions": "prompt"}.get(path, "input")
    sent = {key: body[key] for key in ("model", field)}
    assert refused(live.http.post(path, json=sent), 404, "model_not_found")["param"] == "model"
    refused(live.http.get("/v1/models/nobody"), 404, "model_not_found")


def test_other_routes_keep_422(live: Live) -> None:
    tgi = live.http.post("/generate", json={"inputs": LONG})
    assert (tgi.status_code, tgi.json()["error_type"]) == (422, "validation")
    refused(live.http.patch("/adapters/pirate", json={"scale": 99}), 422, "invalid_scale")
    refused(live.http.post("/classify", json={"inputs": "x"}), 422, "invalid_selection")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_more_tokens_than_there_is_room_for(
    live: Live, path: str, tmp_path: Path, settings_for: Callable[..., Settings]
) -> None:
    prompt: dict[str, Any] = {"messages": MESSAGES} if "chat" in path else {"prompt": "x"}
    body = {**prompt, "max_tokens": 10**9, "temperature": 0, "ignore_eos": True}
    answer = live.http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["total_tokens"] == 512
    assert answer.json()["choices"][0]["finish_reason"] == "length"
    with serve(settings_for(tmp_path / "home", beyond_context="refuse")) as strict:
        error = refused(strict.http.post(path, json=body), 400, "context_length_exceeded")
        assert "1000000000 new ones" in error["message"]
        assert strict.http.post(path, json={**body, "max_tokens": 4}).status_code == 200


def test_what_may_pass_says_when_to_try_again() -> None:
    error = HomeUnusable("the disk is gone")
    assert respond("/adapters", error).status_code == 503
    assert int(headers_of(error)["Retry-After"]) >= 1
