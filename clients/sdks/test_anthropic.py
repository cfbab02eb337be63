"""Anthropic's SDK for Python."""

from __future__ import annotations

import asyncio
from typing import Any

import anthropic
import pytest

BASE, ADAPTER = "smollm2-135m", "pirate"
MESSAGES: Any = [{"role": "user", "content": "How do I cook rice?"}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"enum": [1, 2]}},
    "required": ["city", "days"],
}
TOOLS: Any = [{"name": "forecast", "description": "Weather", "input_schema": SCHEMA}]
ANY: Any = {"tools": TOOLS, "tool_choice": {"type": "any"}, "max_tokens": 200}


@pytest.fixture(scope="module")
def client(url: str) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=url, api_key="none")


def given(**fields: Any) -> Any:
    short = {"max_tokens": 12, "extra_body": {"temperature": 0}}
    return {"model": BASE, "messages": MESSAGES, **short, **fields}


def text(message: Any) -> str:
    (block,) = message.content
    assert block.type == "text" and block.text
    return str(block.text)


def prompt_tokens(message: Any) -> int:
    """Returns the length of the whole prompt: cached tokens are not among the input's."""
    usage = message.usage
    return int(usage.input_tokens + usage.cache_read_input_tokens)


def test_models(client: anthropic.Anthropic) -> None:
    assert {BASE, ADAPTER} <= {model.id for model in client.models.list()}


def test_chat(client: anthropic.Anthropic) -> None:
    message = client.messages.create(**given(system="Be brief."))
    assert text(message) and message.role == "assistant"
    assert message.stop_reason in ("max_tokens", "end_turn")
    assert 0 < message.usage.output_tokens <= 12


def test_chat_many_turns(client: anthropic.Anthropic) -> None:
    first = client.messages.create(**given())
    turn = {"role": "assistant", "content": first.content}
    history = [*MESSAGES, turn, {"role": "user", "content": "And tea?"}]
    more = client.messages.create(**given(messages=history))
    assert prompt_tokens(more) > prompt_tokens(first) + first.usage.output_tokens


def test_stream(client: anthropic.Anthropic) -> None:
    whole = text(client.messages.create(**given()))
    with client.messages.stream(**given()) as stream:
        pieces = list(stream.text_stream)
        final = stream.get_final_message()
    assert "".join(pieces) == text(final) == whole
    assert final.usage.output_tokens > 0
    kinds = [event.type for event in client.messages.create(**given(), stream=True)]
    assert kinds[0] == "message_start" and kinds[-1] == "message_stop"


def test_async(url: str, client: anthropic.Anthropic) -> None:
    async def ask() -> str:
        async with anthropic.AsyncAnthropic(base_url=url, api_key="none") as own:
            return text(await own.messages.create(**given()))

    assert asyncio.run(ask()) == text(client.messages.create(**given()))


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "forecast"}])
def test_tools(client: anthropic.Anthropic, choice: Any) -> None:
    message = client.messages.create(**given(**{**ANY, "tool_choice": choice}))
    (call,) = (block for block in message.content if block.type == "tool_use")
    assert message.stop_reason == "tool_use"
    assert call.name == "forecast" and call.input["city"] in ("Rome", "Oslo")


def test_tools_streamed(client: anthropic.Anthropic) -> None:
    with client.messages.stream(**given(**ANY)) as stream:
        pieces = [event.partial_json for event in stream if event.type == "input_json"]
        final = stream.get_final_message()
    (call,) = (block for block in final.content if block.type == "tool_use")
    assert pieces and call.input["days"] in (1, 2)


def test_tools_answered(client: anthropic.Anthropic) -> None:
    asked = client.messages.create(**given(**ANY))
    (call,) = (block for block in asked.content if block.type == "tool_use")
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "rain"}
    history = [
        *MESSAGES,
        {"role": "assistant", "content": asked.content},
        {"role": "user", "content": [result]},
    ]
    none = {"tools": TOOLS, "tool_choice": {"type": "none"}}
    assert text(client.messages.create(**given(messages=history, **none)))


def test_adapter_by_model(client: anthropic.Anthropic) -> None:
    pirate = client.messages.create(**given(model=ADAPTER))
    assert pirate.model == ADAPTER
    assert text(pirate) != text(client.messages.create(**given()))
    header = {"x-lorry-adapter": ADAPTER}
    told = client.messages.create(**given(model=ADAPTER, extra_headers=header))
    assert text(told) == text(pirate)
    with pytest.raises(anthropic.BadRequestError, match="X-Lorry-Adapter"):
        client.messages.create(**given(extra_headers=header))


def test_adapter_by_extra_body(client: anthropic.Anthropic) -> None:
    body = {"temperature": 0, "adapter": [{"name": ADAPTER}]}
    chosen = client.messages.create(**given(extra_body=body))
    assert text(chosen) == text(client.messages.create(**given(model=ADAPTER)))


def test_errors(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match="nobody"):
        client.messages.create(**given(model="nobody"))
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        client.messages.create(**given(max_tokens=-1))
    long = [{"role": "user", "content": "rice " * 40_000}]
    with pytest.raises(anthropic.BadRequestError, match="prompt is too long"):
        client.messages.create(**given(messages=long))


def test_token_counts(client: anthropic.Anthropic) -> None:
    counted = client.messages.count_tokens(model=BASE, messages=MESSAGES)
    assert counted.input_tokens == prompt_tokens(client.messages.create(**given()))


def test_stop_sequences(client: anthropic.Anthropic) -> None:
    whole = text(client.messages.create(**given()))
    mark = whole[len(whole) // 2 :][:2]
    message = client.messages.create(**given(stop_sequences=[mark]))
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", mark)
    assert text(message) == whole[: whole.index(mark)]
