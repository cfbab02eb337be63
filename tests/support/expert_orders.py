"""Adapters of stacked experts as others than PEFT today keep them: PEFT before 0.19.1, with A and
B in each other's places; Unsloth before 2026.9.6, with the columns of each expert side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from support.peft_adapters import edit_config

UNSLOTH = {"base_model_class": "Qwen3MoeForCausalLM", "unsloth_fixed": True}


def detail(**orders: str) -> dict[str, Any]:
    """What a newer Unsloth writes, by the parameter's name."""
    parameters = {name: {"lora_B_layout": o, "num_experts": 4} for name, o in orders.items()}
    return {"lora_A_layout": "grouped_by_expert", "parameters": parameters}


def regroup(folder: Path, experts: int = 4, only: str = "", **config: Any) -> Path:
    """In place. Column e r + j gets what was in column j E + e; `only`: of this part of keys."""
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    for key, tensor in tensors.items():
        if ".experts." in key and "lora_B" in key and only in key:
            rank = tensor.shape[1] // experts
            columns = [j * experts + e for e in range(experts) for j in range(rank)]
            tensors[key] = tensor[:, columns].contiguous()
    save_file(tensors, file, {"format": "pt"})
    edit_config(folder, **config)
    return folder


def exchange(folder: Path, experts: int = 4) -> Path:
    """In place."""
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    for a_key in [key for key in tensors if ".experts." in key and ".lora_A." in key]:
        b_key = a_key.replace("lora_A", "lora_B")
        a, b = tensors[a_key], tensors[b_key]
        rank = a.shape[0] // experts
        a_ERI = a.reshape(experts, rank, -1)
        b_EOR = b.reshape(-1, rank, experts).permute(2, 0, 1)
        tensors[a_key] = b_EOR.transpose(1, 2).reshape(experts * rank, -1).contiguous()
        tensors[b_key] = a_ERI.permute(2, 1, 0).reshape(-1, rank * experts).contiguous()
    save_file(tensors, file, metadata={"format": "pt"})
    edit_config(folder, peft_version="0.18.1")
    return folder
