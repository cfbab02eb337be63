"""What PEFT would add to each weight of a base, adapter by adapter."""

from __future__ import annotations

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer


def deltas(model: PeftModel, adapter: str) -> dict[str, torch.Tensor]:
    """By module of the base, in its weight's own layout."""
    return {
        name.removeprefix("base_model.model."): layer.get_delta_weight(adapter).detach()
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLayer) and adapter in layer.lora_A
    }
