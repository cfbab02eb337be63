"""LangChain's chat models, text models and embeddings of `langchain-openai`."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from openai import NotFoundError

BASE, ADAPTER = "smollm2-135m", "pirate"
PROMPT = "How do I cook rice?"


@tool
def forecast(days: int) -> str:
    """Says what the weather will be."""
    return "rain" * days


@pytest.fixture(scope="module")
def chat(v1: str) -> Any:
    def make(model: str = BASE, tokens: int = 12, **fields: Any) -> ChatOpenAI:
        given: Any = {"base_url": v1, "api_key": "none", "temperature": 0, **fields}
        return ChatOpenAI(model=model, max_tokens=tokens, **given)

    return make


def test_chat(chat: Any) -> None:
    answer = chat().invoke(PROMPT)
    assert isinstance(answer, AIMessage) and answer.content
    assert answer.usage_metadata is not None and answer.usage_metadata["output_tokens"] <= 12
    assert len(chat().batch([PROMPT, "And tea?"])) == 2


def test_stream(chat: Any) -> None:
    whole = chat().invoke(PROMPT)
    pieces = list(chat(stream_usage=True).stream(PROMPT))
    assert "".join(piece.content for piece in pieces) == whole.content
    summed = pieces[0]
    for piece in pieces[1:]:
        summed += piece
    assert summed.usage_metadata["input_tokens"] == whole.usage_metadata["input_tokens"]


def test_async(chat: Any) -> None:
    assert asyncio.run(chat().ainvoke(PROMPT)).content == chat().invoke(PROMPT).content


@pytest.mark.parametrize("choice", ["any", "forecast"])
def test_tools(chat: Any, choice: str) -> None:
    bound = chat(tokens=200).bind_tools([forecast], tool_choice=choice)
    (call,) = bound.invoke(PROMPT).tool_calls
    assert call["name"] == "forecast" and isinstance(call["args"]["days"], int)


def test_tools_answered(chat: Any) -> None:
    asked = chat(tokens=200).bind_tools([forecast], tool_choice="any").invoke(PROMPT)
    result = ToolMessage("rain", tool_call_id=asked.tool_calls[0]["id"])
    history = [HumanMessage(PROMPT), asked, result]
    assert chat().bind_tools([forecast], tool_choice="none").invoke(history).content


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_schema(chat: Any, dish: Any, method: str) -> None:
    found = chat(tokens=200).with_structured_output(dish, method=method).invoke(PROMPT)
    assert isinstance(found, dish)


def test_adapter(chat: Any) -> None:
    base, pirate = chat().invoke(PROMPT), chat(ADAPTER).invoke(PROMPT)
    assert pirate.content != base.content
    body = {"adapter": [{"name": ADAPTER}]}
    assert chat(extra_body=body).invoke(PROMPT).content == pirate.content


def test_completion(v1: str) -> None:
    given: Any = {"base_url": v1, "api_key": "none", "temperature": 0, "max_tokens": 8}
    model = OpenAI(model=BASE, **given)
    whole = model.invoke("Rice is")
    assert whole and "".join(model.stream("Rice is")) == whole


def test_embeddings(v1: str) -> None:
    # Without the flag it sends the token ids of OpenAI's own models.
    given: Any = {"base_url": v1, "api_key": "none", "check_embedding_ctx_length": False}
    model = OpenAIEmbeddings(model=BASE, **given)
    one, two = model.embed_documents(["rice", "tea"])
    assert len(one) == len(two) > 8 and one != two
    assert model.embed_query("rice") == pytest.approx(one, abs=1e-3)
    # As many as it sends at a time, unless it is told otherwise.
    assert len(model.embed_documents(["rice"] * 1000)) == 1000


def test_errors(chat: Any) -> None:
    with pytest.raises(NotFoundError, match="nobody"):
        chat("nobody").invoke(PROMPT)
    with pytest.raises(ContextOverflowError):
        chat().invoke("rice " * 40_000)


def test_responses(chat: Any, dish: Any) -> None:
    model = chat(use_responses_api=True)
    assert model.invoke(PROMPT).text
    assert "".join(piece.text for piece in model.stream(PROMPT)) == model.invoke(PROMPT).text
    long = chat(tokens=200, use_responses_api=True)
    assert isinstance(long.with_structured_output(dish).invoke(PROMPT), dish)


def test_log_probabilities(chat: Any) -> None:
    answer = chat(logprobs=True, top_logprobs=2).invoke(PROMPT)
    assert answer.response_metadata["logprobs"]["content"][0]["top_logprobs"]
