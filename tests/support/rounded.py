"""Adapters as the compiled step holds them, in 8 bits, for those who compute in fp32.

Compared with these, the compiled step's arithmetic shows by itself;
`tests/unit/model/compiled/test_adapter.py` says what the rounding costs.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

from lorry.model.compiled.adapter import codes_of
from lorry_adapters.lora import weights
from lorry_adapters.lora.base import BaseLayout
from lorry_adapters.lora.parts import LoraPair


def rounded(folder: Path, target: Path, layout: BaseLayout) -> Path:
    """The adapter in `folder` with every A and B rounded as `codes_of` does it, in `target`. Whole
    modules of its own stay as they are."""
    modules = weights.load(folder, "sha256:rounded", layout).modules
    tensors = load_file(folder / weights.WEIGHTS_FILE)
    done = 0
    for name, pair in modules.items():
        codes = codes_of(pair)
        a_key, b_key = (
            next(key for key in tensors if f"{name}.lora_{half}." in key) for half in "AB"
        )
        tensors[a_key] = codes.a_RI.float()
        tensors[b_key] = codes.b_OR.float() * codes.scale_O.float().unsqueeze(1) / pair.scaling
        done += 2
    assert done == sum(".lora_" in key for key in tensors)
    target.mkdir()
    shutil.copy(folder / weights.CONFIG_FILE, target)
    save_file(tensors, target / weights.WEIGHTS_FILE)
    return target


@torch.no_grad()
def round_pairs(model: PeftModel) -> None:
    """Every pair of a PEFT model in place, whatever else the model has."""
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            for name, a in layer.lora_A.items():
                b, scaling = layer.lora_B[name], layer.scaling[name]
                codes = codes_of(LoraPair(a.weight, b.weight, scaling))
                a.weight.copy_(codes.a_RI)
                b.weight.copy_(codes.b_OR.float() * codes.scale_O.float()[:, None] / scaling)
