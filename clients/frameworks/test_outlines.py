"""Outlines, which asks servers to keep to a grammar: as OpenAI, as vLLM and as TGI."""

from __future__ import annotations

from typing import Any, Literal

import openai
import outlines
import pytest
from huggingface_hub import InferenceClient
from outlines.types import Regex

BASE, ADAPTER = "smollm2-135m", "pirate"
PROMPT = "How do I cook rice?"


@pytest.fixture(scope="module")
def client(v1: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=v1, api_key="none")


@pytest.fixture(scope="module")
def vllm(client: openai.OpenAI) -> Any:
    return outlines.from_vllm(client, BASE)


@pytest.fixture(scope="module")
def tgi(url: str) -> Any:
    return outlines.from_tgi(InferenceClient(url, token="none"))


def test_chat(client: openai.OpenAI, vllm: Any, tgi: Any) -> None:
    given: Any = {"max_tokens": 8, "temperature": 0}
    text = vllm(PROMPT, **given)
    assert text == outlines.from_openai(client, BASE)(PROMPT, **given)
    assert tgi(PROMPT, max_new_tokens=8)


def test_stream(vllm: Any) -> None:
    given: Any = {"max_tokens": 8, "temperature": 0}
    assert "".join(vllm.stream(PROMPT, **given)) == vllm(PROMPT, **given)


def test_schema_of_openai(client: openai.OpenAI, dish: Any) -> None:
    dish.model_validate_json(outlines.from_openai(client, BASE)(PROMPT, dish, max_tokens=200))


def test_schema_of_vllm(vllm: Any, dish: Any) -> None:
    dish.model_validate_json(vllm(PROMPT, dish, max_tokens=200))
    assert vllm(PROMPT, Literal["rice", "soup"], max_tokens=20) in ("rice", "soup")
    assert vllm(PROMPT, Regex("[ab]{3}"), max_tokens=20).strip("ab") == ""
    assert vllm(PROMPT, outlines.types.CFG('start: "yes" | "no"'), max_tokens=20) in ("yes", "no")


def test_schema_of_tgi(tgi: Any, dish: Any) -> None:
    dish.model_validate_json(tgi(PROMPT, dish, max_new_tokens=200))
    assert tgi(PROMPT, Literal["rice", "soup"], max_new_tokens=20) in ("rice", "soup")


def test_adapter(client: openai.OpenAI, vllm: Any) -> None:
    given: Any = {"max_tokens": 12, "temperature": 0}
    pirate = outlines.from_vllm(client, ADAPTER)(PROMPT, **given)
    assert pirate != vllm(PROMPT, **given)
