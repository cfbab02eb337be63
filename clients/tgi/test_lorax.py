"""LoRAX's client for Python."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from lorax import AsyncClient, Client, MergedAdapters
from lorax.errors import NotFoundError, ValidationError

ADAPTER = "pirate"
PROMPT = "How do I cook rice?"
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"enum": [1, 2]}},
    "required": ["city", "days"],
}
PATIENCE = 600


@pytest.fixture(scope="module")
def client(url: str) -> Client:
    return Client(url, timeout=PATIENCE)


def said(client: Client, **given: Any) -> str:
    return str(client.generate(PROMPT, **{"max_new_tokens": 12, **given}).generated_text)


def test_stream(client: Client) -> None:
    events = list(client.generate_stream(PROMPT, adapter_id=ADAPTER, max_new_tokens=12))
    whole = said(client, adapter_id=ADAPTER)
    assert "".join(event.token.text for event in events if not event.token.special) == whole
    assert events[-1].generated_text == whole


def test_async(url: str, client: Client) -> None:
    async def ask() -> str:
        own = AsyncClient(url, timeout=PATIENCE)
        return str((await own.generate(PROMPT, max_new_tokens=12)).generated_text)

    assert asyncio.run(ask()) == said(client)


def test_schema(client: Client) -> None:
    wanted = {"type": "json_object", "schema": SCHEMA}
    text = said(client, response_format=wanted, max_new_tokens=200)
    assert json.loads(text)["city"] in ("Rome", "Oslo")


def test_adapter(client: Client) -> None:
    base, pirate = said(client), said(client, adapter_id=ADAPTER)
    assert pirate != base
    local = said(client, adapter_id=ADAPTER, adapter_source="local", api_token="none")
    assert local == pirate


@pytest.mark.parametrize("strategy", ["linear", "ties", "dare_linear", "dare_ties"])
def test_adapter_merged(client: Client, strategy: str) -> None:
    merged = MergedAdapters(
        ids=[ADAPTER, "emoji"],
        weights=[0.8, 0.4],
        merge_strategy=strategy,
        density=1.0,
        majority_sign_method="total",
    )
    answer = client.generate(PROMPT, merged_adapters=merged, max_new_tokens=4)
    assert answer.details.generated_tokens > 0


def test_completion(client: Client) -> None:
    answer = client.generate(
        PROMPT,
        max_new_tokens=8,
        do_sample=True,
        seed=3,
        temperature=0.9,
        top_k=20,
        top_p=0.9,
        stop_sequences=["\n\n\n"],
        details=True,
    )
    assert answer.details.seed == 3
    assert len(answer.details.tokens) == answer.details.generated_tokens <= 8


def test_embeddings(client: Client) -> None:
    vector = client.embed("rice").embeddings
    assert sum(x * x for x in vector) == pytest.approx(1, abs=1e-3)


def test_errors(client: Client) -> None:
    with pytest.raises(NotFoundError, match="nobody"):
        client.generate(PROMPT, adapter_id="nobody", max_new_tokens=4)
    with pytest.raises(ValidationError, match="maximum context length"):
        client.generate(PROMPT, max_new_tokens=10_000_000)
