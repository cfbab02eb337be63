"""OpenAI's Agents SDK, over Responses (its default) and over chat."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any

import pytest
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    RunConfig,
    Runner,
    function_tool,
)
from openai import AsyncOpenAI, NotFoundError
from pydantic import Field

BASE, ADAPTER = "smollm2-135m", "pirate"
PROMPT = "How do I cook rice?"
QUIET = RunConfig(tracing_disabled=True)
KINDS = [OpenAIResponsesModel, OpenAIChatCompletionsModel]


@function_tool
def forecast(days: Annotated[int, Field(ge=1, le=9)]) -> str:
    """Says what the weather will be."""
    return "rain" * days


@pytest.fixture
def agent(v1: str) -> Any:
    """Makes agents. A client is of one event loop, so each has its own."""

    def make(kind: Any = KINDS[0], name: str = BASE, tokens: int = 200, **fields: Any) -> Any:
        client = AsyncOpenAI(base_url=v1, api_key="none")
        choice = fields.pop("tool_choice", None)
        # Over Responses it takes no answer that is cut off: the first sentence is one that ends,
        # and the arguments of a call have no full stop.
        end = {} if "output_type" in fields else {"stop": ["."]}
        settings = ModelSettings(
            temperature=0, max_tokens=tokens, tool_choice=choice, extra_body=end
        )
        model = kind(model=name, openai_client=client)
        return Agent(name="cook", model=model, model_settings=settings, **fields)

    return make


def run(agent: Any) -> Any:
    return asyncio.run(Runner.run(agent, PROMPT, run_config=QUIET, max_turns=1))


@pytest.mark.parametrize("kind", KINDS)
def test_chat(agent: Any, kind: Any) -> None:
    done = run(agent(kind))
    assert done.final_output
    assert 0 < done.context_wrapper.usage.output_tokens <= 200


@pytest.mark.parametrize("kind", KINDS)
def test_stream(agent: Any, kind: Any) -> None:
    async def ask() -> tuple[str, str]:
        stream = Runner.run_streamed(agent(kind), PROMPT, run_config=QUIET, max_turns=1)
        pieces = []
        async for event in stream.stream_events():
            raw = event.data if event.type == "raw_response_event" else None
            if raw is not None and raw.type == "response.output_text.delta":
                pieces.append(raw.delta)
        return "".join(pieces), str(stream.final_output)

    streamed, final = asyncio.run(ask())
    assert streamed == final == run(agent(kind)).final_output


@pytest.mark.parametrize("kind", KINDS)
def test_tools(agent: Any, kind: Any) -> None:
    # It ends with the tool's own answer, whatever the model would make of it.
    fields: Any = {"tools": [forecast], "tool_use_behavior": "stop_on_first_tool"}
    done = run(agent(kind, tool_choice="forecast", **fields))
    (call,) = (item for item in done.new_items if item.type == "tool_call_item")
    assert isinstance(json.loads(call.raw_item.arguments)["days"], int)


@pytest.mark.parametrize("kind", KINDS)
def test_tools_answered(agent: Any, kind: Any) -> None:
    one = agent(kind, tool_choice="required", tools=[forecast])
    # After a call it asks again, with the result and with `tool_choice` as it was at first.
    done = asyncio.run(Runner.run(one, PROMPT, run_config=QUIET, max_turns=3))
    kinds = [item.type for item in done.new_items]
    assert kinds == ["tool_call_item", "tool_call_output_item", "message_output_item"]


@pytest.mark.parametrize("kind", KINDS)
def test_schema(agent: Any, kind: Any, dish: Any) -> None:
    assert isinstance(run(agent(kind, output_type=dish)).final_output, dish)


def test_adapter(agent: Any) -> None:
    assert run(agent(name=ADAPTER)).final_output != run(agent()).final_output


def test_errors(agent: Any) -> None:
    with pytest.raises(NotFoundError, match="nobody"):
        run(agent(name="nobody"))
