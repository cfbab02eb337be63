"""Hugging Face's `InferenceClient`, which speaks TGI's API and OpenAI's."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import HfHubHTTPError, ValidationError

BASE, ADAPTER = "smollm2-135m", "pirate"
PROMPT = "How do I cook rice?"
MESSAGES: Any = [{"role": "user", "content": PROMPT}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"enum": [1, 2]}},
    "required": ["city", "days"],
}
TOOLS: Any = [
    {"type": "function", "function": {"name": "forecast", "description": "", "parameters": SCHEMA}}
]


@pytest.fixture(scope="module")
def client(url: str) -> InferenceClient:
    return InferenceClient(model=url, token="none")


def test_chat(client: InferenceClient) -> None:
    # Without `model=` it asks for a model called `dummy`: the server's own is meant.
    answer = client.chat_completion(MESSAGES, max_tokens=12)
    assert answer.choices[0].message.content and answer.usage.completion_tokens <= 12


def test_stream(client: InferenceClient) -> None:
    whole = client.text_generation(PROMPT, max_new_tokens=12)
    assert "".join(client.text_generation(PROMPT, max_new_tokens=12, stream=True)) == whole
    events = list(client.text_generation(PROMPT, max_new_tokens=12, stream=True, details=True))
    assert events[-1].generated_text == whole and events[-1].details is not None


def test_stream_of_chat(client: InferenceClient) -> None:
    given: Any = {"max_tokens": 12, "temperature": 0}
    whole = client.chat_completion(MESSAGES, **given).choices[0].message.content
    chunks = list(client.chat_completion(MESSAGES, stream=True, **given))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole


def test_async(url: str, client: InferenceClient) -> None:
    async def ask() -> tuple[str, str]:
        async with AsyncInferenceClient(model=url, token="none") as own:
            text = await own.text_generation(PROMPT, max_new_tokens=8)
            stream = await own.text_generation(PROMPT, max_new_tokens=8, stream=True)
            return text, "".join([piece async for piece in stream])

    text = client.text_generation(PROMPT, max_new_tokens=8)
    assert asyncio.run(ask()) == (text, text)


def test_tools(client: InferenceClient) -> None:
    given: Any = {"tools": TOOLS, "tool_choice": "required", "max_tokens": 200}
    (call,) = client.chat_completion(MESSAGES, **given).choices[0].message.tool_calls or ()
    assert call.function.name == "forecast"
    assert json.loads(call.function.arguments)["city"] in ("Rome", "Oslo")


def test_schema(client: InferenceClient) -> None:
    grammar: Any = {"type": "json", "value": SCHEMA}
    said = client.text_generation(PROMPT, grammar=grammar, max_new_tokens=200)
    assert json.loads(said)["days"] in (1, 2)


def test_schema_of_chat(client: InferenceClient) -> None:
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "weather", "schema": SCHEMA}}
    answer = client.chat_completion(MESSAGES, response_format=wanted, max_tokens=200)
    assert json.loads(answer.choices[0].message.content or "")["city"] in ("Rome", "Oslo")


def test_adapter(client: InferenceClient, url: str) -> None:
    base = client.text_generation(PROMPT, max_new_tokens=12)
    assert client.text_generation(PROMPT, max_new_tokens=12, adapter_id=ADAPTER) != base
    by_url = InferenceClient(base_url=url, api_key="none")
    answer = by_url.chat_completion(MESSAGES, model=ADAPTER, max_tokens=12)
    assert answer.model == ADAPTER
    header = {"x-lorry-adapter": ADAPTER}
    routed = InferenceClient(base_url=url, api_key="none", headers=header)
    assert routed.chat_completion(MESSAGES, model=ADAPTER, max_tokens=12).model == ADAPTER
    with pytest.raises(HfHubHTTPError, match="X-Lorry-Adapter"):
        routed.chat_completion(MESSAGES, max_tokens=12)


def test_completion(client: InferenceClient) -> None:
    given: Any = {"max_new_tokens": 8, "details": True, "decoder_input_details": True}
    answer = client.text_generation(PROMPT, top_n_tokens=2, return_full_text=True, **given)
    assert answer.generated_text.startswith(PROMPT)
    assert answer.details is not None and answer.details.prefill
    assert len(answer.details.tokens) == answer.details.generated_tokens <= 8
    assert answer.details.top_tokens is not None and len(answer.details.top_tokens[0]) == 2


def test_embeddings(client: InferenceClient) -> None:
    vectors = client.feature_extraction("rice")
    assert vectors.ndim == 2 and vectors.shape[0] == 1
    assert float((vectors**2).sum()) == pytest.approx(1, abs=1e-3)


def test_errors(client: InferenceClient, url: str) -> None:
    with pytest.raises(ValidationError, match="temperature"):
        client.text_generation(PROMPT, temperature=-1)
    with pytest.raises(HfHubHTTPError, match="nobody"):
        InferenceClient(base_url=url, api_key="none").chat_completion(MESSAGES, model="nobody")
