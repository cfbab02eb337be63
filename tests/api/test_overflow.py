"""An adapter whose numbers overflow in use: its own requests end, by its name, and no others."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from api.live import Live, serve
from lorry.settings import Settings
from support.careless import looking_away

SAYS = "with adapter 'huge' the model's numbers overflowed"


@pytest.fixture(scope="module")
def huge(
    tmp_path_factory: pytest.TempPathFactory,
    settings_for: Callable[..., Settings],
    peft_adapter: Callable[..., Path],
    zip_of: Callable[..., Path],
    archives: Callable[[int], Path],
) -> Iterator[Live]:
    """With an adapter whose deltas are finite, and what the model makes of them is not; its
    strength is not looked at here."""
    folder = tmp_path_factory.mktemp("huge")
    source = peft_adapter("llama", "plain", seed=1)
    (folder / "adapter_config.json").write_bytes((source / "adapter_config.json").read_bytes())
    tensors = load_file(source / "adapter_model.safetensors")
    save_file(
        {key: tensor.sign() * 1e17 for key, tensor in tensors.items()},
        folder / "adapter_model.safetensors",
    )
    with looking_away(), serve(settings_for(tmp_path_factory.mktemp("home"))) as running:
        running.upload("huge", zip_of(folder)).raise_for_status()
        running.upload("good", archives(2)).raise_for_status()
        yield running


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"do_sample": True, "seed": 1},
        {"temperature": 0.7, "top_p": 0.9, "top_k": 20, "seed": 1},
        {"typical_p": 0.5, "seed": 1},
        {"repetition_penalty": 1.3, "top_n_tokens": 5},
        {"decoder_input_details": True},
        {"grammar": {"type": "regex", "value": "[a-z]{3}"}},
    ],
    ids=str,
)
@pytest.mark.parametrize("adapter", ["huge", [{"name": "good"}, {"name": "huge", "scale": 0.5}]])
def test_its_request_ends_with_its_name(
    huge: Live, adapter: object, parameters: dict[str, Any]
) -> None:
    body = {"inputs": "Ahoy", "adapter": adapter, "parameters": {"max_new_tokens": 4, **parameters}}
    answer = huge.http.post("/generate", json=body)
    assert answer.status_code == 500
    assert answer.json()["error_type"] == "generation"
    assert "'huge'" in answer.json()["error"] and "numbers overflowed" in answer.json()["error"]


def test_a_stream_and_vectors_end_so_too(huge: Live) -> None:
    body = {"inputs": "Ahoy", "adapter": "huge", "parameters": {"max_new_tokens": 4}}
    lines = huge.http.post("/generate_stream", json=body).text.splitlines()
    told = [json.loads(line.removeprefix("data:")) for line in lines if line]
    assert SAYS in told[-1]["error"]
    answer = huge.http.post("/v1/embeddings", json={"model": "huge", "input": "Ahoy"})
    assert answer.status_code == 500 and SAYS in answer.json()["error"]["message"]


def test_its_neighbours_get_what_they_get_alone(huge: Live) -> None:
    def ask(adapter: str | None) -> Any:
        body = {
            "inputs": "Ahoy there",
            "adapter": adapter,
            "parameters": {"max_new_tokens": 12, "details": True, "ignore_eos_token": True},
        }
        answer = huge.http.post("/generate", json=body)
        return [token["id"] for token in answer.json().get("details", {}).get("tokens", [])]

    alone = {name: ask(name) for name in ("good", None)}
    assert all(alone.values())
    wanted = ["good", "huge", None, "huge"] * 3
    with ThreadPoolExecutor(len(wanted)) as pool:
        answers = list(pool.map(ask, wanted))
    for name, tokens in zip(wanted, answers, strict=True):
        assert tokens == ([] if name == "huge" else alone[name])
    # What it left in the cache harms nobody who comes after it.
    assert {name: ask(name) for name in ("good", None)} == alone
