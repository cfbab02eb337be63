"""Real PEFT adapters for the tiny models: made by PEFT, saved by PEFT, and loud.

PEFT starts B at zero, which would make every adapter the base model. Here A and B
are drawn so that a module's delta is about half as large as its output, whatever
the rank and the alpha.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM

from support.families import Family
from support.tiny import family

LOUDNESS = 0.8
"""Standard deviation of a delta over inputs of unit size; a base module's output has about 1.6."""

Variant = Callable[[Family], dict[str, Any]]


def _names(f: Family) -> list[str]:
    return list(f.projections)


VARIANTS: dict[str, Variant] = {
    "plain": lambda f: {"r": 8, "lora_alpha": 16, "target_modules": _names(f)},
    "small": lambda f: {"r": 4, "lora_alpha": 4, "target_modules": _names(f)},
    "large": lambda f: {"r": 16, "lora_alpha": 16, "target_modules": _names(f)},
    "odd_rank": lambda f: {"r": 5, "lora_alpha": 7, "target_modules": _names(f)},
    "rank_one": lambda f: {"r": 1, "lora_alpha": 2, "target_modules": _names(f)},
    "rslora": lambda f: {
        "r": 16,
        "lora_alpha": 8,
        "use_rslora": True,
        "target_modules": _names(f),
    },
    "rank_pattern": lambda f: {
        "r": 8,
        "lora_alpha": 16,
        "target_modules": _names(f),
        "rank_pattern": {f.attention[0]: 4, rf"{f.layers_pattern}\.1\..*{f.mlp[0]}": 12},
    },
    "alpha_pattern": lambda f: {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": _names(f),
        "alpha_pattern": {f.mlp[-1]: 32, rf"{f.layers_pattern}\.0\..*{f.attention[0]}": 2},
    },
    "both_patterns_rslora": lambda f: {
        "r": 8,
        "lora_alpha": 16,
        "use_rslora": True,
        "target_modules": _names(f),
        "rank_pattern": {f.mlp[0]: 16},
        "alpha_pattern": {f.mlp[0]: 8, f.attention[-1]: 4},
    },
    "all_linear": lambda f: {"r": 8, "lora_alpha": 8, "target_modules": "all-linear"},
    "regex": lambda f: {
        "r": 8,
        "lora_alpha": 16,
        "target_modules": rf".*\.{f.layers_pattern}\.1\..*({f.attention[0]}|{f.mlp[-1]})",
    },
    "layers_to_transform": lambda f: {
        "r": 8,
        "lora_alpha": 16,
        "target_modules": _names(f),
        "layers_to_transform": [1],
        "layers_pattern": f.layers_pattern,
    },
    "exclude_modules": lambda f: {
        "r": 8,
        "lora_alpha": 16,
        "target_modules": _names(f),
        "exclude_modules": [f.mlp[0]],
    },
    "attention_only": lambda f: {"r": 8, "lora_alpha": 16, "target_modules": list(f.attention)},
    "mlp_only": lambda f: {"r": 16, "lora_alpha": 16, "target_modules": list(f.mlp)},
    "one_module": lambda f: {"r": 8, "lora_alpha": 16, "target_modules": [f.attention[0]]},
    "head": lambda f: {"r": 8, "lora_alpha": 8, "target_modules": [f.head, f.attention[0]]},
}
"""By name, what each asks of `LoraConfig`: every kind of LoRA that is served."""


def lora_config(name: str, variant: str) -> LoraConfig:
    f = family(name)
    return LoraConfig(
        task_type="CAUSAL_LM",
        lora_dropout=0.1,  # must have no effect at inference
        fan_in_fan_out=f.conv1d and variant != "head",
        **VARIANTS[variant](f),
    )


def save_adapter(
    name: str,
    model_folder: Path,
    variant: str,
    folder: Path,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Writes `adapter_config.json` and `adapter_model.safetensors` into `folder`."""
    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    model = get_peft_model(base, lora_config(name, variant))
    fill(model, seed=seed)
    model.to(dtype).save_pretrained(folder, save_embedding_layers=False)
    return folder


@torch.no_grad()
def fill(model: torch.nn.Module, *, seed: int) -> None:
    """Draws every A and B of the active adapter of a PEFT model."""
    generator = torch.Generator().manual_seed(1000 + seed)
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, LoraLayer)]
    assert layers
    for _, layer in sorted(layers, key=lambda item: item[0]):
        for adapter in layer.lora_A:
            a_RI = layer.lora_A[adapter].weight
            b_OR = layer.lora_B[adapter].weight
            rank, fan_in = a_RI.shape
            b_std = LOUDNESS / (math.sqrt(rank) * layer.scaling[adapter])
            a_RI.copy_(torch.randn(a_RI.shape, generator=generator) / math.sqrt(fan_in))
            b_OR.copy_(torch.randn(b_OR.shape, generator=generator) * b_std)


def pack(folder: Path, archive: Path, members: Sequence[str] | None = None) -> Path:
    """A zip of the folder's files (or of `members`), as a user would upload it."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as out:
        for path in sorted(folder.iterdir()):
            if members is None or path.name in members:
                out.write(path, path.name)
    return archive


def edit_config(folder: Path, **changes: Any) -> None:
    """Rewrites fields of `adapter_config.json` in place."""
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config.update(changes)
    path.write_text(json.dumps(config))
