"""What an adapter of any kind changes, against the weights that PEFT merges it into."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from lorry.model.layout import layout_of
from lorry_adapters.errors import ToolError
from lorry_adapters.lora.weights import load
from lorry_adapters.tools.changes import changes
from support.peft_kinds import KINDS
from support.peft_made import load_base, make

MERGED = (
    ("llama", "dora"),
    ("gpt2", "dora"),
    ("llama", "ia3, feedforward"),
    ("phi", "lora_bias"),
    ("llama", "vera"),
    ("llama", "oft"),
    ("llama", "embeddings target"),
    ("llama", "trainable_token_indices"),
    ("llama", "modules_to_save=head"),
    ("llama_tied", "trainable_token_indices"),
)


@pytest.mark.parametrize(("family", "name"), MERGED)
def test_the_norm_is_of_what_peft_merges(
    family: str, name: str, tiny_model, tmp_path: Path
) -> None:
    base = load_base(tiny_model(family))
    made = make(KINDS[name], family, copy.deepcopy(base), tmp_path)
    layout = layout_of(base, "tiny")
    found, left_out = changes(load(tmp_path, "", layout), layout, tiny_model(family))
    assert not left_out
    merged = copy.deepcopy(made.model).merge_and_unload()
    seen = {one.module: one for one in found}
    for path, module in base.named_modules():
        if not isinstance(getattr(module, "weight", None), torch.Tensor):
            continue
        other = merged.get_submodule(path)
        change = [_difference(module, other, part) for part in ("weight", "bias")]
        norm = float(torch.cat(change).norm())
        if path not in seen:
            assert norm == pytest.approx(0, abs=1e-5), path
            continue
        assert seen[path].norm == pytest.approx(norm, rel=1e-3), path
        assert seen[path].base == pytest.approx(float(module.weight.norm()), rel=1e-4)


def _difference(one: nn.Module, other: nn.Module, part: str) -> torch.Tensor:
    before, after = getattr(one, part, None), getattr(other, part, None)
    if after is None:
        return torch.zeros(1)
    return (after - (0 if before is None else before)).detach().flatten()


def test_what_is_no_change_of_a_module_is_told(tiny_model, tmp_path: Path) -> None:
    base = load_base(tiny_model("llama"))
    layout = layout_of(base, "tiny")
    make(KINDS["ln_tuning"], "llama", copy.deepcopy(base), tmp_path / "norms")
    found, left_out = changes(load(tmp_path / "norms", "", layout), layout, tiny_model("llama"))
    assert not found
    assert "model.layers.0.input_layernorm" in left_out
    make(KINDS["prompt tuning"], "llama", copy.deepcopy(base), tmp_path / "prompt")
    with pytest.raises(ToolError, match="changes no module"):
        changes(load(tmp_path / "prompt", "", layout), layout, tiny_model("llama"))
