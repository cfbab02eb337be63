"""Instructor, by each mode in which the server can keep a model to a schema."""

from __future__ import annotations

from typing import Any

import instructor
import openai
import pytest

BASE, ADAPTER = "smollm2-135m", "pirate"
MESSAGES: Any = [{"role": "user", "content": "How do I cook rice?"}]


@pytest.fixture(scope="module")
def create(v1: str) -> Any:
    def make(mode: instructor.Mode, **fields: Any) -> Any:
        client = instructor.from_openai(openai.OpenAI(base_url=v1, api_key="none"), mode=mode)
        given = {"model": BASE, "messages": MESSAGES, "temperature": 0, "max_tokens": 200}
        return client.create(**{**given, **fields})

    return make


@pytest.mark.parametrize("mode", [instructor.Mode.TOOLS, instructor.Mode.TOOLS_STRICT])
def test_tools(create: Any, dish: Any, mode: instructor.Mode) -> None:
    assert isinstance(create(mode, response_model=dish), dish)


def test_schema(create: Any, dish: Any) -> None:
    assert isinstance(create(instructor.Mode.JSON_SCHEMA, response_model=dish), dish)


def test_stream(create: Any, dish: Any) -> None:
    wanted: Any = instructor.Partial[dish]
    pieces = list(create(instructor.Mode.JSON_SCHEMA, response_model=wanted, stream=True))
    assert dish.model_validate(pieces[-1].model_dump())


def test_adapter(create: Any, dish: Any) -> None:
    found = create(instructor.Mode.JSON_SCHEMA, response_model=dish, model=ADAPTER)
    assert found._raw_response.model == ADAPTER


def test_errors(create: Any, dish: Any) -> None:
    with pytest.raises(Exception, match="nobody"):
        create(instructor.Mode.TOOLS, response_model=dish, model="nobody")


def test_responses(v1: str, dish: Any) -> None:
    client = instructor.from_openai(
        openai.OpenAI(base_url=v1, api_key="none"), mode=instructor.Mode.RESPONSES_TOOLS
    )
    found = client.create(model=BASE, messages=MESSAGES, response_model=dish, max_output_tokens=200)
    assert isinstance(found, dish)
