"""Pydantic AI, over OpenAI's chat and over its Responses."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic_ai import Agent, ModelHTTPError, NativeOutput, ToolOutput
from pydantic_ai.direct import model_request_sync
from pydantic_ai.messages import ModelRequest, ToolCallPart
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.tools import ToolDefinition

BASE, ADAPTER = "smollm2-135m", "pirate"
PROMPT = "How do I cook rice?"


@pytest.fixture
def model(v1: str) -> Any:
    def make(name: str = BASE, kind: Any = OpenAIChatModel) -> Any:
        return kind(name, provider=OpenAIProvider(base_url=v1, api_key="none"))

    return make


def settings(tokens: int = 12, **more: Any) -> Any:
    return {"temperature": 0, "max_tokens": tokens, **more}


def said(model: Any, **given: Any) -> str:
    return str(Agent(model).run_sync(PROMPT, model_settings=settings(**given)).output)


def test_chat(model: Any) -> None:
    first = Agent(model()).run_sync(PROMPT, model_settings=settings())
    assert first.output and 0 < first.usage.output_tokens <= 12
    more = Agent(model()).run_sync(
        "And tea?", message_history=first.all_messages(), model_settings=settings()
    )
    assert more.usage.input_tokens > first.usage.input_tokens + first.usage.output_tokens


def test_stream(model: Any) -> None:
    async def ask() -> str:
        agent = Agent(model())
        async with agent.run_stream(PROMPT, model_settings=settings()) as stream:
            return "".join([piece async for piece in stream.stream_text(delta=True)])

    assert asyncio.run(ask()) == said(model())


def test_tools(model: Any) -> None:
    # One request alone: an agent asks a small model again and again, which calls without end.
    days = {"type": "object", "properties": {"days": {"enum": [1, 2]}}, "required": ["days"]}
    forecast = ToolDefinition(name="forecast", parameters_json_schema=days)
    wanted = ModelRequestParameters(function_tools=[forecast], allow_text_output=False)
    prompt: Any = [ModelRequest.user_text_prompt(PROMPT)]
    answer = model_request_sync(
        model(), prompt, model_settings=settings(200), model_request_parameters=wanted
    )
    (call,) = (part for part in answer.parts if isinstance(part, ToolCallPart))
    assert call.tool_name == "forecast" and call.args_as_dict()["days"] in (1, 2)


@pytest.mark.parametrize("how", [ToolOutput, NativeOutput])
def test_schema(model: Any, dish: Any, how: Any) -> None:
    agent = Agent(model(), output_type=how(dish))
    assert isinstance(agent.run_sync(PROMPT, model_settings=settings(200)).output, dish)


def test_adapter(model: Any) -> None:
    base, pirate = said(model()), said(model(ADAPTER))
    assert base != pirate
    assert said(model(), extra_body={"adapter": [{"name": ADAPTER}]}) == pirate


def test_errors(model: Any) -> None:
    with pytest.raises(ModelHTTPError) as unknown:
        said(model("nobody"))
    assert unknown.value.status_code == 404


def test_responses(model: Any, dish: Any) -> None:
    assert said(model(kind=OpenAIResponsesModel))
    agent = Agent(model(kind=OpenAIResponsesModel), output_type=dish)
    assert isinstance(agent.run_sync(PROMPT, model_settings=settings(200)).output, dish)
