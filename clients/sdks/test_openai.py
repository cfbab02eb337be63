"""OpenAI's SDK for Python."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest

BASE, ADAPTER = "smollm2-135m", "pirate"
MESSAGES: Any = [{"role": "user", "content": "How do I cook rice?"}]
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"enum": [1, 2]}},
    "required": ["city", "days"],
}
TOOLS: Any = [
    {
        "type": "function",
        "function": {"name": "forecast", "description": "Weather", "parameters": PARAMETERS},
    }
]
SHORT: Any = {"temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def client(v1: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=v1, api_key="none")


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(
        **{"model": BASE, "messages": MESSAGES, **SHORT, **fields}
    )


def test_models(client: openai.OpenAI) -> None:
    assert {BASE, ADAPTER} <= {model.id for model in client.models.list()}
    assert client.models.retrieve(ADAPTER).id == ADAPTER


def test_chat(client: openai.OpenAI) -> None:
    answer = ask(client)
    assert answer.choices[0].message.role == "assistant" and answer.choices[0].message.content
    assert answer.usage.completion_tokens <= 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_chat_many_turns(client: openai.OpenAI) -> None:
    first = ask(client)
    history = [*MESSAGES, first.choices[0].message, {"role": "user", "content": "And tea?"}]
    more = ask(client, messages=history)
    assert more.usage.prompt_tokens > first.usage.total_tokens
    developer = [{"role": "developer", "content": "Be brief."}, *MESSAGES]
    assert ask(client, messages=developer).choices[0].message.content


def test_stream(client: openai.OpenAI) -> None:
    whole = ask(client).choices[0].message.content
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    pieces = [one.delta.content or "" for chunk in chunks for one in chunk.choices]
    assert "".join(pieces) == whole
    assert chunks[-1].usage.completion_tokens > 0 and not chunks[-1].choices


def test_stream_helper(client: openai.OpenAI) -> None:
    whole = ask(client).choices[0].message.content
    given: Any = {"model": BASE, "messages": MESSAGES, **SHORT}
    with client.chat.completions.stream(**given) as stream:
        (done,) = (event for event in stream if event.type == "content.done")
    assert done.content == whole


def test_async(v1: str, client: openai.OpenAI) -> None:
    whole = ask(client).choices[0].message.content

    async def both() -> tuple[str, str]:
        async with openai.AsyncOpenAI(base_url=v1, api_key="none") as own:
            given: Any = {"model": BASE, "messages": MESSAGES, **SHORT}
            one, stream = await asyncio.gather(
                own.chat.completions.create(**given),
                own.chat.completions.create(**given, stream=True),
            )
            pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
            return one.choices[0].message.content, "".join(pieces)

    assert asyncio.run(both()) == (whole, whole)


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "forecast"}}]
)
def test_tools(client: openai.OpenAI, choice: Any) -> None:
    answer = ask(client, tools=TOOLS, tool_choice=choice, max_tokens=200)
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "forecast"
    assert json.loads(call.function.arguments)["city"] in ("Rome", "Oslo")


def test_tools_streamed(client: openai.OpenAI) -> None:
    given: Any = {"tools": TOOLS, "tool_choice": "required", "max_tokens": 200, "stream": True}
    deltas = [chunk.choices[0].delta for chunk in ask(client, **given) if chunk.choices]
    calls = [call for delta in deltas for call in delta.tool_calls or []]
    assert calls[0].id and calls[0].function.name == "forecast"
    arguments = "".join(call.function.arguments or "" for call in calls)
    assert json.loads(arguments)["days"] in (1, 2)


def test_tools_answered(client: openai.OpenAI) -> None:
    asked = ask(client, tools=TOOLS, tool_choice="required", max_tokens=200).choices[0].message
    result = {"role": "tool", "tool_call_id": asked.tool_calls[0].id, "content": "rain"}
    answer = ask(client, messages=[*MESSAGES, asked, result], tools=TOOLS, tool_choice="none")
    assert answer.choices[0].message.content and not answer.choices[0].message.tool_calls


def test_schema(client: openai.OpenAI, dish: Any) -> None:
    given: Any = {"model": BASE, "messages": MESSAGES, "temperature": 0, "max_tokens": 200}
    parsed = client.chat.completions.parse(response_format=dish, **given)
    assert isinstance(parsed.choices[0].message.parsed, dish)


def test_schema_of_tools(client: openai.OpenAI, dish: Any) -> None:
    given: Any = {"model": BASE, "messages": MESSAGES, "temperature": 0, "max_tokens": 200}
    tool = openai.pydantic_function_tool(dish)
    parsed = client.chat.completions.parse(tools=[tool], tool_choice="required", **given)
    (call,) = parsed.choices[0].message.tool_calls or ()
    assert isinstance(call.function.parsed_arguments, dish)


def test_adapter_by_model(client: openai.OpenAI) -> None:
    base, pirate = ask(client), ask(client, model=ADAPTER)
    assert pirate.choices[0].message.content != base.choices[0].message.content
    assert pirate.model == ADAPTER
    # A balancer finds the adapter's server by it.
    header = {"x-lorry-adapter": ADAPTER}
    told = ask(client, model=ADAPTER, extra_headers=header)
    assert told.choices[0].message.content == pirate.choices[0].message.content
    with pytest.raises(openai.BadRequestError, match="X-Lorry-Adapter"):
        ask(client.with_options(default_headers=header))


def test_adapter_by_extra_body(client: openai.OpenAI) -> None:
    pirate = ask(client, model=ADAPTER).choices[0].message.content
    same = ask(client, extra_body={"adapter": [{"name": ADAPTER, "scale": 1.0}]})
    none = ask(client, extra_body={"adapter": [{"name": ADAPTER, "scale": 0.0}]})
    assert same.choices[0].message.content == pirate != none.choices[0].message.content


def test_completion(client: openai.OpenAI) -> None:
    given: Any = {"model": BASE, "prompt": ["Rice is", "Tea is"], **SHORT}
    answer = client.completions.create(**given)
    assert [one.index for one in answer.choices] == [0, 1]
    given["prompt"] = "Rice is"
    stream = client.completions.create(**given, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == answer.choices[0].text
    echoed = client.completions.create(**given, echo=True)
    assert echoed.choices[0].text == "Rice is" + answer.choices[0].text


def test_embeddings(client: openai.OpenAI) -> None:
    # The SDK asks for base64 where it is told nothing, and makes floats of it.
    packed = client.embeddings.create(model=BASE, input=["rice", "tea"])
    plain = client.embeddings.create(model=BASE, input=["rice", "tea"], encoding_format="float")
    assert [len(one.embedding) for one in packed.data] == [len(plain.data[0].embedding)] * 2
    assert packed.data[1].embedding == pytest.approx(plain.data[1].embedding, abs=1e-6)
    assert sum(x * x for x in packed.data[0].embedding) == pytest.approx(1, abs=1e-3)
    assert packed.data[0].embedding != packed.data[1].embedding


def test_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        ask(client, model="nobody")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        ask(client, temperature=-1)
    assert wrong.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as long:
        ask(client, messages=[{"role": "user", "content": "rice " * 40_000}])
    assert long.value.code == "context_length_exceeded"


def test_responses(client: openai.OpenAI) -> None:
    given: Any = {"model": BASE, "temperature": 0, "max_output_tokens": 12}
    first = client.responses.create(input="How do I cook rice?", **given)
    assert first.output_text and first.usage is not None
    more = client.responses.create(input="And tea?", previous_response_id=first.id, **given)
    assert more.usage is not None and more.usage.input_tokens > first.usage.total_tokens
    with client.responses.stream(input="How do I cook rice?", **given) as stream:
        pieces = [event.delta for event in stream if event.type == "response.output_text.delta"]
    assert "".join(pieces) == first.output_text


def test_responses_in_the_background(client: openai.OpenAI) -> None:
    given: Any = {"model": BASE, "input": "How do I cook rice?", "background": True}
    made = client.responses.create(**given, max_output_tokens=12)
    while made.status in ("queued", "in_progress"):
        made = client.responses.retrieve(made.id)
    assert made.output_text and made.background
    long = client.responses.create(**given, extra_body={"ignore_eos": True})
    assert client.responses.cancel(long.id).status == "cancelled"


def test_responses_with_tools(client: openai.OpenAI, dish: Any) -> None:
    given: Any = {"model": BASE, "input": "Weather?", "temperature": 0, "max_output_tokens": 200}
    tool: Any = {"type": "function", "name": "forecast", "parameters": PARAMETERS, "strict": False}
    answer = client.responses.create(tools=[tool], tool_choice="required", **given)
    (call,) = (item for item in answer.output if item.type == "function_call")
    assert json.loads(call.arguments)["city"] in ("Rome", "Oslo")
    assert isinstance(client.responses.parse(text_format=dish, **given).output_parsed, dish)


def test_log_probabilities(client: openai.OpenAI) -> None:
    answer = ask(client, logprobs=True, top_logprobs=3, max_tokens=4)
    tokens = answer.choices[0].logprobs.content
    assert len(tokens) == 4 and all(len(one.top_logprobs) == 3 for one in tokens)
    assert all(one.logprob == max(top.logprob for top in one.top_logprobs) for one in tokens)


def test_several_answers(client: openai.OpenAI) -> None:
    given: Any = {"n": 3, "temperature": 1.0, "seed": 7}
    first, again = (
        [choice.message.content for choice in ask(client, **given).choices] for _ in range(2)
    )
    assert len(first) == 3 and first == again and len(set(first)) > 1


def test_stop(client: openai.OpenAI) -> None:
    whole = ask(client).choices[0].message.content
    mark = whole[len(whole) // 2 :][:2]
    stopped = ask(client, stop=[mark]).choices[0]
    assert stopped.finish_reason == "stop"
    assert stopped.message.content == whole[: whole.index(mark)]
