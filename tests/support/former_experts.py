"""Adapters as they were trained on mixtures of experts before transformers 5: a linear for each
projection of each expert, and a router that is a linear, too.

Made without PEFT, which cannot build that model any more; `merged` is what they mean, W + s B A
in the base's own tensors.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

PROJECTIONS = {
    "mixtral": ("block_sparse_moe", ("w1", "w3", "w2")),
    "qwen2_moe": ("mlp", ("gate_proj", "up_proj", "down_proj")),
    "qwen3_moe": ("mlp", ("gate_proj", "up_proj", "down_proj")),
}
"""By family: what the block was called, and an expert's gate, up and down."""


_SHARED = tuple(f"shared_expert.{name}" for name in ("gate_proj", "up_proj", "down_proj"))
_LINEARS = ("self_attn.q_proj", "self_attn.v_proj", *_SHARED)
"""That still are some."""


@dataclass(frozen=True, slots=True)
class Pair:
    a_RI: Tensor
    b_OR: Tensor
    strength: float

    @property
    def delta_OI(self) -> Tensor:
        return self.strength * (self.b_OR @ self.a_RI)


@dataclass(frozen=True, slots=True)
class FormerAdapter:
    family: str
    folder: Path
    pairs: Mapping[str, Pair]
    """By the path that the linear had."""

    @torch.no_grad()
    def merged(self, base: PreTrainedModel, scale: float = 1.0) -> PreTrainedModel:
        """A copy of `base` with the adapter in its weights."""
        model = copy.deepcopy(base)
        block, (gate, up, _) = PROJECTIONS[self.family]
        for path, pair in self.pairs.items():
            delta_OI = scale * pair.delta_OI
            parts = path.replace(f".{block}.", ".mlp.").split(".")
            if parts[-3] != "experts":
                model.get_submodule(".".join(parts)).weight += delta_OI
                continue
            experts: Any = model.get_submodule(".".join(parts[:-2]))
            expert, name = int(parts[-2]), parts[-1]
            if name in (gate, up):
                width = delta_OI.shape[0]
                start = 0 if name == gate else width
                experts.gate_up_proj[expert, start : start + width] += delta_OI
            else:
                experts.down_proj[expert] += delta_OI
        return model


def make(
    family: str,
    base: PreTrainedModel,
    folder: Path,
    *,
    router: bool = True,
    linears: bool = True,
    only: str = "",
    seed: int = 5,
    **config: Any,
) -> FormerAdapter:
    """Attention and a shared expert (`linears`), all experts (or `only` what has that in its path)
    and the router, drawn loud and saved. `config`: of PEFT's, beside the target_modules."""
    generator = torch.Generator().manual_seed(seed)
    fields = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, **config}
    rank = int(fields["r"])
    root = rank**0.5 if fields.get("use_rslora") else rank
    strength = fields["lora_alpha"] / root
    block, names = PROJECTIONS[family]
    shapes: dict[str, tuple[int, int]] = {}
    for path, module in base.named_modules():
        former = path.replace(".mlp.", f".{block}.")
        if path.endswith(_LINEARS) and linears:
            shapes[path] = (module.out_features, module.in_features)
        elif path.endswith(".mlp.gate") and router:
            shapes[former] = tuple(module.weight.shape)
        elif path.endswith(".mlp.experts"):
            count, fused, width = module.gate_up_proj.shape
            for expert in range(count):
                for name in names[:2]:
                    shapes[f"{former}.{expert}.{name}"] = (fused // 2, width)
                shapes[f"{former}.{expert}.{names[2]}"] = tuple(module.down_proj.shape[1:])
    pairs = {}
    for path, (outputs, inputs) in shapes.items():
        if "experts" in path and only not in path:
            continue
        a_RI = torch.randn(rank, inputs, generator=generator) / inputs**0.5
        b_OR = torch.randn(outputs, rank, generator=generator) * 0.8 / (rank**0.5 * strength)
        pairs[path] = Pair(a_RI, b_OR, strength)
    targets = sorted({path.rpartition(".")[2] for path in pairs})
    save(folder, {"target_modules": targets, **fields}, pairs)
    return FormerAdapter(family, folder, pairs)


def save(folder: Path, config: Mapping[str, Any], pairs: Mapping[str, Pair]) -> None:
    folder.mkdir(parents=True)
    whole = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "peft_version": "0.13.2", **config}
    (folder / "adapter_config.json").write_text(json.dumps(whole))
    tensors = {}
    for path, pair in pairs.items():
        tensors[f"base_model.model.{path}.lora_A.weight"] = pair.a_RI.contiguous()
        tensors[f"base_model.model.{path}.lora_B.weight"] = pair.b_OR.contiguous()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
