"""Each kind that PEFT makes is baked to what PEFT answers with it, or refused in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lorry_adapters.errors import InvalidAdapter, ToolError
from lorry_adapters.tools.bake import bake
from support import peft_made
from support.matrix import Cell, State, cells
from support.peft_kinds import KINDS
from support.peft_made import Made, prompt_logprobs

IDS = [1, 40, 77, 9, 200, 31, 300, 16, 52, 8]

_PROMPT = "it puts tokens before the prompt"
_START = "is relative to a changed base: convert it first"
REFUSED: Mapping[str, str] = {
    "lora_bias": "PEFT cannot merge it into this base: Impossible to merge LoRA with `lora_bias=Tr",
    "alora": "activated LoRA acts on some tokens only",
    "layer_replication": "layer replication makes layers that this base has not",
    **dict.fromkeys(("pissa", "olora", "corda", "lora-ga"), _START),
    "lily": "LILY cannot be baked: it weights its matrices by the mean over all tokens",
    "poly": "POLY cannot be baked: it mixes its matrices by the task of a request",
    "adaption_prompt": "ADAPTION_PROMPT cannot be baked: it changes how layers attend",
    "shadow": "SHADOW cannot be baked: it runs a second model",
    "beft": "PEFT cannot merge it into this base: Base layer has no bias",
    **{name: _PROMPT for name, kind in KINDS.items() if kind.group == "Virtual tokens"},
}
"""On a base whose linears have no biases."""
MORE = [
    Cell(KINDS[kind], base)
    for base, kinds in {
        "phi": ("lora_bias", "bias=all", "bias=lora_only", "beft", "ln_tuning", "road"),
        "gpt2": ("lora_bias", "bias=all", "dora", "vera", "vblora", "modules_to_save=both"),
        "llama_tied": ("modules_to_save=both", "ensure_weight_tying, saved", "lm_head target"),
        "mixtral": ("target_parameters", "target_parameters, router", "bias=all"),
    }.items()
    for kind in kinds
]
"""Bases with biases, with one table for both ends, with experts."""


@pytest.fixture(scope="module")
def make(tiny_model, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Made]:
    def made(base: str, kind: str) -> Made:
        model = peft_made.load_base(tiny_model(base))
        return peft_made.make(KINDS[kind], base, model, tmp_path_factory.mktemp("made") / "adapter")

    return made


def answers(folder: Path) -> list[float]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return prompt_logprobs(model, IDS)


def check(cell: Cell, made: Made, base: Path, out: Path, says: str | None) -> None:
    if says is not None:
        with pytest.raises(InvalidAdapter) as caught:
            bake(base, made.folder, 1.0, "float32", out)
        assert says in caught.value.message, caught.value.message
        assert "\n" not in caught.value.message
        assert not out.exists()
        return
    bake(base, made.folder, 1.0, "float32", out)
    assert answers(out) == pytest.approx(made.logprobs(IDS), abs=1e-4), cell.name


@pytest.mark.parametrize(
    "cell",
    [c for c in cells() if c.base == "llama" and c.state is not State.IMPOSSIBLE],
    ids=lambda cell: cell.name,
)
def test_it_is_baked_or_refused(cell: Cell, make, tiny_model, tmp_path: Path) -> None:
    made = make(cell.base, cell.kind.name)
    check(cell, made, tiny_model(cell.base), tmp_path / "out", REFUSED.get(cell.kind.name))


@pytest.mark.parametrize("cell", MORE, ids=lambda cell: cell.name)
def test_other_bases(cell: Cell, make, tiny_model, tmp_path: Path) -> None:
    check(cell, make(cell.base, cell.kind.name), tiny_model(cell.base), tmp_path / "out", None)


@pytest.mark.parametrize("kind", ["adalora", "rslora", "dora", "bias=all", "modules_to_save=head"])
def test_at_half_its_strength(kind: str, make, tiny_model, tmp_path: Path) -> None:
    made = make("llama", kind)
    bake(tiny_model("llama"), made.folder, 0.5, "float32", tmp_path / "out")
    assert answers(tmp_path / "out") == pytest.approx(made.logprobs(IDS, 0.5), abs=1e-4)


def test_at_no_strength_there_is_nothing_to_bake(make, tiny_model, tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="other than 0"):
        bake(tiny_model("llama"), make("llama", "bias=all").folder, 0, "float32", tmp_path / "out")


def test_a_table_of_fewer_tokens_is_refused_with_both_numbers(
    make, tiny_model, tmp_path: Path
) -> None:
    folder = make("llama", "modules_to_save=head").folder
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    (head,) = [key for key in tensors if "lm_head" in key]
    rows = len(tensors[head])
    save_file({**tensors, head: tensors[head][:-5].clone()}, file)
    with pytest.raises(InvalidAdapter, match=f"{rows - 5}.*{rows}"):
        bake(tiny_model("llama"), folder, 1.0, "float32", tmp_path / "out")
