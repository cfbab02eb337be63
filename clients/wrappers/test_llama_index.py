"""LlamaIndex's `OpenAILike`, for text, for tools and for embeddings."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike

BASE, ADAPTER = "smollm2-135m", "pirate"
PROMPT = "How do I cook rice?"
MESSAGES = [ChatMessage(role="user", content=PROMPT)]


@pytest.fixture(scope="module")
def make(v1: str) -> Any:
    def model(name: str = BASE, tokens: int = 12, **fields: Any) -> OpenAILike:
        given: Any = {"is_chat_model": True, "is_function_calling_model": True, **fields}
        where: Any = {"api_base": v1, "api_key": "none", "context_window": 8192}
        return OpenAILike(model=name, temperature=0, max_tokens=tokens, **where, **given)

    return model


def forecast(days: int) -> str:
    """Says what the weather will be."""
    return "rain" * days


def test_chat(make: Any) -> None:
    answer = make().chat(MESSAGES)
    assert answer.message.content
    assert answer.raw.usage.completion_tokens <= 12


def test_stream(make: Any) -> None:
    pieces = list(make().stream_chat(MESSAGES))
    whole = make().chat(MESSAGES).message.content
    assert "".join(piece.delta or "" for piece in pieces) == whole


def test_async(make: Any) -> None:
    answer = asyncio.run(make().achat(MESSAGES))
    assert answer.message.content == make().chat(MESSAGES).message.content


def test_tools(make: Any) -> None:
    model = make(tokens=200)
    tool = FunctionTool.from_defaults(forecast)
    answer = model.chat_with_tools([tool], PROMPT, tool_required=True)
    (call,) = model.get_tool_calls_from_response(answer)
    assert call.tool_name == "forecast" and isinstance(call.tool_kwargs["days"], int)


def test_schema(make: Any, dish: Any) -> None:
    # By a tool that must be called, or by `response_format`.
    for fields in ({}, {"should_use_structured_outputs": True}):
        model = make(tokens=200, **fields)
        found = model.as_structured_llm(dish).chat(MESSAGES).raw
        assert isinstance(found, dish)


def test_adapter(make: Any) -> None:
    assert make(ADAPTER).chat(MESSAGES).message.content != make().chat(MESSAGES).message.content


def test_completion(make: Any) -> None:
    model = make(is_chat_model=False, is_function_calling_model=False)
    whole = model.complete("Rice is").text
    assert whole and "".join(one.delta or "" for one in model.stream_complete("Rice is")) == whole


def test_embeddings(v1: str) -> None:
    model = OpenAILikeEmbedding(model_name=BASE, api_base=v1, api_key="none")
    one, two = model.get_text_embedding_batch(["rice", "tea"])
    assert len(one) == len(two) > 8 and one != two


def test_errors(make: Any) -> None:
    with pytest.raises(openai.NotFoundError, match="nobody"):
        make("nobody").chat(MESSAGES)
