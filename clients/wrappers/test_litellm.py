"""LiteLLM, by each of its providers that Lorry can be, and through its router."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any

# Its table of prices is read from its own package, not from the network.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm
import pytest

BASE, ADAPTER = "smollm2-135m", "pirate"
PROMPT = "How do I cook rice?"
MESSAGES = [{"role": "user", "content": PROMPT}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"enum": [1, 2]}},
    "required": ["city", "days"],
}
TOOLS = [
    {
        "type": "function",
        "function": {"name": "forecast", "description": "Weather", "parameters": SCHEMA},
    }
]


@pytest.fixture(scope="module")
def given(v1: str) -> Any:
    def make(model: str = BASE, provider: str = "hosted_vllm", **fields: Any) -> Any:
        where = {"model": f"{provider}/{model}", "api_base": v1, "api_key": "none"}
        return {**where, "messages": MESSAGES, "temperature": 0, "max_tokens": 12, **fields}

    return make


def text(answer: Any) -> str:
    return str(answer.choices[0].message.content)


@pytest.mark.parametrize("provider", ["openai", "hosted_vllm", "litellm_proxy"])
def test_chat(given: Any, provider: str) -> None:
    answer = litellm.completion(**given(provider=provider))
    assert text(answer) and 0 < answer.usage.completion_tokens <= 12


def test_chat_of_huggingface(given: Any, url: str) -> None:
    assert text(litellm.completion(**given(provider="huggingface", model="tgi", api_base=url)))


def test_stream(given: Any) -> None:
    whole = text(litellm.completion(**given()))
    chunks = list(litellm.completion(**given(stream=True)))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole


def test_async(given: Any) -> None:
    assert text(asyncio.run(litellm.acompletion(**given()))) == text(litellm.completion(**given()))


def test_tools(given: Any) -> None:
    answer = litellm.completion(**given(tools=TOOLS, tool_choice="required", max_tokens=200))
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "forecast"
    assert json.loads(call.function.arguments)["city"] in ("Rome", "Oslo")


@pytest.mark.parametrize("provider", ["openai", "hosted_vllm"])
def test_schema(given: Any, dish: Any, provider: str) -> None:
    answer = litellm.completion(**given(provider=provider, response_format=dish, max_tokens=200))
    assert dish.model_validate_json(text(answer))


def test_adapter(given: Any) -> None:
    base, pirate = litellm.completion(**given()), litellm.completion(**given(ADAPTER))
    assert text(pirate) != text(base)
    body = {"adapter": [{"name": ADAPTER}]}
    assert text(litellm.completion(**given(extra_body=body))) == text(pirate)


def test_completion(v1: str) -> None:
    given: Any = {"api_base": v1, "api_key": "none", "temperature": 0, "max_tokens": 8}
    answer = litellm.text_completion(
        model=f"text-completion-openai/{BASE}", prompt="Rice is", **given
    )
    assert answer.choices[0].text


@pytest.mark.parametrize("provider", ["openai", "hosted_vllm"])
def test_embeddings(v1: str, provider: str) -> None:
    given: Any = {"api_base": v1, "api_key": "none"}
    found = litellm.embedding(model=f"{provider}/{BASE}", input=["rice", "tea"], **given)
    one, two = (item["embedding"] for item in found.data)
    assert len(one) == len(two) > 8 and one != two


def test_errors(given: Any) -> None:
    with pytest.raises(litellm.NotFoundError, match="nobody"):
        litellm.completion(**given("nobody"))
    long = [{"role": "user", "content": "rice " * 40_000}]
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(**given(messages=long))


def test_router_with_retries(given: Any, url: str) -> None:
    where = {"model": "huggingface/tgi", "api_base": url, "api_key": "none"}
    router = litellm.Router(
        model_list=[{"model_name": "lorry", "litellm_params": where}], num_retries=2
    )
    assert text(router.completion("lorry", MESSAGES, max_tokens=12))


def test_responses(v1: str) -> None:
    given: Any = {"api_base": v1, "api_key": "none", "max_output_tokens": 12}
    answer = litellm.responses(model=f"openai/{BASE}", input=PROMPT, **given)
    (message,) = (item for item in answer.output if item.type == "message")
    assert message.content[0].text


@pytest.mark.parametrize("provider", ["openai", "hosted_vllm"])
def test_messages_of_anthropic(v1: str, provider: str) -> None:
    given: Any = {"api_base": v1, "api_key": "none", "max_tokens": 12, "messages": MESSAGES}
    model = f"{provider}/{BASE}"
    answer: Any = asyncio.run(litellm.anthropic_messages(model=model, **given))
    assert answer["content"][0]["text"]
