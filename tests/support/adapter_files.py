"""A base layout of four modules and adapters for it, without any model: real files, tiny."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from lorry_adapters.lora.base import BaseLayout, BaseModule, ModuleKind
from lorry_adapters.registry.archive import Upload

HIDDEN = 6

WIDE = 10

VOCABULARY = 50


def layout(name: str = "toy", hidden: int = HIDDEN) -> BaseLayout:
    shapes = {
        "model.layers.0.self_attn.q_proj": (hidden, hidden),
        "model.layers.0.mlp.up_proj": (hidden, WIDE),
        "model.layers.0.mlp.down_proj": (WIDE, hidden),
    }
    modules = {
        path: BaseModule(path, ModuleKind.LINEAR, into, out) for path, (into, out) in shapes.items()
    }
    table = BaseModule("model.embed_tokens", ModuleKind.EMBEDDING, VOCABULARY, hidden)
    return BaseLayout(
        name=name,
        architecture="ToyForCausalLM",
        num_layers=1,
        output_embedding=None,
        modules={table.name: table, **modules},
        input_embedding=table.name,
    )


def save_adapter(folder: Path, seed: int, *, rank: int = 2, hidden: int = HIDDEN) -> Path:
    """A PEFT folder whose content depends on the arguments only."""
    folder.mkdir(parents=True, exist_ok=True)
    random = torch.Generator().manual_seed(seed)
    shapes = {"self_attn.q_proj": (hidden, hidden), "mlp.down_proj": (WIDE, hidden)}
    tensors = {}
    for module, (into, out) in shapes.items():
        path = f"base_model.model.model.layers.0.{module}"
        tensors[f"{path}.lora_A.weight"] = torch.randn(rank, into, generator=random)
        tensors[f"{path}.lora_B.weight"] = torch.randn(out, rank, generator=random)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "toy",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": ["q_proj", "down_proj"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def upload(folder: Path) -> Upload:
    return Upload(
        config=folder / "adapter_config.json", weights=folder / "adapter_model.safetensors"
    )


def save_prompt(folder: Path, seed: int, *, count: int = 3, hidden: int = HIDDEN) -> Path:
    """A prompt-tuned adapter: `count` virtual tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    random = torch.Generator().manual_seed(seed)
    tensors = {"prompt_embeddings": torch.randn(count, hidden, generator=random)}
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "PROMPT_TUNING",
        "task_type": "CAUSAL_LM",
        "num_virtual_tokens": count,
        "token_dim": hidden,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
