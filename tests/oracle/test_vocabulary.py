"""Adapters that were trained after the vocabulary had been changed: the embeddings resized, and
saved by PEFT as it then does. With fewer tokens than the base they are served, with more they
are refused with what to do, and what to do is done here: then they are served, too."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from lorry.cli import main
from support import peft_made
from support.kind import Strength, trained_tokens
from support.matrix_bench import Bench, bench
from support.peft_kinds import KINDS
from support.peft_made import Made
from support.tokenizer import VOCAB_SIZE

TOLERANCE = 1e-4
FEWER, MORE = VOCAB_SIZE - 4, VOCAB_SIZE + 2
NEW = "<|aside|>"
SHORT = "The lorry waited at the gate"
"""Of tokens that the smaller vocabulary has, too."""

WAYS: Mapping[str, Mapping[str, Any]] = {
    "nothing of them trained": {},
    "both saved": {"modules_to_save": ["lm_head", "embed_tokens"]},
    "table saved": {"modules_to_save": ["embed_tokens"]},
    "head saved": {"modules_to_save": ["lm_head"]},
    "rows trained": {"trainable_token_indices": {"embed_tokens": [*trained_tokens()]}},
}
TIED = ("llama", "llama_tied")


def resized(
    base: Any, tokens: int, fields: Mapping[str, Any], folder: Path, *, seed: int = 3
) -> Made:
    """A LoRA on a copy of `base` with that many tokens, saved with all that PEFT adds."""
    own = copy.deepcopy(base)
    own.resize_token_embeddings(tokens, mean_resizing=False)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in (own.get_input_embeddings(), own.get_output_embeddings()):
            new = module.weight[VOCAB_SIZE:]
            new.copy_(torch.randn(new.shape, generator=generator))
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "up_proj"], **fields)
    model = peft.get_peft_model(own, config)
    peft_made.fill(model, 0.3, seed=seed)
    model.eval().save_pretrained(folder)
    return Made(folder, KINDS["modules_to_save=head"], model.requires_grad_(False))


@pytest.fixture(scope="module", params=TIED)
def lorry(
    request: pytest.FixtureRequest,
    tiny_model: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Bench]:
    home = tmp_path_factory.mktemp("vocabulary")
    with bench(tiny_model(request.param), request.param, home) as found:
        found.prompt = SHORT
        yield found


def served_as_by_peft(lorry: Bench, made: Made) -> None:
    assert made.kind.strength is Strength.SCALING
    answer = lorry.upload("this", made.folder)
    assert answer.status_code == 201, answer.text
    try:
        assert lorry.error(lorry.ask(("this", 1.0)), made) < TOLERANCE
        base, one, plain = lorry.ask_together([None, ("this", 1.0), ("plain", 1.0)])
        assert lorry.error(base, None) < TOLERANCE
        assert lorry.error(one, made) < TOLERANCE
        assert lorry.error(plain, lorry.plain) < TOLERANCE
    finally:
        lorry.remove("this")


@pytest.mark.parametrize("way", WAYS)
def test_fewer_tokens(way: str, lorry: Bench, tmp_path: Path) -> None:
    made = resized(lorry.base, FEWER, WAYS[way], tmp_path / "adapter")
    served_as_by_peft(lorry, made)


@pytest.mark.parametrize("saved", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]])
def test_tokens_that_it_has_not_are_never_answered(
    saved: list[str], lorry: Bench, tmp_path: Path
) -> None:
    """Whether its head says so or only its embeddings do."""
    made = resized(lorry.base, FEWER, {"modules_to_save": saved}, tmp_path / "adapter")
    path = made.folder / "adapter_model.safetensors"
    keep = ("lora_", *saved)
    save_file({k: v for k, v in load_file(path).items() if any(w in k for w in keep)}, path)
    lorry.upload("this", made.folder).raise_for_status()
    unknown = range(FEWER, VOCAB_SIZE)
    hot = {"temperature": 90.0, "do_sample": True, "ignore_eos_token": True, "details": True}

    def drawn(adapter: Any, **more: Any) -> set[int]:
        parameters = {**hot, "max_new_tokens": 60, **more}
        body = {"inputs": SHORT, "adapter": adapter, "parameters": parameters}
        answer = lorry.live.http.post("/generate", json=body).raise_for_status().json()
        return {token["id"] for token in answer["details"]["tokens"]}

    try:
        for seed in range(4):
            assert drawn("this", seed=seed).isdisjoint(unknown)
            both = [{"name": "plain", "scale": 1}, {"name": "this", "scale": 1}]
            assert drawn(both, seed=seed).isdisjoint(unknown)
        biased = {
            "model": "this",
            "prompt": SHORT,
            "max_tokens": 4,
            "logit_bias": dict.fromkeys(map(str, unknown), 100),
            "temperature": 0,
        }
        body = lorry.live.http.post("/v1/completions", json=biased).raise_for_status().json()
        said = body["choices"][0]["text"]
        plain = lorry.live.http.post("/v1/completions", json={**biased, "logit_bias": {}})
        assert said == plain.json()["choices"][0]["text"]
        # The base's own rows, and nobody else's, are everybody's again.
        sampled = [drawn(None, seed=seed) for seed in range(24)]
        assert not set.union(*sampled).isdisjoint(unknown)
    finally:
        lorry.remove("this")


@pytest.mark.parametrize("way", WAYS)
def test_more_tokens(way: str, lorry: Bench, tmp_path: Path) -> None:
    made = resized(lorry.base, MORE, WAYS[way], tmp_path / "adapter")
    answer = lorry.upload("this", made.folder)
    assert answer.status_code == 422
    first = answer.json()["error"]["problems"][0]
    assert f"trained with {MORE} tokens, but the base {lorry.family} has {VOCAB_SIZE}" in first
    assert f"lorry models extend {lorry.family} --adapter FOLDER" in first


@pytest.mark.parametrize("dora", [False, True])
def test_tables_that_are_not_the_bases_below_their_own_pairs(
    dora: bool, lorry: Bench, tmp_path: Path
) -> None:
    """A DoRA's norm is of the weight that the file has, not of the base's."""
    own = copy.deepcopy(lorry.base)
    targets = ["lm_head", "embed_tokens", "q_proj"]
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=targets, use_dora=dora)
    model = peft.get_peft_model(own, config)
    peft_made.fill(model, 0.3, seed=4)
    with torch.no_grad():
        model.get_input_embeddings().base_layer.weight.mul_(1.3)
    model.eval().save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    made = Made(tmp_path / "adapter", KINDS["lora"], model.requires_grad_(False))
    served_as_by_peft(lorry, made)


def test_one_table_for_both(lorry: Bench, tmp_path: Path) -> None:
    """A tied base's table, saved once and by no field's name: PEFT loads it into the base."""
    made = resized(lorry.base, FEWER, {}, tmp_path / "adapter")
    path = made.folder / "adapter_model.safetensors"
    tensors = load_file(path)
    with torch.no_grad():
        made.model.get_input_embeddings().weight.mul_(1.2)
    tensors["base_model.model.model.embed_tokens.weight"] *= 1.2
    if lorry.family == "llama_tied":
        del tensors["base_model.model.lm_head.weight"]
    save_file(tensors, path)
    served_as_by_peft(lorry, made)


@pytest.mark.parametrize("family", TIED)
def test_the_base_made_for_them(
    family: str,
    tiny_model: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The command that the refusal names; then every way is served, and the old size as well."""
    original = peft_made.load_base(tiny_model(family))
    made = {
        way: resized(original, MORE, fields, tmp_path / way.replace(" ", "_"))
        for way, fields in WAYS.items()
    }
    first = made["both saved"].folder
    tokenizer = AutoTokenizer.from_pretrained(tiny_model(family))
    tokenizer.add_special_tokens({"additional_special_tokens": [NEW]})
    tokenizer.save_pretrained(first)
    arguments = ["extend", str(tiny_model(family)), "--adapter", str(first)]
    out = tmp_path / "extended"
    assert main(["models", *arguments, "--out", str(out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["tokens"], said["added"]) == (MORE, MORE - VOCAB_SIZE)
    with bench(out, family, tmp_path / "home") as lorry:
        lorry.prompt = SHORT
        for one in made.values():
            served_as_by_peft(lorry, one)
        older = resized(original, FEWER, WAYS["both saved"], tmp_path / "older")
        served_as_by_peft(lorry, older)
        body = {"inputs": f"The lorry {NEW} waited"}
        pieces = lorry.live.http.post("/tokenize", json=body).json()
        assert VOCAB_SIZE in [piece["id"] for piece in pieces]
