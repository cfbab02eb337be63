"""TGI's own client for Python."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from text_generation import AsyncClient, Client
from text_generation.errors import ValidationError
from text_generation.types import Grammar, GrammarType, Message, Tool

PROMPT = "How do I cook rice?"
MESSAGES = [Message(role="user", content=PROMPT)]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"enum": [1, 2]}},
    "required": ["city", "days"],
}
FORECAST = Tool(
    type="function",
    function={"name": "forecast", "description": "Weather", "parameters": SCHEMA},
)
PATIENCE = 600


@pytest.fixture(scope="module")
def client(url: str) -> Client:
    return Client(url, timeout=PATIENCE)


def test_chat(client: Client) -> None:
    # It asks for a model called `tgi`: the server's own is meant.
    answer = client.chat(MESSAGES, max_tokens=12)
    assert answer.choices[0].message.content and answer.usage["completion_tokens"] <= 12


def test_stream(client: Client) -> None:
    whole = client.generate(PROMPT, max_new_tokens=12).generated_text
    events = list(client.generate_stream(PROMPT, max_new_tokens=12))
    assert "".join(event.token.text for event in events if not event.token.special) == whole
    assert events[-1].generated_text == whole and events[-1].details is not None


@pytest.mark.xfail(
    reason="A chat's stream: `text-generation` demands `tool_calls` in each piece, where OpenAI "
    "has none, and takes the closing `[DONE]` for JSON. `generate_stream` works."
)
def test_stream_of_chat(client: Client) -> None:
    given: Any = {"max_tokens": 12, "temperature": 0.0}
    whole = client.chat(MESSAGES, **given).choices[0].message.content
    pieces = []
    for chunk in client.chat(MESSAGES, stream=True, **given):
        pieces.append(chunk.choices[0].delta.content or "")
    assert "".join(pieces) == whole


def test_async(url: str, client: Client) -> None:
    async def ask() -> tuple[str, str]:
        own = AsyncClient(url, timeout=PATIENCE)
        text = (await own.generate(PROMPT, max_new_tokens=8)).generated_text
        stream = own.generate_stream(PROMPT, max_new_tokens=8)
        pieces = [event.token.text async for event in stream if not event.token.special]
        return text, "".join(pieces)

    text = client.generate(PROMPT, max_new_tokens=8).generated_text
    assert asyncio.run(ask()) == (text, text)


def test_tools(client: Client) -> None:
    answer = client.chat(MESSAGES, tools=[FORECAST], tool_choice="forecast", max_tokens=200)
    (call,) = answer.choices[0].message.tool_calls
    assert call["function"]["name"] == "forecast"
    assert json.loads(call["function"]["arguments"])["city"] in ("Rome", "Oslo")


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar(type=GrammarType.Json, value=SCHEMA),
        Grammar(type=GrammarType.Regex, value='\\{"days": [12]\\}'),
    ],
    ids=["json", "regex"],
)
def test_schema(client: Client, grammar: Grammar) -> None:
    said = client.generate(PROMPT, grammar=grammar, max_new_tokens=200).generated_text
    assert json.loads(said)["days"] in (1, 2)


def test_completion(client: Client) -> None:
    answer = client.generate(
        PROMPT,
        max_new_tokens=8,
        do_sample=True,
        seed=2,
        temperature=0.9,
        top_k=50,
        top_p=0.9,
        typical_p=0.95,
        repetition_penalty=1.1,
        top_n_tokens=2,
        stop_sequences=["\n\n\n"],
        truncate=100,
        return_full_text=True,
        decoder_input_details=True,
    )
    details = answer.details
    assert answer.generated_text.startswith(PROMPT)
    assert details.prefill and len(details.tokens) == details.generated_tokens <= 8
    assert details.seed == 2
    assert details.top_tokens is not None and len(details.top_tokens[0]) == 2
    best = client.generate(PROMPT, max_new_tokens=8, do_sample=True, best_of=2).details
    assert best.best_of_sequences is not None and len(best.best_of_sequences) == 1


def test_errors(client: Client) -> None:
    with pytest.raises(ValidationError, match="maximum context length"):
        client.generate(PROMPT, max_new_tokens=10_000_000)
