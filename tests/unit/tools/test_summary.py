"""What the files say of themselves: method, size, whether they do anything."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import (
    BeftConfig,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    PromptTuningConfig,
    ShiraConfig,
    VeraConfig,
    get_peft_model,
)
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
from peft.tuners.lora.config import BdLoraConfig
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lorry_adapters.errors import InvalidAdapter
from lorry_adapters.lora.merge import Part, Recipe, merge
from lorry_adapters.lora.methods.method_table import has_virtual_tokens, parameter_prefixes
from lorry_adapters.lora.peft_folder import PeftFolder
from lorry_adapters.tools.summary import AdapterSummary, summarize
from support.peft_adapters import edit_config

WEIGHTS = "adapter_model.safetensors"


def of(folder: Path) -> AdapterSummary:
    with PeftFolder(folder) as opened:
        return summarize(opened)


def change(folder: Path, part: str, by: float) -> Path:
    tensors = load_file(folder / WEIGHTS)
    save_file({k: v * by if part in k else v for k, v in tensors.items()}, folder / WEIGHTS)
    return folder


def test_a_plain_adapter(peft_adapter) -> None:
    folder = peft_adapter("llama", "rank_pattern")
    found = of(folder)
    tensors = load_file(folder / WEIGHTS)
    assert (found.method, found.task, found.acts) == ("LoRA", "CAUSAL_LM", True)
    assert found.kinds == ("rank_pattern",)
    assert found.parameters == sum(tensor.numel() for tensor in tensors.values())
    assert found.bytes == sum(tensor.nbytes for tensor in tensors.values())
    assert sum(part.parameters for part in found.parts) == found.parameters
    assert {part.rank for part in found.parts} == {4, 8, 12}
    by_name = {part.module: part for part in found.parts}
    assert by_name["model.layers.0.self_attn.q_proj"].strength == 16 / 4


@pytest.mark.parametrize(
    ("variant", "module", "strength"),
    [
        ("rslora", "model.layers.0.self_attn.q_proj", 8 / 4),
        ("alpha_pattern", "model.layers.0.self_attn.q_proj", 2 / 4),
        ("alpha_pattern", "model.layers.1.self_attn.q_proj", 8 / 4),
    ],
)
def test_strengths_are_pefts(variant: str, module: str, strength: float, peft_adapter) -> None:
    by_name = {part.module: part for part in of(peft_adapter("llama", variant)).parts}
    assert by_name[module].strength == pytest.approx(strength)


@pytest.mark.parametrize("part", ["lora_A", "lora_B"])
def test_a_delta_of_zero_does_nothing(part: str, peft_adapter, copied) -> None:
    folder = change(copied(peft_adapter("llama", "plain")), part, 0.0)
    found = of(folder)
    assert found.acts is False
    assert "zero" in found.why


def test_a_strength_of_zero_does_nothing(peft_adapter, copied) -> None:
    folder = copied(peft_adapter("llama", "plain"))
    edit_config(folder, lora_alpha=0)
    assert of(folder).acts is False


def test_one_module_is_enough(peft_adapter, copied) -> None:
    folder = change(copied(peft_adapter("llama", "plain")), "layers.0.", 0.0)
    assert of(folder).acts is True


def test_what_the_files_alone_do_not_tell_is_not_guessed(peft_adapter, copied) -> None:
    folder = change(copied(peft_adapter("llama", "plain")), "lora_B", 0.0)
    tensors = load_file(folder / WEIGHTS)
    save_file({**tensors, "base_model.model.lm_head.weight": torch.ones(4, 4)}, folder / WEIGHTS)
    found = of(folder)
    assert found.acts is None
    assert "lm_head.weight" in found.why
    assert ("lm_head", "full weight") in {(part.module, part.kind) for part in found.parts}


def test_the_parameters_of_every_method_are_known() -> None:
    """Those that put tokens before the prompt have none."""
    prefixes = {
        prefix
        for kind, prefix in PEFT_TYPE_TO_PREFIX_MAPPING.items()
        if not has_virtual_tokens(kind.value)
    }
    assert not [one for one in prefixes if not one.startswith(parameter_prefixes())]


METHODS = {
    "(IA)3": (IA3Config, {"target_modules": ["k_proj"], "feedforward_modules": []}, False),
    "LoHa": (LoHaConfig, {"target_modules": ["q_proj"], "r": 4}, False),
    "LoKr": (LoKrConfig, {"target_modules": ["q_proj"], "r": 4}, False),
    "VeRA": (VeraConfig, {"target_modules": ["q_proj"], "r": 4}, False),
    "SHiRA": (ShiraConfig, {"target_modules": ["q_proj"], "r": 2, "random_seed": 1}, False),
    "BEFT": (BeftConfig, {"target_modules": ["q_proj"]}, False),
    "prompt tuning": (PromptTuningConfig, {"num_virtual_tokens": 3}, True),
}


@pytest.mark.parametrize("method", METHODS)
def test_other_methods_are_described_and_their_start_does_nothing(
    method: str, tiny_model, tmp_path: Path
) -> None:
    config, fields, acts_at_once = METHODS[method]
    base = AutoModelForCausalLM.from_pretrained(tiny_model("llama"), dtype=torch.float32)
    model = get_peft_model(base, config(task_type="CAUSAL_LM", **fields))
    model.save_pretrained(tmp_path / "start")
    found = of(tmp_path / "start")
    assert found.method == method
    assert found.acts is acts_at_once
    assert found.parameters > 0
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data += 0.1
        assert name
    model.save_pretrained(tmp_path / "trained")
    assert of(tmp_path / "trained").acts is True
    modules = {part.module for part in found.parts if part.kind != ""}
    assert all("k_proj" in name or "q_proj" in name or not name.count(".") for name in modules)


def test_blocks_are_no_matrices_of_the_module(tiny_model, tmp_path: Path) -> None:
    """Of which a merge would make something else."""
    base = AutoModelForCausalLM.from_pretrained(tiny_model("llama"), dtype=torch.float32)
    blocks = BdLoraConfig(target_modules_bd_a=["q_proj"], nblocks=2)
    model = get_peft_model(base, LoraConfig(target_modules=["q_proj"], r=4, use_bdlora=blocks))
    model.save_pretrained(tmp_path / "start")
    assert (of(tmp_path / "start").acts, of(tmp_path / "start").kinds) == (None, ("BD-LoRA",))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data += 0.1
    model.save_pretrained(tmp_path / "trained")
    assert of(tmp_path / "trained").acts is True
    parts = [Part(tmp_path / "trained", 1.0, label) for label in ("one", "other")]
    with pytest.raises(InvalidAdapter, match="beside its LoRA matrices, which have no merge"):
        merge(parts, Recipe("linear"))
