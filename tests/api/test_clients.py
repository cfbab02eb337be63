"""The clients that people have. The hub's is here for real; LoRAX's and TGI's own pin an old
hub, so what they parse is written down from their source."""

from __future__ import annotations

from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import ValidationError
from pydantic import BaseModel

from api.live import Live

PROMPT = "How do I cook rice?"


@pytest.fixture(autouse=True)
def _online(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests are offline, which to the hub's client means localhost, too."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)


@pytest.fixture
def hub(live: Live) -> InferenceClient:
    return InferenceClient(model=live.url, token="none")


def test_hub_text(hub: InferenceClient, live: Live) -> None:
    expected = live.generate(PROMPT, adapter="pirate", parameters={"max_new_tokens": 8})
    text = hub.text_generation(PROMPT, adapter_id="pirate", max_new_tokens=8)
    assert text == expected["generated_text"]
    assert text != hub.text_generation(PROMPT, max_new_tokens=8)


def test_hub_details(hub: InferenceClient, live: Live) -> None:
    answer = hub.text_generation(
        PROMPT,
        adapter_id="pirate",
        max_new_tokens=8,
        details=True,
        decoder_input_details=True,
        do_sample=True,
        seed=2,
        temperature=0.9,
        top_k=50,
        top_p=0.9,
        typical_p=0.95,
        repetition_penalty=1.1,
        top_n_tokens=2,
        stop=["\n\n\n"],
        truncate=100,
        best_of=2,
    )
    assert answer.details is not None
    assert answer.details.finish_reason == "length"
    assert answer.details.generated_tokens == len(answer.details.tokens) == 8
    assert answer.details.prefill[0].text == "<s>"
    assert answer.details.top_tokens is not None and len(answer.details.top_tokens[0]) == 2
    assert answer.details.best_of_sequences is not None
    assert len(answer.details.best_of_sequences) == 1


def test_hub_stream(hub: InferenceClient) -> None:
    whole = hub.text_generation(PROMPT, max_new_tokens=8)
    assert "".join(hub.text_generation(PROMPT, max_new_tokens=8, stream=True)) == whole
    events = list(hub.text_generation(PROMPT, max_new_tokens=8, stream=True, details=True))
    assert events[-1].generated_text == whole
    assert events[-1].details is not None
    assert events[-1].details.finish_reason == "length"
    assert [one.index for one in events] == list(range(1, 9))


def test_hub_errors(hub: InferenceClient) -> None:
    with pytest.raises(ValidationError, match="temperature"):
        hub.text_generation(PROMPT, temperature=-1)
    with pytest.raises(ValidationError, match="watermark"):
        hub.text_generation(PROMPT, watermark=True)


def test_hub_grammar(hub: InferenceClient) -> None:
    grammar: Any = {"type": "regex", "value": "(yes|no)"}
    assert hub.text_generation(PROMPT, grammar=grammar) in ("yes", "no")


def test_hub_chat(live: Live) -> None:
    client = InferenceClient(base_url=live.url, api_key="none")
    messages = [{"role": "user", "content": "hi"}]
    answer = client.chat_completion(messages, model="pirate", max_tokens=5, seed=1, temperature=0.5)
    text = answer.choices[0].message.content
    chunks = client.chat_completion(
        messages, model="pirate", max_tokens=5, seed=1, temperature=0.5, stream=True
    )
    assert "".join(one.choices[0].delta.content or "" for one in chunks) == text


# lorax-client 0.6 and text-generation 0.7 parse with models of these fields.


class InputToken(BaseModel):
    id: int
    text: str
    logprob: float | None = None


class Token(BaseModel):
    id: int
    text: str
    logprob: float | None
    special: bool
    skipped: bool


class Details(BaseModel):
    finish_reason: str
    prompt_tokens: int
    generated_tokens: int
    skipped_tokens: int
    seed: int | None = None
    prefill: list[InputToken]
    tokens: list[Token]


class Response(BaseModel):
    generated_text: str
    details: Details | None = None


class StreamDetails(BaseModel):
    finish_reason: str
    prompt_tokens: int
    generated_tokens: int
    seed: int | None = None


class StreamResponse(BaseModel):
    token: Token
    generated_text: str | None = None
    details: StreamDetails | None = None


LORAX_PARAMETERS = {
    "adapter_id": "pirate",
    "adapter_source": None,
    "merged_adapters": None,
    "api_token": None,
    "best_of": None,
    "details": True,
    "do_sample": False,
    "max_new_tokens": 6,
    "ignore_eos_token": False,
    "repetition_penalty": None,
    "return_full_text": False,
    "seed": None,
    "stop": [],
    "temperature": None,
    "top_k": None,
    "top_p": None,
    "truncate": None,
    "typical_p": None,
    "watermark": False,
    "response_format": None,
    "decoder_input_details": False,
    "return_k_alternatives": None,
}


def test_lorax_client(live: Live) -> None:
    """It posts to the base URL itself, sends every field, and takes the first of a list."""
    body = {"inputs": PROMPT, "stream": False, "parameters": LORAX_PARAMETERS}
    payload = live.http.post("", json=body).json()
    answer = Response.model_validate(payload[0])
    assert answer.details is not None and answer.details.generated_tokens == 6
    with live.http.stream("POST", "", json={**body, "stream": True}) as response:
        lines = [line for line in response.iter_lines() if line.startswith("data:")]
    events = [StreamResponse.model_validate_json(line.removeprefix("data:")) for line in lines]
    assert events[-1].generated_text == answer.generated_text
    assert events[-1].details is not None


def test_lorax_client_errors(live: Live) -> None:
    parameters = {**LORAX_PARAMETERS, "adapter_id": "nobody"}
    answer = live.http.post("", json={"inputs": PROMPT, "parameters": parameters})
    assert answer.status_code == 404
    assert answer.json()["error_type"] == "not_found"
